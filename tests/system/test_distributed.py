"""Several processes against one: the same losses, the same runs, however they are started, stopped and killed."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import TEXT, corpus_of
from runs import assert_same_run, change, train
from test_objectives import config_of, shelf  # noqa: F401 - a fixture

from gpt.checkpoint import RunFolder
from gpt.config import AdapterConfig, DataConfig, GPTConfig, OptimConfig, TrainConfig, to_toml
from gpt.run.plots import read_metrics
from gpt.run.training import resume_run
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.text.prepare import prepare_data

PROJECT = Path(__file__).parents[2]
STEPS = 50
SIZES = (2, 4)
WHOLE = ("packed", "documents")  # by two processes and by four; what else there is, by two
SHARES = list(itertools.product(range(1, 20), (1, 2, 3, 8), (1, 2, 3, 5)))


def start_together(n, *arguments):
    """Start n processes as torchrun starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--", *map(str, arguments)]
    path = f"{PROJECT}{os.pathsep}{PROJECT / 'tests'}"
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip


def together(n, jobs, folder):
    """Have n processes do jobs (tests/together.py); what each of them was told, by job and rank."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    process = start_together(n, PROJECT / "tests" / "together.py", folder / "jobs.json")
    words, _ = process.communicate(timeout=240)
    assert process.returncode == 0, words
    return [
        [(folder / f"told-{number}-rank-{rank}.txt").read_text() for rank in range(n)] for number in range(len(jobs))
    ]


def losses(run):
    """Training and validation losses by row, and what else is measured."""
    columns = read_metrics(run / "metrics.csv")
    return {name: np.array(column) for name, column in columns.items() if "loss" in name or name == "tokens_seen"}


def assert_same_losses(run, truth):
    a, b = losses(run), losses(truth)
    assert np.isfinite(b["train_loss"]).sum() >= 3
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-5, err_msg=f"{name} of {run.name}")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Prepared documents of 5 to 90 characters."""
    folder = tmp_path_factory.mktemp("documents")
    lines = [line[: 5 + 37 * n % 86] for n, line in enumerate(TEXT.splitlines() * 3)]
    return prepare_data(corpus_of(folder / "texts", *lines), "char", folder / "data").folder


def cases(documents, shelf):  # noqa: F811
    """Configs by name, each with dropout 0 in float32."""
    plain = TrainConfig(
        seed=5,
        max_steps=STEPS,
        batch_size=8,
        log_every=1,
        eval_every=25,
        sample_every=25,
        device="cpu",
        model=GPTConfig(
            vocab_size=0, context_length=48, emb_dim=32, n_heads=4, n_layers=2, drop_rate=0.0, init="gpt2",
            tie_embeddings=True, qkv_bias=True,
        ),
        data=DataConfig(path=str(documents)),
        optim=OptimConfig(lr=3e-3, min_lr=3e-4, warmup_steps=10),
    )  # fmt: skip
    by_document = dataclasses.replace(
        plain,
        batch_size=3,
        grad_accum_steps=4,
        data=DataConfig(path=str(documents), packing="document"),
        optim=OptimConfig(name="muon", lr=3e-3, min_lr=3e-4, warmup_steps=10),
    )
    found = {
        "packed": plain,
        "documents": by_document,  # unequal counts, in passes, by Muon
        "uneven": dataclasses.replace(by_document, batch_size=5, grad_accum_steps=3, optim=plain.optim, max_steps=20),
        "untied": change(
            plain, model_tie_embeddings=False, model_implementation="reference", max_steps=6, eval_every=3
        ),
        "lstm": change(plain, model_backbone="lstm", max_steps=6, eval_every=3),
    }
    for name in ("reverse", "masked", "infilling", "sft", "distill"):
        found[name] = config_of(name, shelf, model_drop_rate=0.0, log_every=1)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory, documents, shelf):  # noqa: F811
    """A folder of runs, by one process and by several: ONE/NAME, ddp-2/NAME, ..."""
    folder = tmp_path_factory.mktemp("together")
    configs = cases(documents, shelf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)
        for name, config in configs.items():
            train(config, folder / "one" / name)
        lora = dataclasses.replace(
            configs["packed"], max_steps=6, eval_every=3, init_from=str(folder / "one" / "packed"),
            adapter=AdapterConfig(name="lora"), model=GPTConfig(vocab_size=0, drop_rate=0.0),
        )  # fmt: skip
        train(lora, folder / "one" / "lora")
    dropped = change(configs["documents"], model_drop_rate=0.1, max_steps=8, eval_every=5)
    for n in SIZES:
        jobs = []
        for kind in ("ddp", "fsdp"):
            place = folder / f"{kind}-{n}"
            for name, config in {**configs, "lora": lora}.items():
                if n == 4 and name not in WHOLE:
                    continue
                jobs.append({"run": str(place / name), "config": as_dict(config, parallel=kind)})
            for name, stops in {"half": [25], "dropped": [], "dropped-stopped": [3]}.items():
                config = configs["packed"] if name == "half" else dropped
                job = {"run": str(place / name), "config": as_dict(config, parallel=kind)}
                ends = [*stops, None] if name != "half" else stops
                jobs += [{**job, "stop_at": end, "resume": number > 0} for number, end in enumerate(ends)]
            if n == 4:  # what two have begun
                shutil.copytree(folder / f"{kind}-2" / "half", place / "half-of-two")
                config = as_dict(configs["packed"], parallel="fsdp" if kind == "ddp" else "ddp")
                jobs.append({"run": str(place / "half-of-two"), "config": config, "resume": True})
        told = together(n, jobs, folder / f"jobs-{n}")
        (folder / f"told-{n}.json").write_text(
            json.dumps({job["run"]: words for job, words in zip(jobs, told, strict=True)})
        )
    return folder


