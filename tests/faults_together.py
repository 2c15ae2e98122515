"""Kill or freeze random processes of a run: the others end, and the resumed run ends as one left alone.

    python tests/faults_together.py
    python tests/faults_together.py --kills 6 --seed 3

For DDP and FSDP2, with two processes and with four, start a run by torchrun, and kill or freeze one of its processes at
a random moment, half of the time while a checkpoint is being written (FSDP2: in the background); resume it, and repeat
until it has ended. After each fault the others have ended within 30 s (60 s for a frozen process, which torchrun kills
after 30); the output names the rank; every checkpoint is whole, and no older than before. The final run is bit for bit
that of an undisturbed one. Exit status 1 where anything was lost.
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
from faults import CONFIG, PROJECT, TEXT, TRAIN, Lost, demand, demand_the_same, is_saving, step_of, whole

from gpt.checkpoint import RunFolder
from gpt.config import to_toml
from gpt.text.prepare import prepare_data
from gpt.text.sources import Corpus

KINDS = [("ddp", 2), ("fsdp", 2), ("ddp", 4), ("fsdp", 4)]  # parallel, world size
FROZEN = 0.1  # share of the faults
NAMED_BY_TORCHRUN = re.compile(r"rank +: (\d) .*\n *exitcode +: -9 ")
NAMED_BY_HEARTBEAT = re.compile(r"^rank (\d) \(process \d+ on .*\) has sent no heartbeat", re.MULTILINE)


class Run:
    """The processes of one run, started by torchrun, and their output."""

    def __init__(self, folder: RunFolder, config: Path, parallel: str, world_size: int):
        self.log = config.with_name("output.txt").open("w+")
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world_size}"]
        command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--", str(TRAIN)]
        command += [f"--config={config}", f"--run={folder.path}", "--resume", f"--parallel={parallel}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
        self.torchrun = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, env=environment)

    @property
    def output(self) -> str:
        return Path(self.log.name).read_text(errors="replace")

    def wait(self, seconds: float, until=lambda: False) -> bool:
        """Wait until the run ends, `until()` holds or the time is over. Return whether it has ended."""
        end = time.monotonic() + seconds
        while self.torchrun.poll() is None and not until() and time.monotonic() < end:
            time.sleep(0.01)
        return self.torchrun.poll() is not None

    def process(self, rank: int) -> psutil.Process | None:
        """The process of a rank, if it is alive."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.torchrun.pid).children():
                if child.environ().get("RANK") == str(rank):
                    return child
        return None

    def close(self) -> None:
        """Kill all that is left."""
        with contextlib.suppress(psutil.Error):
            for process in [*psutil.Process(self.torchrun.pid).children(recursive=True), self.torchrun]:
                process.kill()
        self.torchrun.wait()
        self.log.close()


def hurt(folder: RunFolder, config: Path, parallel: str, world_size: int, rng: random.Random) -> str:
    """Start or resume a run, and kill or freeze one of its processes. Return a description of the fault, "" if the run
    ended before."""
    run = Run(folder, config, parallel, world_size)
    try:
        run.wait(120, lambda: "\nrun    " in run.output)  # the first line after all processes are connected
        run.wait(rng.uniform(0, 1.5 * world_size))
        if rng.random() < 0.5:
            run.wait(5, lambda: is_saving(folder))
        rank, frozen = rng.randrange(world_size), rng.random() < FROZEN
        victim = run.process(rank)
        if victim is None or run.torchrun.poll() is not None:
            demand(run.wait(120) and run.torchrun.returncode == 0, f"failed by itself: {run.output}")
            return ""
        start = time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGSTOP if frozen else signal.SIGKILL)
        ended = run.wait(60 if frozen else 30)
        seconds = time.monotonic() - start
        finished = step_of(folder.steps()) == CONFIG.max_steps  # rank 0 still prints, the others may have exited
        demand(ended or (frozen and finished), f"the others still ran after {seconds:.0f} s: {run.output}")
        if run.torchrun.returncode == 0:  # it had nothing left to do
            return ""
        named = {int(match[1]) for match in (NAMED_BY_HEARTBEAT if frozen else NAMED_BY_TORCHRUN).finditer(run.output)}
        demand(
            named == {rank} or (finished and not named),
            f"rank {rank} was {'frozen' if frozen else 'killed'}, and {named or 'none'} named: {run.output}",
        )
        return f"rank {rank} of {world_size} ({parallel}) {'frozen' if frozen else 'killed'}: ended in {seconds:.1f} s"
    finally:
        run.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="the least number of faults (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults (default: 0)")
    arguments = parser.parse_args()
    rng, n_faults, number = random.Random(arguments.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "bottles.txt").write_text(TEXT)
        data = prepare_data(Corpus("bottles", [work / "bottles.txt"]), "char", work / "data").folder
        config = work / "bottles.toml"
        config.write_text(to_toml(CONFIG).replace(CONFIG.data.path, data.as_posix()))
        truths: dict[tuple[str, int], RunFolder] = {}
        while n_faults < arguments.kills:
            kind = KINDS[number % len(KINDS)]
            if kind not in truths:
                truths[kind] = RunFolder(work / f"truth-{kind[0]}-{kind[1]}")
                run = Run(truths[kind], config, *kind)
                demand(run.wait(180) and run.torchrun.returncode == 0, f"the undisturbed run failed: {run.output}")
                run.close()
            folder, number = RunFolder(work / f"run-{number}"), number + 1
            try:
                while description := hurt(folder, config, *kind, rng):
                    n_faults += 1
                    steps = folder.steps()
                    demand(whole(folder) == steps, f"of {steps} only {whole(folder)} are whole")
                    print(f"{description}, at step {step_of(steps)}", flush=True)
                demand_the_same(folder, truths[kind])
                print(f"{folder.path.name}: bit for bit the undisturbed run", flush=True)
            except Lost as lost:
                print(f"LOST: {lost}")
                return 1
    print(f"{n_faults} processes killed or frozen, none of {number} runs lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
