"""Print known figures of information theory, and draw pictures of them.

    python scripts/information.py
    python scripts/information.py --out runs/information

Entropy, perplexity and losses come from formulas that a pencil can check. The rest is measured on GPTs of seven words,
trained in a few seconds: target probabilities before and after training, calibration with and without label smoothing,
two models on each other's texts. docs/information.md explains them.
"""

from pathlib import Path

from gpt.run.cli import Parser, run


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", metavar="FOLDER", help="folder for the pictures, created if need be (default: none)")
    arguments = parser.parse_args()

    from gpt.run.information import draw_pictures, known_figures, print_figures, run_experiments, transport_figures
    from gpt.system.memory import set_allocator_flags

    set_allocator_flags()
    print_figures(known_figures())
    try:
        print_figures(transport_figures())
    except ImportError as error:  # scipy is optional
        print(f"left out: {error}")
    experiments = run_experiments()
    print_figures(experiments.figures)
    if arguments.out:
        draw_pictures(experiments, Path(arguments.out))
        print(f"pictures      {arguments.out}")


if __name__ == "__main__":
    run(main)
