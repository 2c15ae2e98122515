"""Train every rung of configs/ladder, from GPT-2's block to today's, and write tables and plot of docs/ladder.md.

    python benchmarks/ladder.py
    python benchmarks/ladder.py shakespeare --seeds 1
    python benchmarks/ladder.py --redraw
    python benchmarks/ladder.py --quick

Each rung is trained on each text with each seed: for STEPS steps, and for as many as take the first rung's time. The
time of a step is measured once per text and rung, as CPU time on one thread, so that other programs hardly disturb it.
Results are lines of docs/ladder.jsonl; those that are there already are not measured again, and --redraw measures
nothing. Everything takes an hour on one core. --quick trains a few steps on a few tales in a temporary folder, as a
smoke test, and writes no page.
"""

import dataclasses
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from objectives import PREPARED, PROJECT, script, write

from gpt.config import TrainConfig, from_dict, read_toml
from gpt.run import cli
from gpt.run.training import start_run
from gpt.system.files import append_text, atomic_file
from gpt.system.memory import set_allocator_flags
from gpt.system.paths import find_path
from gpt.trainer import Callback, Trainer

CONFIGS = PROJECT / "configs" / "ladder"
PAGE = PROJECT / "docs" / "ladder.md"
RESULTS = PROJECT / "docs" / "ladder.jsonl"
RUNGS = {  # config -> the lines that it changes
    "00_gpt2": "GPT-2's block",
    "01_rms_norm": 'norm = "rms"',
    "02_no_bias": "bias = false",
    "03_rope": 'position = "rope"',
    "04_swiglu": 'feed_forward = "swiglu", ffn_dim = 256',
    "05_qk_norm": "qk_norm = true",
    "06_gqa": "n_kv_heads = 2",
    "07_untied": "tie_embeddings = false",
    "08_muon": 'name = "muon"',
    "09_relu2": 'feed_forward = "relu2", ffn_dim = 0',
}
FIRST = next(iter(RUNGS))
TEXTS = {  # name -> its folder, and how prepare_data.py makes it
    "shakespeare": ("data/shakespeare_char", ["--input=shakespeare", "--tokenizer=char"]),
    "tales": ("data/tales", PREPARED["data/tales"]),
    "python-docs": ("data/python_docs_4096", ["--input=python-docs", "--tokenizer=bpe:4096"]),
}
SEEDS = (1, 2, 3)
STEPS = 300
POINTS = 8  # evaluations on the way, of CURVE_BATCHES batches each
CURVE_BATCHES = 12
ROUNDS, STEPS_PER_ROUND = 50, 2  # of timing
STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # the 97.5% quantile by number of seeds; 2.6 for more


