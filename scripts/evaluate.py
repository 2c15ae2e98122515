"""Evaluate a trained run on its validation split, or on any text.

    python scripts/evaluate.py --run story-001
    python scripts/evaluate.py --run story-001 --text other.txt --stride 32
    python scripts/evaluate.py --run story-001 --weights int8
    python scripts/evaluate.py --run tales-001 --continuations 100
    python scripts/evaluate.py --run tales-001 --samples 200 --checkpoint all
    python scripts/evaluate.py --run questions-001 --text test.jsonl --prompt_field question --target_field answer
    python scripts/evaluate.py --run chats --text test.jsonl --format messages
    python scripts/evaluate.py --pretrained smollm2 --text forms-test:100 --reward forms
    python scripts/evaluate.py --pretrained gpt2 --text book.txt --context 1024 --stride 512

A perplexity depends on the tokenizer, the context and the stride, so they are printed with it. Bits per byte are
comparable across tokenizers. On its validation split a run is compared with baselines.

Accuracy is the share of tokens to which the model gives the highest probability. BLEU and ROUGE compare what the model
writes with the true text: it continues --continuations prompts from the text greedily.

A run with an objective other than next-token prediction is evaluated by that objective. --text and the options that
say how it is read are those of prepare_data.py. Of conversations, read by --format, the answers count.

--reward judges the model's own answers to prompts, at temperature 0, by a rule of gpt/objectives/rewards.py.
--weights int8 (or bfloat16) also prints the loss with such weights, which generate.py can use.

A run on tales samples --samples tales at temperature 1: how many the grammar accepts, the rules broken first by others,
the entropy of what the model writes and the share with three friends, beside the grammar's own. --checkpoint all checks
the tales of each checkpoint, and draws a picture. A run on requests for tales answers --samples unseen requests.
"""

from gpt.run.cli import Parser, add_model_options, add_weights_option, chosen_run, run, seed
from gpt.text.sources import add_text_options


def main() -> None:
    parser = Parser(__doc__)
    add_model_options(parser)
    add_weights_option(parser)
    parser.add_argument(
        "--text", metavar="TEXT",
        help="a file, folder, glob, story, tales:N:SEED or - (default: the validation split)",
    )  # fmt: skip
    add_text_options(parser)
    parser.add_argument(
        "--reward", metavar="NAME", help="judge its answers: forms, exact_match, 'module:function', ..."
    )
    numbers = {
        "context": (None, "tokens of context (default: the model's context_length)"),
        "stride": (None, "tokens from one example to the next; below --context they overlap (default: the context)"),
        "batch_size": (None, "examples in a batch (default: 16, or fewer if they have over 1,024 tokens)"),
        "samples": (500, "tales to sample, for a run on tales or on requests for them (default: 500)"),
        "seed": (0, "seed of these samples (default: 0)"),
        "continuations": (20, "prompts to continue, for BLEU and ROUGE (default: 20)"),
    }  # fmt: skip
    for name, (default, help_text) in numbers.items():
        kind = seed if name == "seed" else int
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=help_text)
    arguments = parser.parse_args()
    all_checkpoints = arguments.checkpoint == "all"
    if arguments.samples < all_checkpoints:
        parser.error(f"--samples must be at least {int(all_checkpoints)}, not {arguments.samples}")
    if arguments.continuations < 0:
        parser.error(f"--continuations must be at least 0, not {arguments.continuations}")
    judged = arguments.reward is not None
    mode = "--checkpoint all, which checks sampled tales" if all_checkpoints else "--reward, which judges whole answers"
    for option in ["text", "reward"] * all_checkpoints + ["context", "stride", "weights"] * (all_checkpoints or judged):
        if getattr(arguments, option) not in (None, "float32"):
            parser.error(f"--{option} cannot be combined with {mode}")
    if arguments.pretrained is not None and (all_checkpoints or arguments.text is None):
        parser.error("published weights have no checkpoints and no validation split: name a text, --text FILE")
    folder = chosen_run(arguments)

    from gpt.run.evaluate import evaluate_answers, evaluate_checkpoints, evaluate_model

    evaluate = evaluate_checkpoints if all_checkpoints else evaluate_answers if judged else evaluate_model
    evaluate(folder, arguments)


if __name__ == "__main__":
    run(main)
