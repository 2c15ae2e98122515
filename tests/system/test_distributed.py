"""Several processes against one: the same losses, however runs are started, stopped and killed."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import together
import torch
from blocks import MODERN_BLOCK, WINDOWED_BLOCK
from conftest import TEXT, corpus_of, pairs_of
from conversations import write_conversations
from numerics import tolerance

from gpt.checkpoint import RunFolder
from gpt.config import AdapterConfig, DataConfig, GPTConfig, ObjectiveConfig, OptimConfig, TrainConfig, to_toml
from gpt.run.callbacks import Plot
from gpt.run.logging import read_metrics
from gpt.run.training import resume_run, start_run
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.text.prepare import prepare_data
from gpt.token_files import load_data

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def _no_plots():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plot, "draw", lambda self, trainer: None)
        yield


# --- one process ------------------------------------------------------------------------------------------------------


def test_a_single_process_does_everything():
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.shard(range(5)) == range(5)
    assert SINGLE_PROCESS.all_reduce_sum([1.5, 2]).tolist() == [1.5, 2]
    assert SINGLE_PROCESS.all_reduce(torch.tensor([3.0])).tolist() == [3]
    assert SINGLE_PROCESS.all_gather("a") == ["a"]
    assert SINGLE_PROCESS.broadcast("a") == "a"
    module = torch.nn.Linear(2, 2)
    assert SINGLE_PROCESS.shard_evenly("ab") == [("a", True), ("b", True)]
    assert SINGLE_PROCESS.wrap_fsdp(module, "fsdp", torch.device("cpu"), torch.float32) is module
    assert SINGLE_PROCESS.wrap_ddp(module, torch.device("cpu")) is module
    assert not SINGLE_PROCESS.is_sharded


@pytest.mark.parametrize(
    ("n_examples", "batch_size", "world_size"),
    [(1, 1, 1), (12, 4, 1), (12, 3, 2), (7, 4, 2), (15, 5, 2), (13, 8, 3), (19, 3, 5), (19, 2, 5), (8, 1, 8)],
)
def test_each_example_is_in_one_micro_batch_of_one_process(n_examples, batch_size, world_size):
    by_rank = [DistContext(rank, world_size).micro_batches(range(n_examples), batch_size) for rank in range(world_size)]
    examples = [example for of_rank in by_rank for micro_batch in of_rank for example in micro_batch]
    assert sorted(examples) == list(range(n_examples))
    assert len({len(of_rank) for of_rank in by_rank}) == 1  # each waits for the others equally often
    assert all(1 <= len(micro_batch) <= batch_size for of_rank in by_rank for micro_batch in of_rank)


@pytest.mark.parametrize(("n", "world_size"), [(0, 3), (1, 3), (5, 2), (6, 3), (7, 4)])
def test_each_process_evaluates_equally_often_and_each_item_counts_once(n, world_size):
    shares = [DistContext(rank, world_size).shard_evenly(range(n)) for rank in range(world_size)]
    assert {len(share) for share in shares} == {-(-n // world_size)}
    assert sorted(item for share in shares for item, counts in share if counts) == list(range(n))
    for share in shares:  # what is thrown away has no place that this process fills
        assert not {item for item, counts in share if not counts} & {item for item, counts in share if counts}


@pytest.mark.parametrize(("n_examples", "batch_size", "world_size"), [(1, 1, 2), (3, 1, 2), (7, 1, 2), (4, 8, 5)])
def test_a_step_that_cannot_be_divided_is_refused(n_examples, batch_size, world_size):
    for rank in range(world_size):
        with pytest.raises(ValueError, match=f"use a multiple of {world_size}"):
            DistContext(rank, world_size).micro_batches(range(n_examples), batch_size)


def test_one_process_cuts_a_step_into_batches():
    assert SINGLE_PROCESS.micro_batches(range(12), 4) == [range(4), range(4, 8), range(8, 12)]


# --- several processes ------------------------------------------------------------------------------------------------


def start_torchrun(n, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--", *map(str, arguments)]
    path = f"{PROJECT}{os.pathsep}{PROJECT / 'tests'}"
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip


def run_jobs(n, jobs, folder):
    """Run jobs (tests/together.py) in n processes. Return the outcomes by job and rank."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    process = start_torchrun(n, PROJECT / "tests" / "together.py", folder / "jobs.json")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return read_outcomes(n, len(jobs), folder)


