"""Write the page of a run: settings, curves, samples and a look inside the model, in one HTML file.

    python scripts/report.py --run tales-001 --open
    python scripts/report.py --run tales-001 --compare tales_long-001 deeper
    python scripts/report.py --run tales-001 --checkpoint step-000600 --out early.html

The page is runs/NAME/index.html, or --out. It needs no server and no network. A run writes it when it ends; this script
also writes it while the run trains, which it does not disturb. --compare draws other runs on the same axes, in a page
of its own: runs/NAME/compared.html.
"""

import webbrowser

from gpt.run.cli import Parser, run
from gpt.system.paths import existing_run


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--run", required=True, metavar="NAME", help="a name under runs/, or a path")
    parser.add_argument("--compare", nargs="+", default=[], metavar="NAME", help="other runs, drawn on the same axes")
    parser.add_argument(
        "--checkpoint", default="best", metavar="NAME", help="look into best, last or step-000500 (default: best)"
    )
    parser.add_argument("--out", metavar="FILE", help="the page (default: index.html in the run's folder)")
    parser.add_argument("--open", action="store_true", help="open it in a browser")
    arguments = parser.parse_args()
    folder = existing_run(arguments.run)

    from gpt.run.page import write_page

    out = arguments.out or (folder / "compared.html" if arguments.compare else None)
    page = write_page(folder, arguments.compare, checkpoint=arguments.checkpoint, out=out)
    print(page)
    if arguments.open:
        webbrowser.open(page.resolve().as_uri())


if __name__ == "__main__":
    run(main)
