"""Committed results of the benchmark, a JSON file for each kind of machine, and the tables of docs/speed.md.

A file has the machine, its rates (FLOP/s and bytes/s), and for each case the date, the versions measured, and for each
contender the median, lowest and highest seconds of its rounds, the units (tokens or bytes) of one run and the peak
memory in MB. A case measured again replaces its old figures, all of them.
"""

import datetime
import importlib.metadata
import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.cases import CASES
from gpt.system.files import write_text

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / "benchmarks" / "results"
PAGE = PROJECT / "docs" / "speed.md"
MIN_ROUNDS = 5  # of a figure that is committed
RATES = ("matmul", "onednn", "bfloat16", "bandwidth")
FIGURES = ("seconds", "lowest", "highest", "peak_mb")  # written with four digits
PACKAGES = {"PyTorch": "torch", "transformers": "transformers", "tiktoken": "tiktoken"}
OTHER = "transformers tuned"  # what a ratio compares with, unless the row has it in its own precision
ROWS = {  # precision -> the contenders of a row's four columns; a ratio compares the first with the third
    "": ("gpt", "transformers", OTHER, "plain"),
    "compiled": ("gpt compiled", None, None, None),
    "bfloat16": ("gpt bfloat16", None, "transformers bfloat16 tuned", None),
    "bfloat16, compiled": ("gpt bfloat16 compiled", None, "transformers bfloat16 tuned", None),
    "int8": ("gpt int8", None, None, None),
    "int8, compiled": ("gpt int8 compiled", None, None, None),
}
HEAD = ("", "this project", "transformers", "transformers, same settings", "plain GPT", "ratio", "rounds")


# --- files ------------------------------------------------------------------------------------------------------------


def slug(machine: dict) -> str:
    """Return the name of a kind of machine: all of its description, as a file name."""
    parts = [machine["cpu"], machine["family"], machine["model"], machine["capability"]]
    parts += [f"{name} {value}" for name, value in sorted(machine["limits"].items())]
    parts += [f"{machine['cores']} cores" if machine["cores"] else None, f"{machine['threads']} threads"]
    words = " ".join(str(part) for part in parts if part is not None)
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def complete(rows: list[dict]) -> list[str]:
    """Return the cases of which each contender that did not fail has MIN_ROUNDS rounds, and at least one has."""
    rounds: dict[str, list[int]] = {}
    for row in (row for row in rows if "problem" not in row):
        rounds.setdefault(row["case"], []).append(row["rounds"])
    return [name for name, found in rounds.items() if min(found) >= MIN_ROUNDS]


def merge(old: dict, rows: list[dict], machine: dict, titles: dict[str, str], date: str, versions: dict) -> dict:
    """Return the content of a file with the complete cases among the benchmark's rows merged into it.

    A case replaces its old figures whole. Contenders that failed are not in it.
    """
    cases = dict(old.get("cases", {}))
    for name in complete(rows):
        good = [row for row in rows if row["case"] == name and "problem" not in row]
        contenders = {row["contender"]: _figures(row) for row in good}
        cases[name] = {"title": titles[name], "date": date, "versions": versions, "contenders": contenders}
    rates = {key: float(f"{machine[key]:.4g}") for key in RATES}
    return {"machine": machine["machine"], "rates": rates, "cases": cases}


def _figures(row: dict) -> dict:
    return {key: float(f"{row[key]:.4g}") for key in FIGURES} | {"units": row["units"], "rounds": row["rounds"]}


def record(
    rows: list[dict],
    machine: dict,
    titles: dict[str, str],
    folder: Path,
    page: Path,
    log: Callable[[str], None] = print,
) -> None:
    """Merge rows of the benchmark into the file of this machine's kind, and redraw the page.

    Nothing is recorded of a case that Ctrl-C cut short, nor if the machine's rates are not known.
    """
    if "problem" in machine:
        log(f"nothing is recorded, since the machine is not known: {machine['problem']}")
        return
    path = folder / f"{slug(machine['machine'])}.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    new = merge(old, rows, machine, titles, date, _versions())
    if skipped := {row["case"] for row in rows} - set(complete(rows)):
        log(f"not recorded, for lack of {MIN_ROUNDS} rounds: {', '.join(sorted(skipped))}")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(new, indent=1, sort_keys=True) + "\n")
    redraw(folder, page)
    log(f"{path} and {page} are written")


def _versions() -> dict[str, str]:
    found = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# --- the page ---------------------------------------------------------------------------------------------------------


