"""How the loss falls with compute: train models of six sizes on tales, fit a power law, write the table and the plot.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --quick

Each size is trained on TOKENS_PER_PARAMETER tokens for each of its parameters, under runs/scaling-N; a run that is
there is gone on with, or left as it is where it has finished. What lies above the floor, which of tales is known, is
fitted to all sizes but the largest, whose loss is then foretold. The table and the plot replace those of
docs/scaling.md. It takes half an hour on two cores. --quick trains a few steps of three sizes in a temporary folder,
and writes no page.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from objectives import PREPARED, PROJECT, script, write

from gpt import cli, plan
from gpt.baselines import yardstick
from gpt.config import TrainConfig, from_dict, read_toml
from gpt.places import find_path
from gpt.plots import plot_scaling, read_metrics
from gpt.prepared import PreparedData, load_data

PAGE = PROJECT / "docs" / "scaling.md"
CONFIG = PROJECT / "configs" / "tales.toml"
TOKENS_PER_PARAMETER = 10
SIZES = {16: (1, 2), 24: (2, 2), 32: (2, 4), 48: (3, 4), 64: (3, 4), 96: (4, 4)}  # emb_dim -> n_layers, n_heads


@dataclass(frozen=True)
class Curve:
    """One size: FLOPs spent, and loss in nats per token, at each evaluation of its run."""

    emb_dim: int
    n_layers: int
    n_parameters: int
    tokens: int
    flops: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class Law:
    """loss = floor + factor · (FLOPs / 10^12)^-exponent."""

    floor: float
    factor: float
    exponent: float

    def __call__(self, flops: np.ndarray | float) -> np.ndarray | float:
        return self.floor + self.factor * (np.asarray(flops) / 1e12) ** -self.exponent


def fit(flops: np.ndarray, losses: np.ndarray, floor: float) -> tuple[Law, float]:
    """The power law of what lies above a floor, by least squares of logarithms; and the root of their mean square.

    Kaplan et al. 2020, arXiv:2001.08361; the floor as a term of its own: Hoffmann et al. 2022, arXiv:2203.15556.
    """
    x, y = np.log(flops / 1e12), np.log(losses - floor)
    slope, constant = np.polyfit(x, y, 1)
    rest = y - slope * x - constant
    return Law(floor, float(np.exp(constant)), float(-slope)), float(np.sqrt(np.mean(rest**2)))


def fit_floor(flops: np.ndarray, losses: np.ndarray) -> Law:
    """The law with the floor that fits best, as for a text whose entropy nobody knows."""
    floors = np.linspace(0, losses.min(), 2000, endpoint=False)
    return min((fit(flops, losses, floor) for floor in floors), key=lambda fitted: fitted[1])[0]


def train(emb_dim: int, data: PreparedData, folder: Path, settings: list[str]) -> Curve:
    """Train a size to its end, or go on with it."""
    n_layers, n_heads = SIZES[emb_dim]
    shape = {"emb_dim": emb_dim, "n_layers": n_layers, "n_heads": n_heads}
    config = from_dict(TrainConfig, read_toml(CONFIG))
    needs = plan.estimate_on(dataclasses.replace(config, model=dataclasses.replace(config.model, **shape)), data)
    per_step = config.batch_size * len(data.train.tokens) / np.count_nonzero(data.train.tokens == data.tokenizer.eot_id)
    steps = round(TOKENS_PER_PARAMETER * needs.n_parameters / per_step)
    run = folder / "runs" / f"scaling-{emb_dim}"
    options = [f"--model.{name}={value}" for name, value in shape.items()]
    options += [f"--max_steps={steps}", f"--eval_every={max(1, steps // 12)}", "--sample_every=0", "--keep=1"]
    script("train", f"--config={CONFIG}", f"--run={run}", "--resume", *options, *settings, folder=folder)
    columns = read_metrics(run / "metrics.csv")
    seen, losses = (np.array(columns[name]) for name in ("tokens_seen", "val_loss"))
    measured = np.isfinite(losses) & (seen > 0)
    flops = seen * needs.flops_per_token
    return Curve(emb_dim, n_layers, needs.n_parameters, int(seen[-1]), flops[measured], losses[measured])


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps of each, to see that it works")
    if not parser.parse_args().quick:
        tables = measure(find_path("."), PREPARED["data/tales"], list(SIZES), [], PAGE.with_name("scaling_law.png"))
        write(PAGE, tables)
        return
    with tempfile.TemporaryDirectory() as folder:
        few, settings = ["--input=tales:300", "--tokenizer=bpe:2048"], ["--max_steps=6", "--eval_every=3"]
        tables = measure(Path(folder), few, list(SIZES)[:3], settings, Path(folder) / "scaling_law.png")
        print("\n".join(tables["scaling"]))


def measure(folder: Path, prepared: list[str], sizes: list[int], settings: list[str], plot: Path) -> dict:
    """Train sizes in a working folder, draw the plot; the page's tables by their names."""
    if not (folder / "data" / "tales" / "meta.json").is_file():
        script("prepare_data", *prepared, "--out=data/tales", folder=folder)
    data = load_data(folder / "data" / "tales")
    floor, curves = yardstick(data).floor_loss, []
    for emb_dim in sizes:
        curves.append(train(emb_dim, data, folder, settings))
        print(f"{emb_dim} wide: loss {curves[-1].losses[-1]:.4f} at {curves[-1].flops[-1]:.2e} FLOPs", flush=True)
    flops, losses = (np.array([getattr(curve, name)[-1] for curve in curves]) for name in ("flops", "losses"))
    law, free = fit(flops[:-1], losses[:-1], floor)[0], fit_floor(flops[:-1], losses[:-1])
    plot_scaling([(f"{c.n_parameters:,}", c.flops, c.losses) for c in curves], law, floor, plot)
    lines = [
        "| width, layers | parameters | tokens | FLOPs | loss | above the floor | the law |",
        "|---|---|---|---|---|---|---|",
    ]
    for curve in curves:
        lines.append(
            f"| {curve.emb_dim}, {curve.n_layers} | {curve.n_parameters:,} | {curve.tokens / 1e6:.2f}M | "
            f"{curve.flops[-1]:.2e} | {curve.losses[-1]:.4f} | {curve.losses[-1] - floor:.4f} | "
            f"{law(curve.flops[-1]) - floor:.4f}{' (foretold)' * (curve is curves[-1])} |"
        )
    known, fitted = (
        f"{found.floor:.4f} + {found.factor:.4f} · (FLOPs / 10^12)^-{found.exponent:.3f}" for found in (law, free)
    )
    lines += [
        "",
        f"The law, fitted to all but the last: loss = {known}. With a floor that is fitted too: {fitted}, which "
        f"foretells {free(flops[-1]):.4f} for the last, where {losses[-1]:.4f} was measured.",
    ]
    return {"scaling": lines}


if __name__ == "__main__":
    cli.run(main)
