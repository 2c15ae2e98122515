"""Train a small model on puzzles from few demonstrations, go on in several ways, and write docs/post-training.md.

    python benchmarks/countdown.py
    python benchmarks/countdown.py --seconds 120 --seeds 1 --jobs 1
    python benchmarks/countdown.py --redraw
    python benchmarks/countdown.py --quick

The start is the run countdown-few of configs/posttrain/countdown.toml, which is trained first if it is not there. Each
run has its own process and the same time, as in benchmarks/post_training.py. Results are lines of docs/countdown.jsonl.
Everything takes 25 minutes on two cores. --quick trains for a second each, as a smoke test, and writes no page.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from equal_time import Results, Run, measure, parse
from ladder import mean_and_spread
from matplotlib import colormaps
from matplotlib.figure import Figure
from objectives import PROJECT, script, write

from gpt.config import ObjectiveConfig
from gpt.evaluation.metrics import pass_at_k
from gpt.exchange.models import load_model
from gpt.model import GPTModel
from gpt.objectives.grpo import GRPO
from gpt.objectives.rewards import find_reward
from gpt.objectives.rollouts import Prompts, sample_rollouts
from gpt.run import cli
from gpt.system.files import atomic_file
from gpt.system.memory import set_allocator_flags
from gpt.system.paths import find_path
from gpt.token_files import PreparedData, load_data

CONFIGS = PROJECT / "configs" / "posttrain"
PAGE = PROJECT / "docs" / "post-training.md"
RESULTS = PROJECT / "docs" / "countdown.jsonl"
SEEDS, SECONDS = (1, 2, 3), 60.0
BASE, FEW, ENDLESS = "runs/countdown-few", "data/countdown_few", "data/countdown"
HELD_OUT = "--val_input=countdown-test:200:2"
PREPARED = {  # folder -> how prepare_data.py makes it
    FEW: ["--input=countdown:2000:1", HELD_OUT, "--tokenizer=char"],
    ENDLESS: ["--input=countdown:200000:3", HELD_OUT, f"--tokenizer={FEW}/tokenizer.json"],
}
K = 16
ANSWERS, CURVE_ANSWERS = 32, 16  # sampled for each held-out puzzle at the end, and for a point of a curve
ROWS = 640  # answers sampled at once


def read(run: Run, data: str, folder: Path) -> Path:
    """Train on demonstrations."""
    return run.train(CONFIGS / "countdown.toml", {"init_from": str(folder / BASE), "data.path": str(folder / data)},
                     run.seconds)  # fmt: skip


def grpo(**options: float) -> Callable[[Run, Path], Path]:
    """Return reinforcement learning on puzzles without answers, with some options of the objective changed."""

    def train(run: Run, folder: Path) -> Path:
        changed = {"init_from": str(folder / BASE), "data.path": str(folder / ENDLESS)}
        changed |= {f"objective.{name}": value for name, value in options.items()}
        return run.train(CONFIGS / "grpo_countdown.toml", changed, run.seconds)

    return train


GRPO_PLAIN = "grpo, without demonstrations"
METHODS: dict[str, Callable[[Run, Path], Path]] = {
    "no further training": lambda run, folder: folder / BASE,
    "the same 2,000 demonstrations again": lambda run, folder: read(run, FEW, folder),
    "demonstrations that it has not read": lambda run, folder: read(run, ENDLESS, folder),
    GRPO_PLAIN: grpo(),
}
OPTIONS: dict[str, Callable[[Run, Path], Path]] = {
    "beta = 0.05": grpo(beta=0.05),
    "passes = 4": grpo(passes=4),
    "passes = 4, clip = 0.2": grpo(passes=4, clip=0.2),
    "normalize = true": grpo(normalize=True),
    "length_norm = true": grpo(length_norm=True),
}
ALL = METHODS | OPTIONS


def judge(model: GPTModel, data: PreparedData, n: int, seed: int) -> list[float]:
    """Return pass@1 and pass@K on the validation puzzles, from n answers to each at temperature 1."""
    prompts, reward = Prompts(data, data.val, model.config.context_length), find_reward("countdown")
    size, found = max(1, ROWS // n), []
    for begin in range(0, len(prompts), size):
        part = range(begin, min(begin + size, len(prompts)))
        seeds = [1_000_003 * seed + index for index in part]
        rollouts, _ = sample_rollouts(model, data.tokenizer, [prompts[i] for i in part], n, seeds, reward)
        found += [sum(r.reward > 0 for r in rollouts[i : i + n]) for i in range(0, len(rollouts), n)]
    return [round(statistics.fmean(pass_at_k(n, right, k) for right in found), 4) for k in (1, K)]


def train(method: str, seed: int, seconds: float, folder: Path, n: int, n_curve: int) -> dict:
    """Return the result of one run, in this process. `n` answers to each puzzle judge it, `n_curve` a point."""
    set_allocator_flags()
    data = load_data(folder / ENDLESS)
    with tempfile.TemporaryDirectory() as name:
        run = Run(seed, seconds, Path(name), lambda model: judge(model, data, n_curve, seed))
        path = ALL[method](run, folder)
        parts = run.seconds_by_part()
        model, _, checkpoint = load_model(path, "last")
    pass_1, pass_k = judge(model, data, n, seed)
    start = load_model(folder / BASE, "last")[0]
    metrics = GRPO(model, ObjectiveConfig("grpo", reward="countdown"), start).evaluate(checkpoint.config, data).metrics
    figures = {"pass_1": pass_1, "pass_k": pass_k, "kl": metrics["val_kl"], "length": metrics["val_length"]}
    figures |= {"steps": run.steps, "threads": torch.get_num_threads(), **parts}
    return {"method": method, "seed": seed, "seconds": seconds, **figures, "curve": run.curve}


# --- the page ---------------------------------------------------------------------------------------------------------


def table(results: Results, seconds: float) -> list[str]:
    """Return the table of all methods: means over seeds, with the standard deviation between them."""
    lines = [f"| further training | pass@1 | pass@{K} | steps |", "|---|---|---|---|"]
    for method in METHODS:
        if rows := results.of(method, seconds):
            shown = (mean_and_spread([row[name] for row in rows], ".1%") for name in ("pass_1", "pass_k"))
            steps = statistics.fmean(row["steps"] for row in rows)
            lines.append(f"| {method} | {' | '.join(shown)} | {steps:,.0f} |")
    return lines


def table_of_options(results: Results, seconds: float) -> list[str]:
    """Return the table of grpo with each of its options: means over the seeds that all of them have, with the standard
    deviation between these."""
    rows_of = {method: results.of(method, seconds) for method in (GRPO_PLAIN, *OPTIONS)}
    seeds = set.intersection(*({row["seed"] for row in rows} for rows in rows_of.values()))
    lines = [f"| grpo | pass@1 | pass@{K} | KL to the start, nats per answer | tokens per answer | steps |"]
    lines.append(f"|{'---|' * 6}")
    for method, found in rows_of.items():
        if rows := [row for row in found if row["seed"] in seeds]:
            forms = {"pass_1": ".1%", "pass_k": ".1%", "kl": ".3f", "length": ".2f", "steps": ",.0f"}
            shown = (mean_and_spread([row[name] for row in rows], form) for name, form in forms.items())
            name = "no option" if method == GRPO_PLAIN else f"`{method}`"
            lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def plot(results: Results, seconds: float, out: Path) -> None:
    """Plot pass@1 and pass@K over the seconds, means over seeds."""
    figure = Figure(figsize=(11.5, 4.2), dpi=110, layout="constrained")
    for column, (axes, k) in enumerate(zip(figure.subplots(1, 2, sharey=True), (1, K), strict=True), 1):
        for number, method in enumerate(METHODS):
            points = list(zip(*(row["curve"] for row in results.of(method, seconds)), strict=False))
            if points:  # by point, then by seed
                lines = [[statistics.fmean(row[i] for row in of_seeds) for i in (0, column)] for of_seeds in points]
                axes.plot(*zip(*lines, strict=True), color=colormaps["tab10"](number), marker=".", label=method)
        axes.set_title(f"pass@{k}", loc="left", fontsize=10)
        axes.set_xlabel("seconds of sampling, judging and training")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("share of 200 held-out puzzles")
    figure.axes[0].legend(frameon=False, fontsize=8)
    with atomic_file(out) as temporary:
        figure.savefig(temporary)


def prepare(folder: Path, prepared: dict[str, list[str]], settings: list[str]) -> None:
    """Prepare the data and train the start in a working folder, unless they are there."""
    for path, arguments in prepared.items():
        if not (folder / path / "meta.json").is_file():
            script("prepare_data", *arguments, f"--out={path}", folder=folder)
    config = f"--config={CONFIGS / 'countdown.toml'}"
    script("train", config, f"--run={folder / BASE}", "--resume", *settings, folder=folder)


def main() -> None:
    parser = cli.Parser(__doc__)
    arguments = parse(parser, SEEDS, SECONDS)
    if arguments.quick:
        with tempfile.TemporaryDirectory() as name:
            folder, few = Path(name), "--val_input=countdown-test:8:2"
            small = {path: [few if a == HELD_OUT else a for a in options] for path, options in PREPARED.items()}
            small[ENDLESS][0] = "--input=countdown:3000:3"
            prepare(folder, small, ["--max_steps=3", "--eval_every=0", "--sample_every=0"])
            results = Results(folder / "results.jsonl")
            measure([(method, 1, 1.0, folder, K, K) for method in ALL], 2, results, train)
            plot(results, 1.0, folder / "countdown.png")
            print("\n".join([*table(results, 1.0), *table_of_options(results, 1.0)]))
        return
    results, sizes = Results(RESULTS), (find_path("."), ANSWERS, CURVE_ANSWERS)
    if not arguments.redraw:
        prepare(find_path("."), PREPARED, [])
        jobs = [(method, seed, arguments.seconds, *sizes) for seed in arguments.seeds for method in ALL]
        measure(jobs, arguments.jobs, results, train)
    plot(results, arguments.seconds, PAGE.with_name("countdown.png"))
    picture = f"![pass@1 and pass@{K} over {arguments.seconds:.0f} seconds of further training](countdown.png)"
    tables = {"countdown": [*table(results, arguments.seconds), "", picture]}
    write(PAGE, tables | {"options": table_of_options(results, arguments.seconds)})


if __name__ == "__main__":
    cli.run(main)
