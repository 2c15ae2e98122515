"""notebooks/map.svg: its arrows are the column "needs" of the README, its boxes the notebooks, in both languages."""

import importlib.util
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
spec = importlib.util.spec_from_file_location("make_map", FOLDER / "make_map.py")
make_map = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_map)
each_folder = pytest.mark.parametrize("folder", [FOLDER, FOLDER / "zh"], ids=["en", "zh"])


def arrows(text):
    return {(int(start), int(end)) for start, end in re.findall(r'id="arrow-(\d+)-(\d+)"', text)}


@each_folder
def test_the_saved_map_shows_the_table(folder):
    table, saved = make_map.table(folder / "README.md"), (folder / "map.svg").read_text(encoding="utf-8")
    assert list(table) == list(range(1, 17))
    assert arrows(saved) == {(start, end) for end, (_, needs) in table.items() for start in needs}
    for name, _ in table.values():
        assert f">{name}</text>" in saved.replace("&#39;", "'")


def test_both_languages_have_the_same_arrows_and_the_notebooks_name_them():
    english, chinese = (make_map.table(folder / "README.md") for folder in (FOLDER, FOLDER / "zh"))
    assert [needs for _, needs in english.values()] == [needs for _, needs in chinese.values()]
    for path in sorted(FOLDER.glob("[0-9]*.ipynb")):
        before = re.search(r"\*\*Before this:\*\*(.*?)\\n", path.read_text(encoding="utf-8"))[1]
        assert {*english[int(path.name[:2])][1]} <= {*map(int, re.findall(r"\((\d\d)_", before))}, path.name


@each_folder
def test_no_box_covers_another_and_all_are_in_the_picture(folder):
    places = list(make_map.PLACES.values())
    for i, (x, y) in enumerate(places):
        assert all(abs(x - a) > make_map.WIDTH or abs(y - b) > make_map.HEIGHT for a, b in places[:i])
    figure = make_map.draw(make_map.table(folder / "README.md"), "en" if folder == FOLDER else "zh")
    left, right = figure.axes[0].get_xlim()
    assert all(left < x - make_map.WIDTH / 2 and x + make_map.WIDTH / 2 < right for x, _ in places)