def train(config, folder):
    trainer = start_run(config, folder, lambda line: None)
    trainer.train()
    return trainer


def with_model(config, **changes):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def fork_jobs(n, jobs, folder, local_world_size=None):
    """As `run_jobs`, but in forks of this process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    together.fork(n, lambda ctx: together.run_jobs(folder / "jobs.json", ctx), folder, local_world_size)
    return read_outcomes(n, len(jobs), folder)


def read_outcomes(n, n_jobs, folder):
    """Return what the processes wrote, by job and rank."""
    return [[(folder / f"outcome-{job}-rank-{rank}.txt").read_text() for rank in range(n)] for job in range(n_jobs)]


def as_dict(config, **changes):
    return {**dataclasses.asdict(config), **changes}


def losses(run):
    """The loss columns of metrics.csv, and tokens_seen."""
    columns = read_metrics(run / "metrics.csv")
    return {name: np.array(column) for name, column in columns.items() if "loss" in name or name == "tokens_seen"}


def assert_same_losses(run, truth):
    """Equal but for float32's rounding, which training amplifies."""
    a, b = losses(run), losses(truth)
    assert np.isfinite(b["train_loss"]).sum() >= 3
    for name in a:
        n_terms = len(b[name]) * 12 * 48  # examples of 48 tokens in each step
        atol = tolerance(n_terms, np.nanmax(b["train_loss"]), dtype=torch.float32)
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=atol, err_msg=f"{name} of {run.name}")


def assert_same_run(run, truth):
    """Bit for bit, but for the times measured."""
    a, b = (RunFolder(folder).load("last") for folder in (run, truth))
    for x, y in ((a.weights, b.weights), (a.training_state, b.training_state)):
        x, y = dict(tensors_of(x)), dict(tensors_of(y))
        assert x.keys() == y.keys()
        assert all(torch.equal(x[name], y[name]) for name in x)
    assert (a.state["step"], a.state["best_loss"]) == (b.state["step"], b.state["best_loss"])
    for name, column in losses(truth).items():
        np.testing.assert_array_equal(losses(run)[name], column)
    assert RunFolder(run).samples.read_text() == RunFolder(truth).samples.read_text()


