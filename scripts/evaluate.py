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
    python scripts/evaluate.py --pretrained gpt2 --tasks hellaswag arc_easy --limit 500

A perplexity depends on the tokenizer, the context and the stride, so they are printed with it. Bits per byte are
comparable across tokenizers. On its validation split a run is compared with baselines.

Accuracy is the share of tokens to which the model gives the highest probability. BLEU and ROUGE compare what the model
writes with the true text: it continues --continuations prompts from the text greedily.

A run with an objective other than next-token prediction is evaluated by that objective. --text and the options that
say how it is read are those of prepare_data.py. Of conversations, read by --format, the answers count.

--reward judges the model's own answers to prompts, at temperature 0, by a rule of gpt/objectives/rewards.py.
--weights int8 (or bfloat16) also prints the loss with such weights, which generate.py can use.

--tasks asks questions with choices, from data/tasks/NAME.jsonl or .parquet, which is downloaded if it is missing: the
choice to which the model gives the highest probability is its answer, as in EleutherAI's lm-evaluation-harness.

A run on tales samples --samples tales at temperature 1: how many the grammar accepts, the rules broken first by others,
the entropy of what the model writes and the share with three friends, beside the grammar's own. --checkpoint all checks
the tales of each checkpoint, and draws a picture. A run on requests for tales answers --samples unseen requests.
"""

from gpt.run.cli import Parser, chosen_run, run
from gpt.run.evaluate_options import add_evaluate_options, chosen_mode


def main() -> None:
    parser = Parser(__doc__)
    add_evaluate_options(parser)
    arguments = parser.parse_args()
    mode, folder = chosen_mode(arguments), chosen_run(arguments)

    from gpt.run import evaluate  # imports PyTorch, which --help does not need

    getattr(evaluate, mode.name)(folder, arguments)


if __name__ == "__main__":
    run(main)
