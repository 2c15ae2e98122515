"""What each process of a test of several does: the jobs of a list, one after the other.

    torchrun --nproc-per-node 2 tests/together.py jobs.json

A job trains a run: {"run": folder, "config": {...}, "stop_at": step, "resume": true, "by_rank": [{...}, ...]}. What
rank r was told of it is written to told-N-rank-r.txt beside the list, N the number of the job.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

import gpt.objectives.objective
from gpt.config import TrainConfig, from_dict
from gpt.run.callbacks import Plot
from gpt.run.training import resume_run, start_run
from gpt.system.distributed import ctx


def work(job, group):
    """Train as a job says; what came of it, in words."""
    own = job.get("by_rank", [{}] * group.world_size)[group.rank]
    os.chdir(own.get("folder", "."))
    config = from_dict(TrainConfig, {**job["config"], **own.get("config", {})})
    begin = {"run": job["run"], "config": config, "log": lambda line: None, "ctx": group}
    trainer = resume_run(**begin) if job.get("resume") else start_run(**begin)
    train_step = trainer._train_step

    def step():
        train_step()
        if trainer.step == job.get("stop_at") and group.rank == group.world_size - 1:
            trainer.signal = signal.SIGTERM  # one of them is told, and all have to stop

    trainer._train_step = step
    with listening(group) as added_up:
        trainer.train()
    loss = trainer.evaluation.loss if trainer.evaluation else None
    return f"step {trainer.step}, loss {loss!r}, gradients added up {added_up.count(True)} times"


@contextlib.contextmanager
def listening(group):
    """A list of whether DDP adds up gradients, pass by pass."""
    grad_sync, added_up = group.grad_sync, []

    @contextlib.contextmanager
    def listen(module, last):
        with grad_sync(module, last):
            added_up.append(getattr(module, "require_backward_grad_sync", None))
            yield

    group.grad_sync = listen
    try:
        yield added_up
    finally:
        group.grad_sync = grad_sync


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    Plot.draw = lambda self, trainer: None
    gpt.objectives.objective.SAMPLE_TOKENS = 20
    jobs = Path(sys.argv[1]).absolute()
    with ctx() as group:
        for number, job in enumerate(json.loads(jobs.read_text())):
            try:
                told = work(job, group)
            except ValueError as error:  # which all of them have to raise, or the next job waits in vain
                told = f"ValueError: {error}"
            (jobs.parent / f"told-{number}-rank-{group.rank}.txt").write_text(told)


if __name__ == "__main__":
    main()