def tensors_of(tree, path=()):
    """(path, tensor) for each tensor in nested dictionaries and lists."""
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from tensors_of(value, (*path, key))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Prepared documents of 5 to 90 characters."""
    folder = tmp_path_factory.mktemp("documents")
    lines = [line[: 5 + 37 * n % 86] for n, line in enumerate(TEXT.splitlines() * 3)]
    return prepare_data(corpus_of(folder / "texts", *lines), "char", folder / "data").folder


def packed_config(documents):
    return TrainConfig(
        seed=5,
        max_steps=50,
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


def document_config(documents):
    """Micro-batches of unequal token counts, and Muon."""
    return dataclasses.replace(
        packed_config(documents),
        batch_size=3,
        grad_accum_steps=4,
        data=DataConfig(path=str(documents), packing="document"),
        optim=OptimConfig(name="muon", lr=3e-3, min_lr=3e-4, warmup_steps=10),
    )


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="needs a fork that can use PyTorch")
def test_two_processes_train_as_one(documents, tmp_path):
    """With DDP and with FSDP2; stopped, resumed, and refused where the processes differ; ended early; taken back."""
    config = dataclasses.replace(document_config(documents), max_steps=4, eval_every=2, sample_every=0)
    dropout = with_model(config, drop_rate=0.1)
    modern = with_model(config, **MODERN_BLOCK)
    worse = OptimConfig(lr=0.3, min_lr=0.3, warmup_steps=0, schedule="constant", grad_clip=0.0)  # soon
    early = dataclasses.replace(dropout, max_steps=30, eval_every=1, patience=2, freeze="trf_blocks.0", optim=worse)
    early = as_dict(dataclasses.replace(early, keep_checkpoints=30, save_every=1), parallel="fsdp")
    differing_data = []
    for number, text in enumerate(("to be or not to be. " * 30, "to be or not to eb. " * 30)):
        folder = tmp_path / f"place-{number}"
        folder.mkdir()
        prepare_data(corpus_of(tmp_path / f"texts-{number}", text), "char", folder / "data")
        differing_data.append({"folder": str(folder), "config": {"data": dataclasses.asdict(DataConfig(path="data"))}})
    jobs = {
        "ddp": {"config": as_dict(config, parallel="ddp")},
        "fsdp": {"config": as_dict(config, parallel="fsdp")},
        "modern": {"config": as_dict(modern, parallel="fsdp")},
        "bfloat16": {"config": as_dict(config, parallel="fsdp", dtype="bfloat16", sample_every=2)},
        "dropout": {"config": as_dict(dropout, parallel="fsdp")},
        "resumed": {"config": as_dict(dropout, parallel="fsdp"), "stop_at": 2},
        "resumed again": {"config": as_dict(dropout, parallel="fsdp"), "resume": True},
        "early": {"config": early},
        "back": {"config": early},
        "back again": {"config": early, "resume": True, "checkpoint": "step-000001"},
        "ddp again": {"config": as_dict(config, parallel="ddp")},
        "other data": {"config": as_dict(packed_config(documents)), "by_rank": differing_data},
        "other config": {"config": as_dict(config), "by_rank": [{}, {"config": {"seed": 8}}]},
        "indivisible": {"config": as_dict(config, batch_size=1, grad_accum_steps=1)},
    }
    runs = {name: tmp_path / "runs" / name.removesuffix(" again") for name in jobs}
    outcomes = fork_jobs(2, [{**job, "run": str(runs[name])} for name, job in jobs.items()], tmp_path / "jobs")
    outcomes = dict(zip(jobs, outcomes, strict=True))

    train(config, tmp_path / "runs" / "one")
    train(modern, tmp_path / "runs" / "one modern")
    assert_same_losses(runs["ddp"], tmp_path / "runs" / "one")
    assert_same_losses(runs["fsdp"], tmp_path / "runs" / "one")
    assert_same_losses(runs["modern"], tmp_path / "runs" / "one modern")
    assert all(outcome.endswith("averaged 4 times") for outcome in outcomes["ddp"])  # once per step
    assert RunFolder(runs["bfloat16"]).samples.read_text().count("--- step ") == 3
    for name, column in losses(tmp_path / "runs" / "one").items():
        np.testing.assert_allclose(losses(runs["bfloat16"])[name], column, rtol=torch.finfo(torch.bfloat16).eps)
    assert_same_run(runs["resumed"], runs["dropout"])  # bit for bit
    for name, n in (("fsdp", 2), ("ddp", 0)):  # each process writes its shards, or rank 0 all
        saved = {path.name for path in RunFolder(runs[name]).find().glob("*.safetensors")}
        shards = {f"{kind}-0000{k + 1}-of-0000{n}.safetensors" for kind in ("model", "optimizer") for k in range(n)}
        assert saved == (shards or {"model.safetensors"})

    assert (
        len({outcome.partition(", gradients")[0] for name in ("early", "back again") for outcome in outcomes[name]})
        == 1
    )
    assert RunFolder(runs["early"]).load("last").state["step"] < 30
    assert_same_run(runs["back"], runs["early"])
    assert (runs["back"] / "checkpoints" / "aside-001" / "step-000002").is_dir()

    refusals = ("ddp again", "other data", "other config", "indivisible")
    for name in refusals:
        first, second = outcomes[name]
        assert first == second  # both processes raise it
        assert first.startswith("ValueError: ")
    assert "has a checkpoint" in outcomes["ddp again"][0]
    assert re.search(
        r"SHA-256 of the train tokens is '\w{64}' on rank 1 and '\w{64}' on rank 0", outcomes["other data"][0]
    )
    assert "seed is 8 on rank 1 and 5 on rank 0: all processes need the same config" in outcomes["other config"][0]
    assert "1 examples per step (batch_size x grad_accum_steps)" in outcomes["indivisible"][0]
    assert not any((runs[name] / "config.toml").exists() for name in refusals[1:])


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="needs a fork that can use PyTorch")
def test_two_nodes_of_two_processes_train_as_one(documents, tmp_path):
    """Each node holds the whole model; a run may start from another, and is continued by one process."""
    base = dataclasses.replace(document_config(documents), max_steps=4, eval_every=2, sample_every=0)
    one = train(base, tmp_path / "one").run.path
    tuned = dataclasses.replace(base, init_from=str(one), model=GPTConfig(vocab_size=0, drop_rate=0.0))
    train(tuned, tmp_path / "tuned")
    jobs = [
        {"run": str(tmp_path / "hsdp"), "config": as_dict(base, parallel="hsdp"), "stop_at": 2},
        {"run": str(tmp_path / "hsdp"), "config": as_dict(base, parallel="hsdp"), "resume": True, "stop_at": 3},
        {"run": str(tmp_path / "hsdp tuned"), "config": as_dict(tuned, parallel="hsdp")},
    ]
    fork_jobs(4, jobs, tmp_path / "jobs", local_world_size=2)
    resume_run(tmp_path / "hsdp", log=lambda line: None).train()
    assert_same_losses(tmp_path / "hsdp", one)
    assert_same_losses(tmp_path / "hsdp tuned", tmp_path / "tuned")


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="needs a fork that can use PyTorch")
def test_a_run_of_four_continues_with_two_and_with_one(documents, tmp_path):
    """Sharded by four, by two, whole in each of two processes, and in one: AdamW's moments come along."""
    config, run = packed_config(documents), tmp_path / "run"
    job = {"run": str(run), "resume": True}
    fsdp, ddp = as_dict(config, parallel="fsdp"), as_dict(config, parallel="ddp")
    fork_jobs(4, [{"run": str(run), "config": fsdp, "stop_at": 20}], tmp_path / "four")
    two = [{**job, "config": fsdp, "stop_at": 30}, {**job, "config": ddp, "stop_at": 40}]
    fork_jobs(2, two, tmp_path / "two")
    assert RunFolder(run).steps()[-1] == "step-000040"
    resume_run(run, log=lambda line: None).train()
    train(config, tmp_path / "one")
    assert_same_losses(run, tmp_path / "one")


