"""Talk to a trained model.

    python scripts/chat.py --run requests_grpo
    python scripts/chat.py --pretrained smollm2
    python scripts/chat.py --pretrained smollm2 --system "Answer in one sentence." --temperature 0
    python scripts/chat.py --run tales-001
    python scripts/chat.py --pretrained smollm2 --prompt "What is the capital of France?"

The model is loaded once and answers message by message, as it was trained to by its chat template. A model without
one, or any with --text, continues a text: a line is appended as it is, an empty line lets the model go on, and after
the end of a text the next line begins another one.

Ctrl-C stops an answer, not the program; Ctrl-D (on Windows Ctrl-Z and Enter) or /quit ends it. /reset forgets the
conversation, /system sets instructions, /retry writes the last answer again, /temperature, /top_k and /top_p change how
tokens are sampled, /save and /load keep a conversation in a file. /help lists all commands.

Each --prompt is a line that is sent first. Without a terminal the lines of standard input are sent, or --prompt alone,
and the exit status is 2 if one was refused.
"""

from gpt.run.cli import Parser, add_model_options, add_sampling_options, add_speed_options, chosen_run, run
from gpt.system.text import unescape


def main() -> int:
    parser = Parser(__doc__)
    add_model_options(parser)
    add = parser.add_argument
    add("--prompt", type=unescape, action="append", metavar="TEXT", help="a line to send first; may be repeated")
    add("--system", type=unescape, metavar="TEXT", help="instructions before the conversation")
    add("--text", action="store_true", help="continue a text, although the model has a chat template")
    add("--max_new_tokens", type=int, metavar="N",
        help="the longest answer (default: 1000 tokens; of a text 200, or a document)")  # fmt: skip
    add_sampling_options(parser)
    add_speed_options(parser)
    arguments = parser.parse_args()
    folder = chosen_run(arguments)

    from gpt.run.chat import converse  # imports PyTorch, which --help does not need

    return converse(folder, arguments)


if __name__ == "__main__":
    run(main)
