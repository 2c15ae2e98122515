"""The ladder: each rung changes what it says and no more, a run repeats, and the tables are right by hand."""

import dataclasses
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "benchmarks"))  # as python benchmarks/ladder.py does

import ladder  # noqa: E402

from gpt.config import TrainConfig, from_dict, load_config, read_toml  # noqa: E402
from gpt.model import TransformerBlock  # noqa: E402
from gpt.run.settings import differences  # noqa: E402

CONFIGS = {rung: from_dict(TrainConfig, read_toml(ladder.CONFIGS / f"{rung}.toml")) for rung in ladder.RUNGS}


def test_the_rungs_are_the_configs():
    assert [path.stem for path in sorted(ladder.CONFIGS.glob("*.toml"))] == list(ladder.RUNGS)


def test_the_first_rung_is_gpt2s_block():
    first, gpt2 = CONFIGS[ladder.FIRST].model, load_config(PROJECT / "configs/gpt2_124m.toml").model
    sizes = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "drop_rate")
    assert dataclasses.replace(gpt2, **{name: getattr(first, name) for name in sizes}, qkv_bias=False) == first


@pytest.mark.parametrize(("before", "after"), list(pairwise(ladder.RUNGS)))
def test_a_rung_changes_the_lines_that_it_names(before, after):
    changed = {name.rpartition(".")[2]: new for name, (_, new) in differences(CONFIGS[before], CONFIGS[after]).items()}
    assert changed == tomllib.loads(ladder.RUNGS[after].replace(", ", "\n"))


def test_another_feed_forward_layer_has_as_many_parameters():
    shapes = [dataclasses.replace(CONFIGS[rung].model, vocab_size=65) for rung in ("03_rope", "04_swiglu", "09_relu2")]
    gelu, swiglu, relu2 = (sum(p.numel() for p in TransformerBlock(shape).ff.parameters()) for shape in shapes)
    assert gelu == swiglu == relu2


# --- measuring --------------------------------------------------------------------------------------------------------


def test_a_run_repeats_by_rung_seed_and_steps(prepared, monkeypatch):
    monkeypatch.setattr(ladder, "CURVE_BATCHES", 1)
    one, again, other = (ladder.train("09_relu2", prepared.folder, seed, 2) for seed in (1, 1, 2))
    assert one == again != other
    assert [step for step, _ in one["curve"]] == [1, 2]


def test_what_is_known_is_not_measured_again(tmp_path, monkeypatch, prepared):
    trained = []

    def train(rung, data, seed, steps):
        trained.append((rung, seed, steps))
        return {"seed": seed, "steps": steps, "loss": 2.0, "curve": []}

    milliseconds = dict.fromkeys(ladder.RUNGS, 20.0) | {"03_rope": 25.0}
    timings = {rung: {"parameters": 1, "ms": ms} for rung, ms in milliseconds.items()}
    monkeypatch.setattr(ladder, "train", train)
    monkeypatch.setattr(ladder, "time_steps", lambda data, rounds: timings)
    texts = {"bottles": (str(prepared.folder), [])}
    ladder.measure(texts, [1], tmp_path, ladder.Results(tmp_path / "found"), 100, 1)
    assert len(trained) == len(ladder.RUNGS) + 1, "the rungs as fast as the first need no second run"
    assert ("03_rope", 1, 80) in trained, "a step that takes 25 ms instead of 20"
    trained.clear()
    monkeypatch.delattr(ladder, "time_steps")
    ladder.measure(texts, [1, 2], tmp_path, ladder.Results(tmp_path / "found"), 100, 1)
    assert {seed for _, seed, _ in trained} == {2}


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_table_by_hand(tmp_path):
    results = ladder.Results(tmp_path / "found")
    losses = {  # by seed
        "00_gpt2": [2.50, 2.54, 2.52],
        "01_rms_norm": [2.52, 2.50, 2.54],  # falls by -0.02, 0.04, -0.02: nothing
        "02_no_bias": [2.42, 2.42, 2.42],  # falls by 0.10, 0.08, 0.12
    }
    for rung in ladder.RUNGS:
        results.add(text="t", rung=rung, parameters=1234, ms=20.0)
        for seed, loss in enumerate(losses.get(rung, []), 1):
            results.add(text="t", rung=rung, seed=seed, steps=50, loss=loss, curve=[])
    rows = [[cell.strip() for cell in line.split("|")[3:-1]] for line in ladder.table("t", results, 50)[2:]]
    assert rows[0] == ["1,234", "20.0", "2.520 ± 0.020", "", "2.520 ± 0.020", "", "50"]
    assert rows[1][2:4] == ["2.520 ± 0.020", "(0.000 ± 0.035)"]
    assert rows[2][2:4] == ["2.420 ± 0.000", "0.100 ± 0.020"]
    assert rows[3][2:4] == ["", ""], "not trained yet"


def test_the_page_shows_the_results():
    results, page = ladder.Results(ladder.RESULTS), ladder.PAGE.read_text(encoding="utf-8")
    for text in ladder.TEXTS:
        if (text, ladder.FIRST) in results.found:
            assert "\n".join(ladder.table(text, results, ladder.STEPS)) in page
