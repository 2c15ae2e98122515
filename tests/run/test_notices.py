"""Lines about a run that its config does not make obvious, against the learning rates and examples themselves."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
from conftest import corpus_of, pairs_of
from conversations import write_conversations
from runs import change, quiet, stop_at, train
from shard_folders import split_files

from gpt.checkpoint import RunFolder
from gpt.config import AdapterConfig, DataConfig, ObjectiveConfig, OptimConfig, TrainConfig
from gpt.exchange.models import create_objective, resolve_config
from gpt.optim import learning_rate
from gpt.run.notices import data_notices, length_notices, schedule_notices, stride_notices
from gpt.run.training import resume_run, start_run
from gpt.text.prepare import prepare_data
from gpt.token_files import load_data
from gpt.tokenizer import CharTokenizer

BEFORE = TrainConfig(max_steps=10, optim=OptimConfig(lr=1e-3, min_lr=1e-4, warmup_steps=3, decay_steps=10))


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 20)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


def changed(max_steps=10, **optim):
    return dataclasses.replace(BEFORE, max_steps=max_steps, optim=dataclasses.replace(BEFORE.optim, **optim))


STAYS = "at step 10, and from there on the learning rate stays at optim.min_lr 0.0001; --optim.decay_steps 45 extends"


@pytest.mark.parametrize(
    ("step", "after", "words"),
    [
        (10, changed(45, lr=5e-2), f"optim.lr has no effect: the decay ended {STAYS}"),
        (10, changed(45, lr=5e-2, schedule="linear"), "optim.lr and optim.schedule have no effect: the decay ended"),
        (10, changed(45), f"the decay ended {STAYS}"),
        (5, changed(45), f"the decay ends {STAYS}"),
        (5, changed(8), "ends at step 8, before the decay does at step 10: the learning rate ends at 0.00045;"),
        (10, changed(45, min_lr=5e-4), "the decay ended at step 10, and .* stays at optim.min_lr 0.0005"),
        (
            5,
            changed(schedule="constant", min_lr=0.0),
            "optim.min_lr has no effect: the learning rate is optim.lr 0.001",
        ),
        (10, changed(45, warmup_steps=20), "optim.decay_steps 10 lies within the warm-up of 20 steps: after it"),
        (10, changed(45, warmup_steps=90), "optim.warmup_steps 90 is longer than the run of 45 steps: the learning"),
        (5, changed(lr=5e-2), ""),
        (5, changed(warmup_steps=4), ""),
        (10, changed(45, lr=5e-2, decay_steps=45), ""),
        (10, changed(45, schedule="constant"), ""),
        (5, BEFORE, ""),
    ],
)
def test_a_changed_schedule_does_as_it_says_or_the_reason_is_given(step, after, words):
    notices = schedule_notices(after, step, BEFORE)
    assert len(notices) == bool(words)
    assert re.match(words, "".join(notices)) or words in "".join(notices)
    # independently: a setting is said to be idle exactly if the rates of the remaining steps do not depend on it
    idle = re.findall(r"optim\.(\w+)", "".join(notices).rpartition(" no effect: ")[0])
    rest = range(step, after.max_steps)
    for name in ("lr", "min_lr", "warmup_steps", "decay_steps", "schedule") if rest else ():
        old = getattr(BEFORE.optim, name)
        if old != getattr(after.optim, name) and (name != "lr" or old >= after.optim.min_lr):
            back = dataclasses.replace(after.optim, **{name: old})
            same = all(learning_rate(k, after.optim, 45) == learning_rate(k, back, 45) for k in rest)
            assert same == (name in idle), name


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            changed(4, warmup_steps=100),
            "warmup_steps 100 is longer than the run of 4 steps: .* ends at 4e-05 and",
        ),
        (changed(10, warmup_steps=10), ""),
        (changed(20, warmup_steps=10), "decay_steps 10 lies within the warm-up of 10 steps"),
        (BEFORE, ""),
    ],
)
def test_a_warm_up_that_never_ends_is_told_at_the_start(config, words):
    assert len(schedule_notices(config)) == bool(words)
    assert re.search(words, "".join(schedule_notices(config)))


def test_a_finished_run_says_that_nothing_is_left_to_change(tiny_config, tmp_path):
    """At max_steps, and ended by patience; a change of what still counts is no loss."""
    train(tiny_config, tmp_path / "whole")
    optim = OptimConfig(lr=0.3, min_lr=0.3, warmup_steps=0, schedule="constant", grad_clip=0.0)
    early = train(change(tiny_config, max_steps=60, eval_every=2, patience=1, optim=optim), tmp_path / "early")
    for name, way_out in (("whole", "--max_steps above 12 trains"), ("early", "--patience 0 trains")):
        lines, config = [], RunFolder(tmp_path / name).config()
        lower = change(config, optim=dataclasses.replace(config.optim, lr=0.4), sample_prompt="the wall")
        trainer = resume_run(tmp_path / name, lower, lines.append)
        said = f"sample_prompt and optim.lr have no effect: the run is finished; {way_out}"
        assert sum(said in line for line in lines) == 1
        trainer.train()
        lines.clear()
        resume_run(tmp_path / name, change(lower, device="cpu", max_steps=early.step + 9, patience=0), lines.append)
        assert not any("no effect: the run" in line for line in lines)


def test_a_run_prints_its_notices_once(tiny_config, tmp_path):
    lines = []
    optim = OptimConfig(warmup_steps=50)
    stop_at(start_run(change(tiny_config, optim=optim, eval_every=0), tmp_path / "run", lines.append), 1)
    stop_at(resume_run(tmp_path / "run", log=lines.append), 2)
    assert sum("is longer than the run" in line for line in lines) == 1


# --- lengths ----------------------------------------------------------------------------------------------------------


def notices_of(config, data):
    config, data = resolve_config(config, data)
    return length_notices(create_objective(config), config, data), config, data


def held(notice):
    """The context_length that is said to hold all."""
    return int(re.search(r"(\d+) (?:holds )?all", notice)[1])


@pytest.mark.parametrize("name", ["next_token", "masked", "infilling", "reverse"])
def test_the_context_that_is_advised_divides_no_document(tiny_config, tmp_path, name):
    texts = ["a b c " * n for n in range(1, 41)]
    prepare_data(corpus_of(tmp_path / "in", *texts), "char", tmp_path / "data", 0.2)
    data = DataConfig(str(tmp_path / "data"), "document")
    config = change(tiny_config, sample_prompt="", objective=ObjectiveConfig(name), data=data)
    (notice,), config, _ = notices_of(config, load_data(tmp_path / "data"))
    assert re.search(r"of 40 documents \(\d+\.\d%\) exceed model.context_length 16, so they are divided: ", notice)
    for length, n_examples in ((held(notice), 40), (held(notice) - 1, 41)):
        fitted = change(config, model_context_length=length, model_vocab_size=0)
        found, fitted, prepared = notices_of(fitted, load_data(tmp_path / "data"))
        examples = [create_objective(fitted).examples(fitted, prepared, s) for s in (prepared.train, prepared.val)]
        assert bool(found) == (n_examples > 40)
        if name in ("next_token", "reverse"):
            assert sum(map(len, examples)) == n_examples
        else:  # a rest of one token is no example
            longest = max(np.diff(part.spans).max() for part in examples)
            assert (longest == len(texts[-1])) == (n_examples == 40)


def test_pairs_whose_prompts_are_cut_are_counted(tiny_config, tmp_path):
    pairs = [("q" * n, "yes") for n in range(1, 201)]
    data = prepare_data(pairs_of(tmp_path / "in", pairs), "char", tmp_path / "data", 0.1)
    config = change(
        tiny_config, sample_prompt="", objective=ObjectiveConfig("sft"), data=DataConfig(str(data.folder), "document")
    )
    (notice,), config, data = notices_of(config, data)
    needed = np.array([1 + n + 3 for n in range(1, 201)])  # end-of-text, prompt, response
    n = (needed > 16).sum()
    assert notice.startswith(f"{n} of 200 pairs ({n / 200:.1%}) exceed model.context_length 16, so their prompts lose")
    most = int(re.search(r"context_length (\d+) holds 99% of them, 204 all", notice)[1])
    assert (needed <= most).mean() >= 0.99 > (needed <= most - 1).mean() - 0.005
    assert notices_of(change(config, model_context_length=204), data)[0] == []


def test_a_model_whose_context_is_fixed_gets_other_advice(tiny_config, tmp_path):
    """One with learned positions gets more of them, unless an adapter leaves them as they are."""
    pairs = [("on the wall " * n, "one") for n in range(1, 30)]
    data = prepare_data(pairs_of(tmp_path / "in", pairs), "char", tmp_path / "data", 0.2)
    own = DataConfig(str(data.folder))
    sft = {"objective": ObjectiveConfig("sft"), "data": dataclasses.replace(own, packing="document")}
    for position in ("learned", "rope"):
        base = tmp_path / position
        stop_at(start_run(change(tiny_config, data=own, model_position=position), base, quiet), 1)
        config = change(tiny_config, init_from=str(base), model_position=position, **sft)
        advice = "has no longer context, so shorten them or leave them out"
        for adapter in ("none", "lora"):
            (notice,), _, _ = notices_of(change(config, adapter=AdapterConfig(adapter)), data)
            assert notice.endswith(advice) == (position == "rope" or adapter == "lora")
        if position == "learned":
            assert notices_of(change(config, model_context_length=held(notices_of(config, data)[0][0])), data)[0] == []


def test_packed_examples_have_no_documents_to_divide(tiny_config, prepared):
    assert notices_of(tiny_config, prepared)[0] == []


def test_a_stride_beyond_the_context_is_named(tiny_config):
    """The tokens that no example holds, counted one by one."""
    for stride in (0, 1, 16, 17, 40):
        seen = {start + i for start in range(0, 4000, stride or 16) for i in range(16)}
        config = change(tiny_config, data=dataclasses.replace(tiny_config.data, stride=stride))
        skipped = (stride or 16) - sum(1600 <= i < 1600 + (stride or 16) for i in seen)
        said = f"the {skipped} tokens between two examples are skipped"
        expected = [f"data.stride {stride} exceeds model.context_length 16: {said}"] if skipped else []
        assert stride_notices(config) == expected


def test_packing_says_how_much_padding_it_saves(tiny_config, tmp_path):
    """The padding of all couples of examples, alone and in rows, counted one by one."""
    talks = [[("a" * (1 + n % 5), False), ("b" * (1 + n % 3), True)] for n in range(30)]
    data = write_conversations(tmp_path / "data", CharTokenizer("ab"), talks, talks[:5])
    changes = {"batch_size": 2, "max_steps": 1, "objective": ObjectiveConfig("sft"), "sample_prompt": ""}
    lines, shares = [], []
    for packing in ("document", "packed"):
        config = change(tiny_config, data=DataConfig(str(data.folder), packing), **changes)
        examples = start_run(config, tmp_path / packing, lines.append).examples
        couples = list(itertools.product(range(len(examples)), repeat=2))
        counted = [sum(examples.batch([i])[0].numel() for i in couple) for couple in couples]
        positions = [examples.batch(couple)[0].numel() for couple in couples]
        shares.append(1 - sum(counted) / sum(positions))
    (line,) = [line for line in lines if line.startswith("packing")]
    before, after = (f"{share:.0%}" for share in shares)
    assert line == f"packing: {len(examples)} rows of 16 hold 30 conversations; padding {before} → {after}"
    assert shares[1] < 0.1 < shares[0]


def test_large_data_of_several_files_say_that_they_are_verified_later(prepared, tmp_path, monkeypatch):
    folder = split_files(prepared.folder, tmp_path / "data", 1000)
    assert data_notices(load_data(folder, verify=True)) == []
    assert data_notices(load_data(prepared.folder, verify=True)) == []
    monkeypatch.setattr("gpt.system.shards.VERIFIED_AT_ONCE", 2000)
    n_files = len([*folder.glob("train-*.bin")])
    (line,) = data_notices(load_data(folder, verify=True))
    assert line == f"{folder}: {n_files} token files, 0.0 GB, are verified when they are first read"
    assert data_notices(load_data(folder)) == []