# --- processes that end -----------------------------------------------------------------------------------------------


def hurt(process, run, rank, number, condition=lambda: True, delay=0):
    """Send a signal to one process of a run that has saved, some seconds after a condition holds. Return its id, and
    all output of the run."""
    try:
        wait_until((run / "checkpoints" / "last").exists)
        wait_until(condition, interval=0.001)
        time.sleep(delay)
        (victim,) = (p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == str(rank))
        victim.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        for child in psutil.Process(process.pid).children() if process.poll() is None else ():
            child.kill()
        process.kill()
    return victim.pid, output


def wait_until(condition, seconds=60, interval=0.1):
    for _ in range(int(seconds / interval)):
        if condition():
            return
        time.sleep(interval)
    raise TimeoutError


def start_endless_run(documents, tmp_path, parallel, *options):
    config = dataclasses.replace(packed_config(documents), save_every=5, eval_every=10**6, max_steps=10**6)
    (tmp_path / "run.toml").write_text(to_toml(config))
    arguments = ["--config", tmp_path / "run.toml", "--run", tmp_path / "run", "--parallel", parallel, *options]
    return start_torchrun(2, PROJECT / "scripts" / "train.py", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "rank"), [("ddp", 1), ("fsdp", 0)])
def test_a_killed_process_ends_the_others(documents, tmp_path, parallel, rank):
    process, run = start_endless_run(documents, tmp_path, parallel), tmp_path / "run"
    victim, output = hurt(process, run, rank, signal.SIGKILL)
    assert process.returncode == 1
    assert output.count("another process is gone: ending. --resume continues from the last checkpoint") == 1
    assert output.count("Traceback (most recent call last)") == 1  # torchrun's own
    assert re.search(rf"rank +: {rank} .*\n *exitcode +: -9 \(pid: {victim}\)", output)  # torchrun's report
    assert resume_run(run, log=lambda line: None).step >= 5


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_in_an_asynchronous_save_leaves_the_earlier_checkpoints(documents, tmp_path, rank):
    """Several times, at different moments of the save; in the end one process continues."""
    run = RunFolder(tmp_path / "run")
    killed_in_saves, newest = 0, 0

    def unfinished():
        return {*run.checkpoints.glob(".step-*.shards.tmp")}

    for delay in (0, 0.005, 0.01):  # seconds into the save
        left_over = unfinished()
        process = start_endless_run(documents, tmp_path, "fsdp", "--resume")
        hurt(process, run.path, rank, signal.SIGKILL, lambda old=left_over: unfinished() - old, delay)
        killed_in_saves += bool(unfinished() - left_over)
        steps = run.steps()
        assert [run.load(step).state["step"] for step in steps] == [int(step[5:]) for step in steps]  # all are whole
        assert int(steps[-1][5:]) >= newest
        newest = int(steps[-1][5:])
    assert killed_in_saves
    assert resume_run(run.path, log=lambda line: None).step == newest
    assert not any(run.checkpoints.glob(".*"))