class Results:
    """Results by their keys, one JSON object per line of a file, each written as soon as it is known.

    (text, rung) has the time of a step, (text, rung, seed, steps) a run's final loss and its curve.
    """

    keys = ("text", "rung", "seed", "steps")

    def __init__(self, path: Path):
        self.path, self.found = path, {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._keep(json.loads(line))

    def _keep(self, row: dict) -> None:
        self.found[tuple(row[name] for name in self.keys if name in row)] = row

    def add(self, **row) -> None:
        """Append a row to the file."""
        append_text(self.path, json.dumps(row) + "\n")
        self._keep(row)

    def steps_in_equal_time(self, text: str, rung: str, steps: int) -> int:
        """Return how many steps of a rung take as long as `steps` of the first."""
        return round(steps * self.found[text, FIRST]["ms"] / self.found[text, rung]["ms"])

    def runs(self, text: str, rung: str, steps: int) -> dict[int, dict]:
        """Return the runs of that many steps by seed."""
        return {row["seed"]: row for key, row in sorted(self.found.items()) if key[:2] + key[3:] == (text, rung, steps)}


class Curve(Callback):
    """The validation loss at POINTS steps, each on the same part of the split."""

    def __init__(self):
        self.points: list[tuple[int, float]] = []

    def on_step_end(self, trainer: Trainer) -> None:
        """Evaluate if this step is one of the points."""
        steps = trainer.config.max_steps
        if trainer.step in {math.ceil(steps * n / POINTS) for n in range(1, POINTS + 1)}:
            part = dataclasses.replace(trainer.config, eval_batches=CURVE_BATCHES)
            evaluation = trainer.objective.evaluate(part, trainer.data, trainer.device)
            self.points.append((trainer.step, round(evaluation.loss, 4)))


def trainer_of(rung: str, data: Path, seed: int, steps: int, folder: str) -> Trainer:
    """Return the Trainer of a rung at step 0."""
    config = from_dict(TrainConfig, read_toml(CONFIGS / f"{rung}.toml"))
    data = dataclasses.replace(config.data, path=str(data))
    config = dataclasses.replace(config, seed=seed, max_steps=steps, data=data, device="cpu")
    return start_run(config, folder, log=lambda line: None)


def train(rung: str, data: Path, seed: int, steps: int) -> dict:
    """Return the result of a run: its curve, and its final loss on the whole validation split in nats per token."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, curve = trainer_of(rung, data, seed, steps, folder), Curve()
        trainer.callbacks = [curve]
        trainer.train()
    if trainer.stopped_by:  # a signal ended the run before its last step
        raise KeyboardInterrupt
    return {"seed": seed, "steps": steps, "loss": round(trainer.evaluation.loss, 5), "curve": curve.points}


def time_steps(data: Path, rounds: int) -> dict[str, dict]:
    """Return each rung's parameters and milliseconds of CPU time per step, the least of several rounds in turn."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = {rung: trainer_of(rung, data, 0, STEPS, f"{folder}/{rung}") for rung in RUNGS}
        times = {rung: [] for rung in RUNGS}
        for _ in range(rounds):
            for rung, trainer in trainers.items():
                start = time.process_time()
                for _ in range(STEPS_PER_ROUND):
                    trainer._train_step()
                times[rung].append(time.process_time() - start)
    counts = {rung: trainer.objective.model.num_parameters() for rung, trainer in trainers.items()}
    per_step = {rung: 1000 * min(seconds) / STEPS_PER_ROUND for rung, seconds in times.items()}
    return {rung: {"parameters": counts[rung], "ms": round(per_step[rung], 2)} for rung in RUNGS}


def measure(texts: dict, seeds: list[int], folder: Path, results: Results, steps: int, rounds: int) -> None:
    """Prepare the texts in a folder, and measure what `results` lacks: all rungs with one seed, then with the next."""
    for text, (path, prepared) in texts.items():
        if not (folder / path / "meta.json").is_file():
            script("prepare_data", *prepared, f"--out={path}", folder=folder)
        if any((text, rung) not in results.found for rung in RUNGS):
            for rung, row in time_steps(folder / path, rounds).items():
                results.add(text=text, rung=rung, **row)
    for seed in seeds:
        for text, (path, _) in texts.items():
            for rung in RUNGS:
                for n in (steps, results.steps_in_equal_time(text, rung, steps)):
                    if (text, rung, seed, n) not in results.found:
                        results.add(text=text, rung=rung, **train(rung, folder / path, seed, n))
                        loss = results.found[text, rung, seed, n]["loss"]
                        print(f"{text}, {rung}, seed {seed}: {loss:.4f} after {n} steps", flush=True)


# --- the page ---------------------------------------------------------------------------------------------------------


def _title(rung: str) -> str:
    return rung.replace("_", " ")


def mean_and_spread(values: list[float], form: str = ".3f") -> str:
    """Return "mean ± sample standard deviation"."""
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{spread}"


def gain(before: dict[int, dict], after: dict[int, dict]) -> str:
    """Return the mean fall of the loss over seeds that both have, and its spread.

    In parentheses if its 95% confidence interval contains 0.
    """
    falls = [before[seed]["loss"] - after[seed]["loss"] for seed in after if seed in before]
    if not falls:
        return ""
    shown = mean_and_spread(falls).replace("-", "−")
    if (n := len(falls)) == 1:
        return shown
    is_noise = abs(statistics.fmean(falls)) < STUDENT_T.get(n, 2.6) * statistics.stdev(falls) / n**0.5
    return f"({shown})" if is_noise else shown


def table(text: str, results: Results, steps: int) -> list[str]:
    """Return the table of a text: a row per rung."""
    lines = [
        f"| rung | changed | parameters | ms per step | loss after {steps} steps | gain | loss in equal time | gain "
        f"| its steps |",
        f"|{'---|' * 9}",
    ]
    before = ({}, {})
    for rung, changed in RUNGS.items():
        timing = results.found[text, rung]
        in_time = results.steps_in_equal_time(text, rung, steps)
        after = tuple(results.runs(text, rung, n) for n in (steps, in_time))
        cells = []
        for old, new in zip(before, after, strict=True):
            cells += [mean_and_spread([row["loss"] for row in new.values()]) if new else "", gain(old, new)]
        changed = changed if rung == FIRST else f"`{changed}`"
        lines.append(
            f"| [{_title(rung)}](../configs/ladder/{rung}.toml) | {changed} | {timing['parameters']:,} "
            f"| {timing['ms']:.1f} | {' | '.join(cells)} | {in_time} |"
        )
        before = after
    return lines


def plot(texts: dict, results: Results, steps: int, out: Path) -> None:
    """Plot loss over seconds of one core as a PNG: a panel per text, for each rung the mean over runs of equal time.

    Curves start at their second point: the first would squeeze the rest.
    """
    figure = Figure(figsize=(4.2 * len(texts) + 1.2, 4.4), dpi=110, layout="constrained")
    for axes, text in zip(figure.subplots(1, len(texts), squeeze=False)[0], texts, strict=True):
        for number, rung in enumerate(RUNGS):
            runs = results.runs(text, rung, results.steps_in_equal_time(text, rung, steps)).values()
            points = list(zip(*(row["curve"] for row in runs), strict=True))  # by point, then by seed
            seconds = [of_seeds[0][0] * results.found[text, rung]["ms"] / 1000 for of_seeds in points]
            losses = [statistics.fmean(loss for _, loss in of_seeds) for of_seeds in points]
            axes.plot(seconds[1:], losses[1:], color=colormaps["tab10"](number), label=_title(rung))
        axes.set_title(text, loc="left", fontsize=10)
        axes.set_xlabel("seconds on one core")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("validation loss, nats per token")
    figure.axes[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_file(out) as temporary:
        figure.savefig(temporary)


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("texts", nargs="*", default=[], metavar="TEXT", help=f"{', '.join(TEXTS)}; default: all")
    parser.add_argument("--seeds", default=list(SEEDS), type=int, nargs="+", metavar="N", help="default: 1 2 3")
    parser.add_argument("--redraw", action="store_true", help="only write the page from docs/ladder.jsonl")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few tales, as a smoke test")
    arguments = parser.parse_args()
    if unknown := set(arguments.texts) - set(TEXTS):
        parser.error(f"TEXT: no text {unknown.pop()!r}: choose from {', '.join(TEXTS)}")
    set_allocator_flags()
    torch.set_num_threads(1)
    if arguments.quick:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            texts = {"tales": ("data/tales", ["--input=tales:300", "--tokenizer=bpe:512"])}
            results = Results(folder / "ladder.jsonl")
            measure(texts, [1], folder, results, 4, 1)
            plot(texts, results, 4, folder / "ladder.png")
            print("\n".join(table("tales", results, 4)))
        return
    results = Results(RESULTS)
    texts = {text: TEXTS[text] for text in arguments.texts or TEXTS}
    if not arguments.redraw:
        measure(texts, arguments.seeds, find_path("."), results, STEPS, ROUNDS)
    timed = {text: TEXTS[text] for text in TEXTS if (text, FIRST) in results.found}
    write(PAGE, {f"ladder of {text}": table(text, results, STEPS) for text in timed})
    plot(timed, results, STEPS, PAGE.with_name("ladder_loss.png"))


if __name__ == "__main__":
    cli.run(main)