def as_dict(config, **changes):
    return {**dataclasses.asdict(config), **changes}


OTHERS = ("uneven", "untied", "lstm", "lora", "reverse", "masked", "infilling", "sft", "distill")


def test_several_processes_are_as_one(runs, tmp_path):
    """All in one test, since it is the runs that take the time, and two workers would each make them."""
    for by in (f"{kind}-{n}" for kind in ("ddp", "fsdp") for n in SIZES):
        for name in WHOLE + OTHERS * by.endswith("2"):
            assert_same_losses(runs / by / name, runs / "one" / name)
        check_what_is_saved(runs, by)
        check_that_one_goes_on(runs, by, tmp_path / by)
        check_that_a_stopped_run_goes_on_bit_for_bit(runs, by)
    for kind in ("ddp", "fsdp"):  # begun by two, whose model was shared out where now each has all of it, or otherwise
        assert_same_losses(runs / f"{kind}-4" / "half-of-two", runs / "one" / "packed")
    for n in SIZES:
        check_that_gradients_are_added_up_once_a_step(runs, n)


def check_that_gradients_are_added_up_once_a_step(runs, n):
    """Of 12 windows in passes of 3, two processes make two passes each, and four one."""
    told = json.loads((runs / f"told-{n}.json").read_text())
    assert set(re.findall(r"added up \d+ times", " ".join(told[str(runs / f"ddp-{n}" / "documents")]))) == {
        f"added up {STEPS} times"
    }


def check_what_is_saved(runs, by):
    """A run like any other: whole tensors, by the same names."""
    one, several = (RunFolder(runs / place / "documents").load("last") for place in ("one", by))
    assert one.weights.keys() == several.weights.keys()
    for name, tensor in one.weights.items():
        torch.testing.assert_close(several.weights[name], tensor, rtol=0, atol=1e-4)
    means, found = (c.training_state["optimizer"]["state"] for c in (one, several))
    assert {k: v.keys() for k, v in means.items()} == {k: v.keys() for k, v in found.items()}
    assert all(type(t) is torch.Tensor for state in found.values() for t in state.values())
    assert len(several.training_state["random"]) == int(by[-1])


def check_that_one_goes_on(runs, by, tmp_path):
    shutil.copytree(runs / by / "half", tmp_path / "run")
    words = []
    trainer = resume_run(tmp_path / "run", log=words.append)
    assert trainer.step == 25
    trainer.draw = lambda: None
    trainer.train()
    assert f"processes 1 in place of {by[-1]}: the last digits of what follows may differ" in words
    assert_same_losses(tmp_path / "run", runs / "one" / "packed")


def check_that_a_stopped_run_goes_on_bit_for_bit(runs, by):
    """With dropout, whose draws are each process's own."""
    assert_same_run(runs / by / "dropped-stopped", runs / by / "dropped")
    one = losses(runs / by / "dropped")["train_loss"]
    assert not np.allclose(one[1:], losses(runs / "one" / "documents")["train_loss"][1 : len(one)], atol=1e-4)


