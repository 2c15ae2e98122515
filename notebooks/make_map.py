"""Draw the map of the notebooks, map.svg and zh/map.svg, from the tables of README.md and zh/README.md.

    python notebooks/make_map.py

The arrows are the column "needs" of the table. Where the boxes stand, and how an arrow goes around others, is here.
"""

import re
import warnings
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Line

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 1.24, 0.5  # of a box
BEND, DROP = 9.2, 0.12  # where the arrows of notebook 7 turn; where arrows that go around leave a box
PLACES = {n: (1.4 * (n - 1), 0.0) for n in range(1, 8)} | {
    16: (10.0, 1.5), 12: (10.0, 0.75), 9: (10.0, 0.0), 10: (10.0, -0.75), 11: (10.0, -1.5), 8: (10.0, -2.25),
    15: (11.55, -0.75), 13: (11.55, -2.25), 14: (13.1, -1.5),
}  # fmt: skip
PATHS = {"hour": (4, 6, 7), "evening": (1, 2, 3, 5, 8)}  # a path has the notebooks of those before it too
ARROW = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0}
ARROW |= {"color": "#555555", "lw": 1.1, "joinstyle": "round"}
COLOURS = {"hour": "#f4b183", "evening": "#bdd7ee", "week": "#eeeeee"}
WORDS = {
    "en": {"hour": "one hour", "evening": "one evening: these too", "week": "one week: all"},
    "zh": {"hour": "一小时", "evening": "一个晚上：再加这些", "week": "一周：全部"},
}


def table(page: Path) -> dict[int, tuple[str, list[int]]]:
    """Return (name, numbers of the notebooks that it needs) of each notebook in a README's table."""
    rows = re.findall(r"^\| (\d+) \| \[(.*?)\].*\| ([\d, 、，]*) *\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {int(n): (name, [int(needed) for needed in re.findall(r"\d+", needs)]) for n, name, needs in rows}


def route(start: int, end: int) -> list[tuple[float, float]]:
    """Return the corners of an arrow."""
    (x, y), (to_x, to_y) = PLACES[start], PLACES[end]
    left, right = to_x - WIDTH / 2, x + WIDTH / 2
    if (start, end) in ((1, 6), (3, 7)):  # above the row
        top = 0.72 if start == 1 else 0.52
        return [(x, HEIGHT / 2), (x, top), (to_x - DROP, top), (to_x - DROP, HEIGHT / 2)]
    if (start, end) == (5, 13):  # below everything
        return [(x - DROP, -HEIGHT / 2), (x - DROP, -2.85), (to_x, -2.85), (to_x, to_y - HEIGHT / 2)]
    if (start, end) == (13, 14):
        return [(right, y), (to_x, y), (to_x, to_y - HEIGHT / 2)]
    if start == 7:
        return [(right, y), (BEND, y), (BEND, to_y), (left, to_y)]
    if y != to_y:  # down, then to the right
        return [(x + DROP, -HEIGHT / 2), (x + DROP, to_y), (left, to_y)]
    return [(right, y), (left, to_y)]


def box(x: float, y: float, width: float, height: float, rounding: float, colour: str) -> FancyBboxPatch:
    """Return a box with round corners; (x, y) is its lower left one."""
    style = f"round,pad=0,rounding_size={rounding}"
    return FancyBboxPatch((x, y), width, height, style, fc=colour, ec="#555555")


def draw(notebooks: dict[int, tuple[str, list[int]]], language: str) -> Figure:
    """Return the map as a figure. An arrow from notebook 5 to 13 has the id "arrow-5-13" in its file."""
    figure = Figure(figsize=(13.6, 4.9))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.75, 13.85), ylim=(-3.05, 2.1))
    axes.axis("off")
    for end, (_, needs) in notebooks.items():
        for start in needs:
            arrow = FancyArrowPatch(path=Line(route(start, end)), **ARROW)
            arrow.set_gid(f"arrow-{start}-{end}")
            axes.add_patch(arrow)
    for number, (name, _) in notebooks.items():
        x, y = PLACES[number]
        colour = COLOURS[next((path for path, members in PATHS.items() if number in members), "week")]
        axes.add_patch(box(x - WIDTH / 2, y - HEIGHT / 2, WIDTH, HEIGHT, 0.08, colour))
        axes.text(x, y + 0.1, str(number), ha="center", va="center", fontsize=10, fontweight="bold")
        axes.text(x, y - 0.11, name, ha="center", va="center", fontsize=8)
    for row, (path, words) in enumerate(WORDS[language].items()):
        y = 1.75 - 0.3 * row
        axes.add_patch(box(-0.5, y, 0.3, 0.18, 0.04, COLOURS[path]))
        axes.text(-0.08, y + 0.09, words, va="center", fontsize=9)
    return figure


def main() -> None:
    settings = {"svg.fonttype": "none", "svg.hashsalt": "map"}
    warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the browser has the Chinese font, not matplotlib
    with mpl.rc_context(settings):
        for folder, language in ((HERE, "en"), (HERE / "zh", "zh")):
            figure = draw(table(folder / "README.md"), language)
            figure.savefig(folder / "map.svg", metadata={"Date": None, "Creator": None}, facecolor="white")
            print(folder / "map.svg")


if __name__ == "__main__":
    main()
