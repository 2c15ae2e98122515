"""The house as design describes it: floors, lazy imports, documented names."""

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

# From the ground up; a file imports from lower floors, or from files named before it on its own floor.
FLOORS = [
    [
        "files",
        "grammar",
        "tales",
        "tasks",
        "download",
        "config",
        "places",
        "corpus",
        "runtime",
        "parallel",
    ],  # on the same floor
    ["ops.explicit", "ops.fused", "ops"],
    ["tokenizer_files", "bpe", "tokenizer", "prepared", "prepare", "data", "muon", "optim"],
    ["model", "quantize", "adapters", "baselines"],
    ["scores", "loss", "information", "decoding", "weights", "state", "checkpoint", "pretrained", "export"],
    ["objectives.objective", "objectives.next_token", "objectives.reverse", "objectives.conditional"],  # the same floor
    ["objectives.distill", "objectives.stretches", "objectives.masked", "objectives.blanks", "objectives.infilling"],
    ["objectives"],
    ["hardware", "costs", "plan", "probe", "plots", "judge", "report"],  # on the same floor
    ["trainer", "cli"],
]
ORDER = [name for floor in FLOORS for name in floor]


def modules():
    for path in sorted((PROJECT / "gpt").rglob("*.py")):
        name = ".".join(path.relative_to(PROJECT / "gpt").with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            yield name, path


MODULES = list(modules())


def imports(path):
    """The modules of gpt that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gpt":
            for name in (f"{node.module}.{alias.name}".removeprefix("gpt.") for alias in node.names):
                yield name if name in ORDER else name.rpartition(".")[0]


def test_every_module_has_its_floor():
    assert sorted(name for name, _ in MODULES) == sorted(ORDER)


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_nothing_imports_upward(name, path):
    for imported in imports(path):
        assert ORDER.index(imported) < ORDER.index(name), f"{name} imports {imported}, which stands above it"


def test_no_objective_has_a_branch_of_its_own_elsewhere():
    """The trainer, the model and the scripts know objectives by what they do; only config.py lists their names."""
    names = set(ObjectiveConfig.__annotations__["name"].__args__)
    for path in [*(PROJECT / "gpt").glob("*.py"), *(PROJECT / "scripts").glob("*.py")]:
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
        assert not (PROJECT / "gpt" / f"{name}.py").exists(), "a file would hide the name"
    with pytest.raises(AttributeError, match="no attribute 'GTPModel'"):
        gpt.GTPModel  # noqa: B018


@pytest.mark.parametrize("name", [name for name, _ in MODULES])
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


def test_files_stay_short_enough_to_be_one_idea():
    for name, path in MODULES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, name