def test_processes_that_differ_are_refused(documents, tmp_path):
    """Another config, another token file under the same name, too few windows: all are told, none waits."""
    config = TrainConfig(
        max_steps=2, device="cpu", data=DataConfig(path="data"),
        model=GPTConfig(vocab_size=0, context_length=16, emb_dim=16, n_heads=2, n_layers=1),
    )  # fmt: skip
    for number, words in enumerate(("to be or not to be. " * 30, "to be or not to eb. " * 30)):
        (tmp_path / f"place-{number}").mkdir()
        prepare_data(corpus_of(tmp_path / f"texts-{number}", words), "char", tmp_path / f"place-{number}" / "data")
    here, there = ({"folder": str(tmp_path / f"place-{number}")} for number in (0, 1))
    jobs = [
        {"config": as_dict(config), "by_rank": [here, there]},
        {"config": as_dict(config), "by_rank": [here, {**here, "config": {"seed": 8}}]},
        {"config": as_dict(config, batch_size=1), "by_rank": [here, here]},
        {"config": as_dict(config), "by_rank": [here, here]},
        {"config": as_dict(config), "by_rank": [here, here]},  # the run is there already
    ]
    runs = ["data", "config", "windows", "good", "good"]
    told = together(2, [{**job, "run": str(tmp_path / run)} for run, job in zip(runs, jobs, strict=True)], tmp_path)
    for words in told[:3]:
        assert len(set(words)) == 1  # the same for both
    assert re.match(r"ValueError: rank 1 has train tokens of SHA-256 '\w{64}', and rank 0 '\w{64}': ", told[0][0])
    assert told[1][0].startswith("ValueError: rank 1 has seed 8, and rank 0 1337: all processes need the same config")
    assert told[2][0].startswith(
        "ValueError: a step has 1 windows (batch_size x grad_accum_steps), which 2 processes cannot"
    )
    assert told[3][0].startswith("step 2, loss ")
    assert "has a checkpoint" in told[4][0]
    assert sorted(path.name for path in tmp_path.iterdir() if (path / "config.toml").exists()) == ["good"]


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "rank"), [("ddp", 1), ("fsdp", 0)])
def test_a_killed_process_ends_the_others_and_is_named(documents, shelf, tmp_path, kind, rank):  # noqa: F811
    run = tmp_path / "run"
    arguments = ["--config", tmp_path / "run.toml", "--run", run, "--parallel", kind, "--max_steps", 10**6]
    endless = dataclasses.replace(cases(documents, shelf)["packed"], save_every=5, eval_every=10**6)
    (tmp_path / "run.toml").write_text(to_toml(endless))
    process = start_together(2, PROJECT / "scripts" / "train.py", *arguments)
    try:
        wait_until(lambda: (run / "checkpoints" / "last").exists())
        (victim,) = (p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == str(rank))
        victim.kill()
        start = time.monotonic()
        words, _ = process.communicate(timeout=30)
        assert time.monotonic() - start < 30
    finally:
        for left in psutil.Process(process.pid).children() if process.poll() is None else ():
            left.kill()
        process.kill()
    assert process.returncode == 1
    assert re.search(rf"^rank {rank} \(process {victim.pid} on .*\) is gone: all end\. With --resume", words, re.M)
    step = resume_run(run, log=lambda line: None).step
    assert step >= 5


def wait_until(condition, seconds=60):
    for _ in range(10 * seconds):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


def test_a_mistake_of_all_is_told_once():
    process = start_together(2, PROJECT / "scripts" / "train.py", "--config", "configs/story.toml", "--max_stepz", "3")
    words, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert words.count("error: unknown option --max_stepz: did you mean --max_steps?") == 1


# --- alone ----------------------------------------------------------------------------------------------------------


def test_one_process_does_all():
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.shard(range(5)) == range(5)
    assert SINGLE_PROCESS.all_reduce_sum([1.5, 2]).tolist() == [1.5, 2]
    assert SINGLE_PROCESS.all_reduce_max(3) == 3
    assert SINGLE_PROCESS.all_gather("a") == ["a"]
    assert SINGLE_PROCESS.broadcast("a") == "a"
    module = torch.nn.Linear(2, 2)
    assert SINGLE_PROCESS.wrap_fsdp(module, "fsdp") is module
    assert SINGLE_PROCESS.wrap_ddp(module, torch.device("cpu")) is module
    assert SINGLE_PROCESS.full_state_dict({"a": [module.weight]}) == {"a": [module.weight]}
    with pytest.raises(KeyError, match="own"):
        SINGLE_PROCESS.fail(KeyError("own"))


@pytest.mark.parametrize(("n_windows", "batch_size", "world_size"), SHARES)
def test_every_window_is_in_one_pass_of_one_process(n_windows, batch_size, world_size):
    group = [DistContext(rank, world_size) for rank in range(world_size)]
    try:
        passes = [one.passes(range(n_windows), batch_size) for one in group]
    except ValueError:
        assert world_size > 1
        assert n_windows % world_size or n_windows < world_size
        return
    assert sorted(window for of_one in passes for portion in of_one for window in portion) == list(range(n_windows))
    assert len({len(of_one) for of_one in passes}) == 1  # each waits for the others as often
    assert all(1 <= len(portion) <= batch_size for of_one in passes for portion in of_one)


def test_one_process_cuts_a_step_into_batches():
    assert SINGLE_PROCESS.micro_batches(range(12), 4) == [range(4), range(4, 8), range(8, 12)]
