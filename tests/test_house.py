"""The house as CONTRIBUTING.md describes it: a closed core, wings in one order, documented names, short files."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gpt
from gpt.config import ObjectiveConfig

PROJECT = Path(gpt.__file__).parent.parent
PACKAGE = PROJECT / "gpt"

GROUND = ["system", "ops"]  # what the core stands on
CORE = [
    "config",
    "tokenizer",
    "token_files",
    "data",
    "layers",
    "model",
    "loss",
    "optim",
    "checkpoint",
    "generation",
    "trainer",
]
WINGS = [
    "text",
    "variants",
    "objectives",
    "exchange",
    "evaluation",
    "planning",
    "run",
    "serve",
]  # each uses those before it


def modules():
    """Each module of gpt by its dotted name below gpt, with its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            yield name, path


MODULES = dict(modules())


def imports(path):
    """The modules of gpt that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gpt":
            for alias in node.names:
                name = f"{node.module}.{alias.name}".removeprefix("gpt.")
                yield name if name in MODULES else name.rpartition(".")[0]
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("gpt.") for a in node.names if a.name.startswith("gpt."))


def room(name):
    """The folder of a module, or its own name where it is a file of the core."""
    return name.split(".")[0]


def test_the_folders_and_the_core_are_those_of_the_map():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} <= {*GROUND, *WINGS}
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", *CORE}


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_upward(name):
    order = [*GROUND, *CORE, *WINGS]
    for imported in imports(MODULES[name]):
        allowed = order[: order.index(room(name)) + (room(name) not in CORE)]
        assert room(imported) in allowed, f"{name} imports {imported}"


def test_nothing_imports_in_a_circle():
    graph = {name: set(imports(path)) - {name} for name, path in MODULES.items()}
    while leaves := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph


def test_no_objective_has_a_branch_of_its_own_elsewhere():
    """The trainer, the model and the scripts know objectives by what they do; only config.py lists their names."""
    names = set(ObjectiveConfig.__annotations__["name"].__args__)
    for path in [*PACKAGE.glob("*.py"), *(PROJECT / "scripts").glob("*.py")]:
        found = names & set(re.findall(r"[\"']([a-z_]+)[\"']", path.read_text(encoding="utf-8")))
        assert path.name == "config.py" or not found, f"{path.name} names {found}"


def test_import_gpt_is_lazy():
    program = "import sys, gpt\nfor name in ('GPTConfig', 'GPTModel'):\n    print('torch' in sys.modules)\n"
    program += "    getattr(gpt, name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]


def test_every_exported_name_is_there():
    assert {"GPT_CONFIG_124M", "GPTModel", "MultiHeadAttention", "GELU", "FeedForward", "LayerNorm"} <= set(dir(gpt))
    for name in gpt.__all__:
        assert getattr(gpt, name) is not None
        assert not (PACKAGE / f"{name}.py").exists(), "a file would hide the name"
    with pytest.raises(AttributeError, match="no attribute 'GTPModel'"):
        gpt.GTPModel  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name):
    module = importlib.import_module(f"gpt.{name}")
    assert module.__doc__
    for kind, thing in inspect.getmembers(module, lambda x: inspect.isclass(x) or inspect.isfunction(x)):
        if thing.__module__ != module.__name__ or kind.startswith("_"):
            continue
        assert thing.__doc__, f"gpt.{name}.{kind} has no docstring"
        if inspect.isclass(thing):
            for method, function in vars(thing).items():
                if inspect.isfunction(function) and not method.startswith("_") and method != "forward":
                    assert function.__doc__ or kind == "Tokenizer", f"{kind}.{method} has no docstring"


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_core_is_read_in_an_afternoon():
    files = [*(PACKAGE / f"{name}.py" for name in CORE), *(PACKAGE / "ops").glob("*.py")]
    assert sum(map(lines, files)) <= 2750
    assert max(map(lines, files)) <= 350


def test_a_file_of_a_wing_is_one_idea():
    for name, path in MODULES.items():
        assert lines(path) <= 400, name


def test_functions_are_short():
    """A function has at most 60 lines, unless it is a table."""
    for path in [*MODULES.values(), *(PROJECT / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_the_trainer_brings_the_core_alone():
    """And what it stands on: neither a wing nor the model, which the objective holds."""
    program = "import sys, gpt.trainer; print(*(name for name in sys.modules if name.startswith('gpt.')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    brought = {room(name.removeprefix("gpt.")) for name in done.stdout.split()}
    assert brought == {*GROUND, *CORE} - {"layers", "model", "generation"}


def test_scripts_are_doors():
    for path in (PROJECT / "scripts").glob("*.py"):
        assert lines(path) <= 80, path.name