@pytest.mark.slow
def test_a_frozen_process_ends_the_others_and_is_named(documents, tmp_path):
    process, run = start_endless_run(documents, tmp_path, "ddp"), tmp_path / "run"
    victim, output = hurt(process, run, 1, signal.SIGSTOP)
    assert process.returncode == 1
    assert re.search(rf"^rank 1 \(process {victim} on .*\) has sent no heartbeat for 15 seconds: ending", output, re.M)
    assert resume_run(run, log=lambda line: None).step >= 5


@pytest.mark.slow
def test_a_mistake_of_all_processes_is_reported_once():
    process = start_torchrun(2, PROJECT / "scripts" / "train.py", "--config", "configs/story.toml", "--max_stepz", "3")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.count("error: unknown option --max_stepz: did you mean --max_steps?") == 1


# --- every objective and backbone, two and four processes -------------------------------------------------------------

SIZES = (2, 4)
ON_ALL_SIZES = ("packed", "documents")
MODELS = ("uneven", "untied", "modern", "window", "lstm", "lora")
OBJECTIVES = ("reverse", "masked", "infilling", "sft", "dpo", "grpo", "distill")
OTHERS = (*MODELS, *OBJECTIVES, "talks")  # on two processes


def runs_of(place):
    """The names of the runs in a folder: all of them on two processes, but grpo needs a whole model."""
    names = ON_ALL_SIZES + OTHERS * place.name.endswith("2")
    return [name for name in names if name != "grpo" or place.name.startswith("ddp")]


def all_configs(documents, others, teacher):
    """Configs by name, each with dropout 0 in float32; `others` are folders of data by the names of those that read
    them."""
    packed, by_document = packed_config(documents), document_config(documents)
    short = dataclasses.replace(packed, max_steps=6, eval_every=3, sample_every=3)
    configs = {
        "packed": packed,
        "documents": by_document,
        "uneven": dataclasses.replace(by_document, batch_size=5, grad_accum_steps=3, optim=packed.optim, max_steps=20),
        "untied": with_model(short, tie_embeddings=False, implementation="reference"),
        "modern": with_model(short, **MODERN_BLOCK),
        "window": with_model(short, **WINDOWED_BLOCK),
        "lstm": with_model(short, backbone="lstm"),
    }
    for name in OBJECTIVES:
        configs[name] = dataclasses.replace(
            short, batch_size=4, grad_accum_steps=2, init_from=str(teacher) if name in ("dpo", "grpo") else "",
            data=DataConfig(path=str(others.get(name, documents)), packing="document"),
            objective=ObjectiveConfig(name=name, teacher=str(teacher) if name == "distill" else ""),
        )  # fmt: skip
    own = ObjectiveConfig(name="grpo", reward="together:count_e", group_size=4, passes=2, clip=0.2)
    configs["grpo"] = dataclasses.replace(configs["grpo"], objective=own)
    packed_talks = DataConfig(path=str(others["talks"]), packing="packed")
    configs["talks"] = dataclasses.replace(configs["sft"], data=packed_talks)
    return configs


