"""Processes of one run killed at random: the others end and say whom they miss, and the run ends as one left alone.

    python tests/faults_together.py
    python tests/faults_together.py --kills 6 --seed 3

For DDP and FSDP2, of two processes and of four, a run is started as torchrun starts it, and one of its processes is
killed, or frozen, at a random moment; again and again, with --resume, until it has ended. After each: the others have
ended within 30 s (those of a frozen one, which torchrun waits for, within 60); the one that is gone is named; every
checkpoint is whole, and none older than before. In the end all of it is, bit for bit, what a run is that nothing
happened to. Status 1 where anything was lost.
"""

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from faults import CONFIG, PROJECT, TEXT, TRAIN, Lost, demand, demand_the_same, step_of, whole

from gpt.checkpoint import RunFolder
from gpt.config import to_toml
from gpt.text.prepare import prepare_data
from gpt.text.sources import Corpus

GROUPS = [("ddp", 2), ("fsdp", 2), ("ddp", 4), ("fsdp", 4)]
FROZEN = 0.1  # share of the faults
GONE = re.compile(r"^rank (\d) \(process (\d+) on .*\) (is gone|has given no sign of life)", re.MULTILINE)


class Group:
    """The processes of one run, as torchrun starts them, and what they say."""

    def __init__(self, run: RunFolder, config: Path, kind: str, n: int):
        self.log = config.with_name("said.txt").open("w+")
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}", "--rdzv-backend=c10d"]
        command += ["--rdzv-endpoint=localhost:0", "--", str(TRAIN), f"--config={config}", f"--run={run.path}"]
        self.launcher = subprocess.Popen(
            [*command, "--resume", f"--parallel={kind}"], stdout=self.log, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
        )  # fmt: skip

    @property
    def said(self) -> str:
        """All that has been said."""
        return Path(self.log.name).read_text(errors="replace")

    def wait(self, seconds: float, until=lambda: False) -> bool:
        """Wait for the end, `until()` or so many seconds; whether it has ended."""
        end = time.monotonic() + seconds
        while self.launcher.poll() is None and not until() and time.monotonic() < end:
            time.sleep(0.01)
        return self.launcher.poll() is not None

    def process(self, rank: int) -> psutil.Process | None:
        """The process of a rank, while it is there."""
        with contextlib.suppress(psutil.Error):
            for found in psutil.Process(self.launcher.pid).children():
                if found.environ().get("RANK") == str(rank):
                    return found
        return None

    def end(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(psutil.Error):
            for found in [*psutil.Process(self.launcher.pid).children(recursive=True), self.launcher]:
                found.kill()
        self.launcher.wait()
        self.log.close()


def hurt(run: RunFolder, config: Path, kind: str, n: int, dice: random.Random) -> str:
    """Start or go on with a run, and take one of its processes away; what happened, "" where it had ended before."""
    group = Group(run, config, kind, n)
    try:
        group.barrier(120, lambda: "\nrun    " in group.said)  # before that torchrun alone knows who is there
        group.barrier(dice.uniform(0, 1.5 * n))
        rank, frozen = dice.randrange(n), dice.random() < FROZEN
        victim = group.process(rank)
        if victim is None or group.launcher.poll() is not None:
            demand(group.barrier(120) and group.launcher.returncode == 0, f"failed by itself: {group.said}")
            return ""
        began = time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGSTOP if frozen else signal.SIGKILL)
        ended = group.barrier(60 if frozen else 30)
        took = time.monotonic() - began
        over = step_of(run.steps()) == CONFIG.max_steps  # rank 0 still sums up, while the others may have gone home
        demand(ended or (frozen and over), f"the others were still at work after {took:.0f} s: {group.said}")
        if group.launcher.returncode == 0:  # it had nothing left to do
            return ""
        named = {int(found[1]) for found in GONE.finditer(group.said)}
        demand(
            named == {rank} or (over and not named),
            f"rank {rank} was taken away, and {named or 'none'} named: {group.said}",
        )
        return f"rank {rank} of {n} ({kind}) {'frozen' if frozen else 'killed'}: ended after {took:.1f} s"
    finally:
        group.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="processes killed or frozen, at least (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the dice (default: 0)")
    arguments = parser.parse_args()
    dice, done, number = random.Random(arguments.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bottles.txt").write_text(TEXT)
        data = prepare_data(Corpus("bottles", [folder / "bottles.txt"]), "char", folder / "data").folder
        config = folder / "bottles.toml"
        config.write_text(to_toml(CONFIG).replace(CONFIG.data.path, data.as_posix()))
        truths: dict[tuple[str, int], RunFolder] = {}
        while done < arguments.kills:
            kind, n = GROUPS[number % len(GROUPS)]
            if (kind, n) not in truths:
                truth = truths[kind, n] = RunFolder(folder / f"truth-{kind}-{n}")
                group = Group(truth, config, kind, n)
                demand(
                    group.barrier(180) and group.launcher.returncode == 0, f"the run left alone failed: {group.said}"
                )
                group.end()
            run, number = RunFolder(folder / f"run-{number}"), number + 1
            try:
                while what := hurt(run, config, kind, n, dice):
                    done += 1
                    steps = run.steps()
                    demand(whole(run) == steps, f"of {steps} only {whole(run)} are whole")
                    print(f"{what}, at step {step_of(steps)}", flush=True)
                demand_the_same(run, truths[kind, n])
                print(f"{run.path.name}: bit for bit the run left alone", flush=True)
            except Lost as lost:
                print(f"LOST: {lost}")
                return 1
    print(f"{done} processes taken away, none of {number} runs lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
