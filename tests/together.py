"""Run a function, or a list of training jobs, in each of several processes, for tests/system/.

    torchrun --nproc-per-node 2 -- tests/together.py jobs.json

A job trains a run: {"run": folder, "config": {...}, "stop_at": step, "resume": true, "checkpoint": name, "by_rank":
[{...}, ...]}. Rank R writes the outcome of job N to outcome-N-rank-R.txt next to the list.
"""

import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import gpt.objectives.objective
from gpt.config import TrainConfig, from_dict
from gpt.run.callbacks import Plot
from gpt.run.training import resume_run, start_run
from gpt.system.distributed import distributed_context


def count_e(prompt, completion, answer):
    """A reward: how often the completion has an e."""
    return completion.count("e")


def train(job, ctx):
    """Train as a job says. Return its last step, its validation loss, and how often DDP averaged gradients."""
    own = job.get("by_rank", [{}] * ctx.world_size)[ctx.rank]
    os.chdir(own.get("folder", "."))
    config = from_dict(TrainConfig, {**job["config"], **own.get("config", {})})
    options = {"run": job["run"], "config": config, "log": lambda line: None, "ctx": ctx}
    resume = functools.partial(resume_run, checkpoint=job.get("checkpoint"))
    trainer = resume(**options) if job.get("resume") else start_run(**options)
    train_step = trainer._train_step

    def stopping_step():
        if trainer.step + 1 == job.get("stop_at") and ctx.rank == ctx.world_size - 1:
            trainer.signal = signal.SIGTERM  # one process gets it, and all have to stop after this step
        train_step()

    trainer._train_step = stopping_step
    with recorded_syncs(ctx) as syncs:
        trainer.train()
    loss = trainer.evaluation.loss if trainer.evaluation else None
    return f"step {trainer.step}, loss {loss!r}, gradients averaged {syncs.count(True)} times"


@contextlib.contextmanager
def recorded_syncs(ctx):
    """A list of whether DDP averages gradients, by forward and backward pass."""
    grad_sync, syncs = ctx.grad_sync, []

    @contextlib.contextmanager
    def recording_grad_sync(module, is_last):
        with grad_sync(module, is_last):
            syncs.append(getattr(module, "require_backward_grad_sync", None))
            yield

    ctx.grad_sync = recording_grad_sync
    try:
        yield syncs
    finally:
        ctx.grad_sync = grad_sync


def run_jobs(jobs, ctx):
    """Run the jobs of a file as one of several processes."""
    Plot.draw = lambda self, trainer: None
    gpt.objectives.objective.SAMPLE_TOKENS = 20
    for number, job in enumerate(json.loads(jobs.read_text())):
        try:
            outcome = train(job, ctx)
        except ValueError as error:  # all processes have to raise it, or the next job hangs
            outcome = f"ValueError: {error}"
        (jobs.parent / f"outcome-{number}-rank-{ctx.rank}.txt").write_text(outcome)


def fork(n, function, folder, local_world_size=None):
    """Call function(ctx) in n forks of this process, which spare the imports; this one holds the store in place of
    torchrun. Return the results by rank, which torch.save can store; each node has local_world_size of the ranks."""
    for slow_import in ("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"):  # not in each fork
        importlib.import_module(slow_import)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    environment = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": local_world_size or n, "MASTER_ADDR": "localhost"}
    environment |= {"MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
    folder.mkdir(parents=True, exist_ok=True)

    def work(rank):
        os.environ.update({name: str(value) for name, value in {**environment, "RANK": rank}.items()})
        torch.set_num_threads(1)
        torch.manual_seed(0)
        with distributed_context() as ctx:
            ctx.init_process_group(torch.device("cpu"))
            torch.save(function(ctx), folder / f"result-{rank}.pt")

    processes = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * n
    return [torch.load(folder / f"result-{rank}.pt") for rank in range(n)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with distributed_context() as context:
        run_jobs(Path(sys.argv[1]).absolute(), context)
