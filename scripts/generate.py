"""Generate text with a trained model.

    python scripts/generate.py --run story-001 --prompt "On Monday the Patience came in"
    python scripts/generate.py --run story-001 --prompt "Hanna" --temperature 0.5 --top_k 40 --num_samples 3
    python scripts/generate.py --run story-001 --prompt "Hanna" --weights int8
    python scripts/generate.py --run masked --prompt "Once there was a brave [MASK] named Mina"
    python scripts/generate.py --pretrained gpt2 --prompt "Every effort moves you" --max_new_tokens 25

The text appears as it is written. A model that was trained to fill in what is masked does so at each [MASK]; one that
reads from the right writes what stands before the prompt. The same seed writes the same text. What --weights int8 costs
in loss, evaluate.py --weights int8 measures.
"""

import sys

from gpt.run.cli import Parser, add_model_options, add_weights_option, chosen_run, run


def main() -> None:
    parser = Parser(__doc__)
    add_model_options(parser)
    parser.add_argument(
        "--prompt",
        required=True,
        metavar="TEXT",
        help="the text to continue; '' where the model was trained on windows of documents: it begins one",
    )
    parser.add_argument(
        "--max_new_tokens", type=int, metavar="N", help="tokens to write (default: 200, or up to the end of a document)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="X",
        help="0: always the most probable token; 1: the model's own probabilities; higher: more random (default: 0.8)",
    )
    parser.add_argument(
        "--top_k", type=int, metavar="N", help="draw from the N most probable tokens only (default: all)"
    )
    parser.add_argument(
        "--top_p",
        type=float,
        metavar="X",
        help="draw from the most probable tokens that together hold the probability X",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed writes the same text (default: 0)"
    )
    parser.add_argument("--num_samples", type=int, default=1, metavar="N", help="texts to write (default: 1)")
    add_weights_option(parser)
    arguments = parser.parse_args()
    if arguments.num_samples < 1:
        parser.error(f"--num_samples must be at least 1, not {arguments.num_samples}")
    if not 0 <= arguments.seed < 2**63:
        parser.error(f"--seed must be 0 to {2**63 - 1}, not {arguments.seed}")
    folder = chosen_run(arguments)

    import torch

    from gpt.exchange.models import open_model
    from gpt.generation import check_sampling
    from gpt.system.device import choose_device
    from gpt.system.memory import set_allocator_flags
    from gpt.variants.int8 import Int8GPTModel, weight_bytes

    sampling = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p")}
    check_sampling(arguments.max_new_tokens or 0, **sampling)
    set_allocator_flags()
    device = choose_device(arguments.device)
    subject = open_model(folder, arguments.checkpoint, arguments.pretrained)
    objective, tokenizer, prepend_eot = subject.objective.to(device), subject.tokenizer, subject.prepend_eot
    print(subject.name, file=sys.stderr)
    if arguments.weights == "int8":
        before, objective.model = weight_bytes(objective.model), Int8GPTModel(objective.model)
        del subject  # whose checkpoint holds the float32 weights
        after = weight_bytes(objective.model)
        print(f"int8 weights: {after / 1e6:,.1f} MB, float32 {before / 1e6:,.1f} MB", file=sys.stderr)
    if objective.continues_prompts:
        n_prompt = prepend_eot + len(tokenizer.encode(arguments.prompt))
        notice_window(objective.model.config, n_prompt, arguments.max_new_tokens, prepend_eot)
    generator = torch.Generator(device).manual_seed(arguments.seed)
    for sample in range(arguments.num_samples):
        if sample:
            print("\n---")
        written = objective.generate_text(
            arguments.prompt, tokenizer, prepend_eot, arguments.max_new_tokens, **sampling, generator=generator
        )
        for text in written:
            print(text, end="", flush=True)
        print()


def notice_window(model, n_prompt: int, max_new_tokens: int | None, prepend_eot: bool) -> None:
    """Say where a text does not fit the model's window."""
    window, longest = model.context_length, 200 if max_new_tokens is None else max_new_tokens
    if prepend_eot and max_new_tokens is None:
        longest = window
    if model.backbone == "gpt" and 0 < n_prompt <= window < n_prompt + longest:
        print(
            f"beyond the model's window of {window} tokens each further one reads the whole window again",
            file=sys.stderr,
        )
    if n_prompt > window:
        print(f"the prompt has {n_prompt} tokens; the model sees the last {window} of them", file=sys.stderr)


if __name__ == "__main__":
    run(main)