@pytest.fixture(scope="module")
def runs(tmp_path_factory, documents):
    """A folder of runs, in one process and in several: one/NAME, ddp-2/NAME, ..."""
    folder = tmp_path_factory.mktemp("runs")
    examples = [(f"{n % 7} and {n % 5}", f"{n % 7 + n % 5}.") for n in range(60)]
    others = {"sft": prepare_data(pairs_of(folder / "texts", examples), "char", folder / "pairs", 0.2).folder}
    tokenizer = load_data(documents).tokenizer
    talks = [[("on the wall ", False), (f"{n} bottles"[: 3 + n % 7], True)] for n in range(40)]
    for name in ("talks", "dpo"):
        others[name] = write_conversations(folder / name, tokenizer, talks[:30], talks[30:], name == "dpo").folder
    configs = all_configs(documents, others, teacher=folder / "one" / "documents")
    for name, config in configs.items():
        train(config, folder / "one" / name)
    configs["lora"] = dataclasses.replace(
        configs["packed"], max_steps=6, eval_every=3, init_from=str(folder / "one" / "packed"),
        adapter=AdapterConfig(name="lora"), model=GPTConfig(vocab_size=0, drop_rate=0.0),
    )  # fmt: skip
    train(configs["lora"], folder / "one" / "lora")
    dropout = with_model(dataclasses.replace(configs["documents"], max_steps=8, eval_every=5), drop_rate=0.1)
    for n in SIZES:
        jobs = []
        for parallel in ("ddp", "fsdp"):
            place = folder / f"{parallel}-{n}"
            for name in runs_of(place):
                jobs.append({"run": str(place / name), "config": as_dict(configs[name], parallel=parallel)})
            half = as_dict(configs["packed"], parallel=parallel)
            jobs.append({"run": str(place / "half"), "config": half, "stop_at": 25})
            if "grpo" in runs_of(place):  # stopped between two passes over what the processes have sampled
                stopped = {"run": str(place / "grpo-stopped"), "config": as_dict(configs["grpo"])}
                jobs += [{**stopped, "stop_at": 3}, {**stopped, "resume": True}]
            whole = as_dict(dropout, parallel=parallel)
            jobs.append({"run": str(place / "dropout"), "config": whole})
            jobs.append({"run": str(place / "dropout-stopped"), "config": whole, "stop_at": 3})
            jobs.append({"run": str(place / "dropout-stopped"), "config": whole, "resume": True})
            if n == 4:  # resume a run of two processes, with the other kind of parallelism
                shutil.copytree(folder / f"{parallel}-2" / "half", place / "half-of-two")
                config = as_dict(configs["packed"], parallel="fsdp" if parallel == "ddp" else "ddp")
                jobs.append({"run": str(place / "half-of-two"), "config": config, "resume": True})
        outcomes = run_jobs(n, jobs, folder / f"jobs-{n}")
        by_run = {job["run"]: outcome for job, outcome in zip(jobs, outcomes, strict=True)}
        (folder / f"outcomes-{n}.json").write_text(json.dumps(by_run))
    return folder


@pytest.mark.slow
def test_every_run_of_several_processes_is_that_of_one(runs, tmp_path):
    for place in (f"{parallel}-{n}" for parallel in ("ddp", "fsdp") for n in SIZES):
        for name in runs_of(runs / place):
            assert_same_losses(runs / place / name, runs / "one" / name)
        check_what_is_saved(runs, place)
        check_resuming_in_one_process(runs, place, tmp_path / place)
        assert_same_run(runs / place / "dropout-stopped", runs / place / "dropout")  # bit for bit
        dropped = losses(runs / place / "dropout")["train_loss"]
        undropped = losses(runs / "one" / "documents")["train_loss"]
        assert not np.allclose(dropped[1:], undropped[1 : len(dropped)], atol=1e-4)
    assert_same_run(runs / "ddp-2" / "grpo-stopped", runs / "ddp-2" / "grpo")
    for parallel in ("ddp", "fsdp"):
        assert_same_losses(runs / f"{parallel}-4" / "half-of-two", runs / "one" / "packed")
    for n in SIZES:  # gradients are averaged once per step: 12 examples in micro-batches of 3
        outcomes = json.loads((runs / f"outcomes-{n}.json").read_text())
        assert all(outcome.endswith("averaged 50 times") for outcome in outcomes[str(runs / f"ddp-{n}" / "documents")])


def check_what_is_saved(runs, place):
    """Whole tensors by the same names as those of one process, and the random state of each process."""
    one, several = (RunFolder(runs / folder / "documents").load("last") for folder in ("one", place))
    assert one.weights.keys() == several.weights.keys()
    for name, tensor in one.weights.items():
        torch.testing.assert_close(several.weights[name], tensor, rtol=0, atol=1e-4)
    expected, found = (c.training_state["optimizer"]["state"] for c in (one, several))
    assert {k: v.keys() for k, v in expected.items()} == {k: v.keys() for k, v in found.items()}
    assert all(type(t) is torch.Tensor for state in found.values() for t in state.values())
    assert len(several.training_state["random"]) == int(place[-1])


def check_resuming_in_one_process(runs, place, tmp_path):
    shutil.copytree(runs / place / "half", tmp_path / "run")
    lines = []
    trainer = resume_run(tmp_path / "run", log=lines.append)
    assert trainer.step == 25
    trainer.train()
    assert any("processes" in line and "last digits" in line for line in lines)
    assert_same_losses(tmp_path / "run", runs / "one" / "packed")
