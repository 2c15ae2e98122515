"""Generate text with a trained model.

    python scripts/generate.py --run story-001 --prompt "On Monday the Patience came in"
    python scripts/generate.py --run story-001 --prompt "Hanna" --temperature 0.5 --top_k 40 --num_samples 3
    python scripts/generate.py --run story-001 --prompt "Hanna" --weights int8 --compile
    python scripts/generate.py --run masked --prompt "Once there was a brave [MASK] named Mina"
    python scripts/generate.py --run story-001 --prompts prompts.txt --format jsonl > texts.jsonl
    python scripts/generate.py --pretrained gpt2 --prompt "Every effort moves you" --max_new_tokens 25
    python scripts/generate.py --pretrained smollm2 --chat --prompt "What is the capital of France?"

The text is printed token by token. Without a prompt it starts at the beginning of a text. Names of special tokens in a
prompt, such as <|endoftext|>, are these tokens. With --chat the prompt is a message, and a model that was trained on
conversations answers it. A model trained to fill in masks replaces each [MASK]; a model trained on reversed text
generates the text before the prompt.

--prompts generates for many prompts, in batches. Each result is a line: the text as --prompt prints it, with \\n for a
line end, \\t for a tab and \\\\ for a backslash. With --format jsonl it is an object of prompt, text, finish_reason
(stop at an end-of-text token or a stop string, length if the text is cut), n_tokens and seed. Text i, counted from 0,
has the seed --seed + i, and the same seed gives the same text in any batch.

On a CPU, --compile and --weights int8 take less time per token, --weights bfloat16 does so together with --compile.
evaluate.py --weights int8 measures what rounding does to the loss; --compile changes only last digits.
"""

from gpt.run.cli import Parser, add_model_options, add_sampling_options, add_speed_options, chosen_run, run
from gpt.system.text import unescape


def main() -> None:
    parser = Parser(__doc__)
    add_model_options(parser)
    add = parser.add_argument
    add("--prompt", type=unescape, metavar="TEXT", help="the text to continue (default: start a new one)")
    add("--prompts", metavar="FILE", help="continue each line of a file, or of standard input (-)")
    add("--field", type=unescape, metavar="NAME",
        help="--prompts holds records (.jsonl, .json, .csv, .tsv, .parquet): the field that is the prompt, or a "
        "template such as 'Q: {question}\\nA:'")  # fmt: skip
    add("--encoding", default="utf-8", metavar="NAME", help="of --prompts, any that Python knows (default: utf-8)")
    add("--format", choices=["text", "jsonl"], default="text", help="how results are printed (default: text)")
    add("--batch_size", type=int, default=8, metavar="N", help="prompts in a batch (default: 8)")
    add("--chat", action="store_true", help="answer the prompt as a message, by the model's own chat template")
    add("--system", type=unescape, metavar="TEXT", help="with --chat: instructions before the message")
    add("--max_new_tokens", type=int, metavar="N",
        help="tokens to generate (default: 200, or to the end of a document or an answer)")  # fmt: skip
    add_sampling_options(parser)
    add("--num_samples", type=int, default=1, metavar="N", help="texts to generate for each prompt (default: 1)")
    add("--logprobs", action="store_true", help="with --format jsonl: the log-probability of each token, in nats")
    add_speed_options(parser)
    arguments = parser.parse_args()
    for name in ("num_samples", "batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    if arguments.logprobs and arguments.format != "jsonl":
        parser.error("--logprobs is a field of each result: add --format jsonl")
    if arguments.system is not None and not arguments.chat:
        parser.error("--system comes before a message of a conversation: add --chat")
    if arguments.chat and arguments.prompt is None and arguments.prompts is None:
        parser.error("--chat answers a message: write it as --prompt TEXT")
    if arguments.prompts is not None and arguments.prompt is not None:
        parser.error("--prompt is one prompt, --prompts a file of them: give one of the two")
    if arguments.field is not None and arguments.prompts is None:
        parser.error("--field names a part of each line of --prompts FILE")
    folder = chosen_run(arguments)

    from gpt.run.generate import generate_from  # imports PyTorch, which --help does not need

    generate_from(folder, arguments)


if __name__ == "__main__":
    run(main)
