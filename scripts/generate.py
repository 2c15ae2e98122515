"""Generate text with a trained model.

    python scripts/generate.py --run story-001 --prompt "On Monday the Patience came in"
    python scripts/generate.py --run story-001 --prompt "Hanna" --temperature 0.5 --top_k 40 --num_samples 3
    python scripts/generate.py --run story-001 --prompt "Hanna" --weights int8
    python scripts/generate.py --run masked --prompt "Once there was a brave [MASK] named Mina"
    python scripts/generate.py --pretrained gpt2 --prompt "Every effort moves you" --max_new_tokens 25
    python scripts/generate.py --pretrained smollm2 --chat --prompt "What is the capital of France?"

With --chat the prompt is a message, and a model that was trained on conversations answers it. The text is printed token
by token. A model trained to fill in masks replaces each [MASK]; a model trained on reversed text generates the text
before the prompt. The same seed gives the same text. evaluate.py --weights int8 measures how much int8 weights raise
the loss.
"""

import sys

from gpt.run.cli import Parser, add_model_options, add_weights_option, chosen_run, run


def main() -> None:
    parser = Parser(__doc__)
    add_model_options(parser)
    add = parser.add_argument
    add("--prompt", required=True, metavar="TEXT",
        help="the text to continue; '' starts a new document if the model was trained on documents")  # fmt: skip
    add("--chat", action="store_true", help="answer the prompt as a message, by the model's own chat template")
    add("--system", metavar="TEXT", help="with --chat: instructions before the message")
    add(
        "--max_new_tokens",
        type=int,
        metavar="N",
        help="tokens to generate (default: 200, or to the end of a document or an answer)",
    )
    add("--temperature", type=float, default=0.8, metavar="X",
        help="0: the most probable token; 1: the model's probabilities; above: more random (default: 0.8)")  # fmt: skip
    add("--top_k", type=int, metavar="N", help="sample from the N most probable tokens (default: all)")
    add("--top_p", type=float, metavar="X", help="sample from the most probable tokens whose probabilities sum to X")
    add("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    add("--num_samples", type=int, default=1, metavar="N", help="texts to generate (default: 1)")
    add_weights_option(parser)
    arguments = parser.parse_args()
    if arguments.num_samples < 1:
        parser.error(f"--num_samples must be at least 1, not {arguments.num_samples}")
    if not 0 <= arguments.seed < 2**63:
        parser.error(f"--seed must be 0 to {2**63 - 1}, not {arguments.seed}")
    if arguments.system is not None and not arguments.chat:
        parser.error("--system comes before a message of a conversation: add --chat")
    folder = chosen_run(arguments)

    from gpt.exchange.models import open_model
    from gpt.run.generate import print_answers, print_samples, use_int8
    from gpt.system.memory import set_allocator_flags

    set_allocator_flags()
    loaded = open_model(folder, arguments.checkpoint, arguments.pretrained)
    print(loaded.name, file=sys.stderr)
    if arguments.weights == "int8":
        use_int8(loaded)
    write, prompt = print_samples, arguments.prompt
    if arguments.chat:
        instructions = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
        write, prompt = print_answers, [*instructions, {"role": "user", "content": arguments.prompt}]
    write(
        loaded, prompt, arguments.num_samples, arguments.max_new_tokens, arguments.seed, arguments.device,
        temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