def title(machine: dict) -> str:
    """Return a machine in words."""
    numbers = f" (family {machine['family']}, model {machine['model']})" if machine["family"] is not None else ""
    cores = f" on {machine['cores']} cores" if machine["cores"] else ""
    instructions = f"{machine['capability']} {'with' if machine['bfloat16'] else 'without'} bfloat16"
    limits = [f"{name}={value}" for name, value in sorted(machine["limits"].items())]
    return ", ".join([machine["cpu"] + numbers, instructions, f"{machine['threads']} threads{cores}", *limits])


def rates_line(rates: dict) -> str:
    """Return the machine's rates in words."""
    matmul, onednn, half, read = (rates[key] / 1e9 for key in RATES)
    each = f"float32 {max(matmul, onednn):,.0f} GFLOP/s (PyTorch's {matmul:,.0f}, oneDNN's {onednn:,.0f})"
    each += f", bfloat16 {half:,.0f}" if half else ""
    return f"memory read at {read:,.1f} GB/s, matrix products in {each}"


def tables(folder: Path = FOLDER) -> list[str]:
    """Return the lines of the page that show all files of a folder."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    lines: list[str] = []
    for found in (found for found in files if found["cases"]):
        lines += ["", *_section(found)]
    return [*lines, ""] if lines else ["No results are recorded yet."]


def redraw(folder: Path = FOLDER, page: Path = PAGE) -> None:
    """Write the tables of a folder's files into the page."""
    from benchmarks.objectives import write  # which brings PyTorch along

    write(page, {"results": tables(folder)})


def _section(found: dict) -> list[str]:
    """Return the heading, the rates and the rows of one kind of machine."""
    names = [name for name in CASES if name in found["cases"]]
    cases = [found["cases"][name] for name in names]
    dates = sorted({case["date"] for case in cases})
    rates = rates_line(found["rates"])
    versions = sorted({f"{name} {number}" for case in cases for name, number in case["versions"].items()})
    lines = [
        f"### {title(found['machine'])}",
        "",
        f"Measured on {' to '.join(dict.fromkeys((dates[0], dates[-1])))}: {rates}. {', '.join(versions)}.",
        "",
        f"| {' | '.join(HEAD)} |",
        f"|{'---|' * len(HEAD)}",
    ]
    for name, case in zip(names, cases, strict=True):
        if name != "prepare":
            lines += _rows(name, case)
    if "prepare" in names:
        lines += ["", _preparation(found["cases"]["prepare"])]
    return lines


def _rows(name: str, case: dict) -> list[str]:
    lines = []
    for precision, columns in ROWS.items():
        known = [case["contenders"].get(contender) for contender in columns]
        if known[0] or (not precision and any(known)):
            label = f"{case['title']}, {precision}" if precision else case["title"]
            cells = [label, *(_cell(figures, name.startswith("train")) for figures in known)]
            cells += [ratio(known[0], known[2] or case["contenders"].get(OTHER)), _rounds(known)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _preparation(case: dict) -> str:
    ours, other = (case["contenders"].get(name) for name in ("gpt", "tiktoken"))
    each = [
        f"{name} {_rate(figures, 1e6)} MB/s"
        for name, figures in (("this project", ours), ("tiktoken on one thread", other))
        if figures
    ]
    compared = f"; ratio {ratio(ours, other)}" if ours and other else ""
    title = case["title"][0].upper() + case["title"][1:]
    return f"{title}: {', '.join(each)}{compared}; {_rounds([ours, other])} rounds."


def ratio(ours: dict | None, other: dict | None) -> str:
    """Return how many times as fast the first is, by the medians; "" if one of them was not measured."""
    if not ours or not other:
        return ""
    return f"**{ours['units'] / ours['seconds'] * other['seconds'] / other['units']:.2f} x**"


def _cell(figures: dict | None, with_memory: bool) -> str:
    if not figures:
        return ""
    return _rate(figures) + (f", {figures['peak_mb'] / 1000:.1f} GB" if with_memory else "")


def _rate(figures: dict, unit: float = 1.0) -> str:
    """Return "median (lowest–highest)" of units per second."""
    middle, low, high = (figures["units"] / figures[key] / unit for key in ("seconds", "highest", "lowest"))
    form = ",.0f" if middle >= 100 else ".1f"
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


def _rounds(known: list[dict | None]) -> str:
    return str(min(figures["rounds"] for figures in known if figures))
