"""The commands of `make assistant`, on a tiny model and a few conversations: none of them can rot."""

import contextlib
import io
import re

import pytest

from scripts import SCRIPTS, run_script

ROOT = SCRIPTS.parent
TINY = "--model.emb_dim 16 --model.n_heads 2 --model.n_layers 1"
FEW = "--max_steps 2 --batch_size 2 --eval_batches 1"


def commands(target):
    """The scripts that a target of the Makefile runs, with their arguments."""
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n(?:  .*\n)*)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    return re.findall(r"scripts/(\w+)\.py (.*)", recipe.replace("\\\n", ""))


def smaller(name, arguments):
    """A command with less to do."""
    arguments = arguments.replace("configs/", f"{ROOT}/configs/")
    arguments = re.sub(r"--input (\S*requests):\d+", r"--input \1:60", arguments)
    if "grpo.toml" in arguments:
        return f"{name} {arguments} {FEW} --objective.group_size 2"
    return f"{name} {arguments} {({'train': FEW, 'evaluate': '--samples 4'}).get(name, '')}"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What each command prints, from the preparation to the answer."""
    folder = tmp_path_factory.mktemp("assistant")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = "--tokenizer bpe:2048 --val_fraction 0.1 --out data/tales"
        assert run_script(f"prepare_data --input tales:200 {options}") == 0
        assert run_script(f"train --config {ROOT}/configs/tales.toml --run tales-001 {FEW} {TINY}") == 0
        found = []
        targets = ("data/requests/meta.json", "data/single_requests/meta.json", "assistant")
        for name, arguments in [command for target in targets for command in commands(target)]:
            with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")) as out:
                assert run_script(smaller(name, arguments)) == 0
                out.seek(0)
                found.append((name, out.read()))
        yield found


def test_each_command_runs(outputs):
    names = [name for name, _ in outputs]
    assert names == ["prepare_data"] * 2 + ["train", "evaluate"] * 2 + ["chat"]


def test_the_runs_are_judged_by_requests(outputs):
    for name, out in outputs:
        if name == "evaluate":
            assert re.search(r"\n4 requests, none in the training data +greedy +temperature 1\nobeyed +0\.0%", out)
            assert re.search(r"\nuser +\w.* tale.*\nassistant ", out)
