"""Export a trained model in a layout that other programs read.

    python scripts/export.py --run tales-001 --out exported/tales
    python scripts/export.py --run tales-001 --out exported/tales_book --format book
    python scripts/export.py --run tales-001 --out exported/tales.gguf --format gguf --dtype q8_0
    python scripts/export.py --run story-001 --out exported/story_nanogpt --format nanogpt

hf: a folder that transformers' AutoModelForCausalLM and AutoTokenizer load, as a GPT-2, Llama, Mistral, Qwen2 or Qwen3,
whichever has the model's options. gguf: a file for llama.cpp and what builds on it, such as Ollama. book: a checkpoint
that the GPTModel of Raschka, "Build a Large Language Model (From Scratch)", loads with strict=True. nanogpt: a folder
with a ckpt.pt that nanoGPT's GPT loads, and a meta.pkl where tokens are characters. peft: the updates of a run with the
adapter lora, which PEFT loads on the published model that the run started from. Each works here as
--pretrained of generate.py and evaluate.py, and as init_from in a config.
"""

import sys
from pathlib import Path

from gpt.run.cli import Parser, add_run_options, run
from gpt.system.paths import existing_run


def main() -> None:
    parser = Parser(__doc__)
    add_run_options(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder, or with --format gguf a new file")
    parser.add_argument(
        "--format", choices=["hf", "gguf", "book", "nanogpt", "peft"], default="hf", help="the layout (default: hf)"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "float16", "q8_0"], help="gguf: type of the matrices (default: float32)"
    )
    arguments = parser.parse_args()
    if arguments.run is None:
        parser.error("name a run: --run NAME")
    if arguments.dtype and arguments.format != "gguf":
        parser.error("--dtype is an option of --format gguf: leave it out")
    folder, out = existing_run(arguments.run), Path(arguments.out)

    from gpt.exchange.export import export_book, export_gguf, export_hf, export_nanogpt, notices
    from gpt.exchange.models import load_objective
    from gpt.exchange.peft import export_peft

    objective, tokenizer, checkpoint = load_objective(folder, arguments.checkpoint)
    prepend_eot = objective.starts_with_eot(checkpoint.config)
    if not objective.left_to_right:
        parser.error(
            f"only a model that predicts the next token can be exported, and {arguments.run} was trained for "
            f"{checkpoint.config.objective.name}"
        )
    if arguments.format == "hf":
        export_hf(objective.model, tokenizer, prepend_eot, out)
    elif arguments.format == "gguf":
        export_gguf(objective.model, tokenizer, prepend_eot, out, arguments.dtype or "float32")
    elif arguments.format == "nanogpt":
        export_nanogpt(objective.model, tokenizer, out, checkpoint.state["step"])
    elif arguments.format == "peft":
        export_peft(checkpoint, tokenizer, prepend_eot, out)
    else:
        export_book(objective.model, tokenizer, out)
    print(f"{folder}, step {checkpoint.state['step']:,} -> {out}: {objective.model.num_parameters():,} parameters")
    for notice in notices(objective.model, tokenizer, arguments.format):
        print(f"Note: {notice}.", file=sys.stderr)


if __name__ == "__main__":
    run(main)
