"""Train models of six sizes on a text, fit a power law of loss over compute, and write a table and a plot.

    python benchmarks/scaling.py
    python benchmarks/scaling.py shakespeare
    python benchmarks/scaling.py --quick

Each size is trained on TOKENS_PER_PARAMETER tokens per parameter, in runs/scaling-TEXT-WIDTH; an unfinished run is
resumed and a finished one is left alone. The law is fitted to all sizes but the largest, whose loss it then predicts.
Table and plot replace those of docs/scaling.md. Tales, whose entropy is known, take half an hour on two cores,
Shakespeare ten minutes. --quick trains a few steps of three sizes in a temporary folder and writes no page.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from objectives import PREPARED, PROJECT, script, write

from gpt.config import TrainConfig, from_dict, read_toml
from gpt.evaluation.baselines import tales_entropy_floor
from gpt.planning import plan
from gpt.run import cli
from gpt.run.logging import read_metrics
from gpt.run.plots import plot_scaling
from gpt.system.paths import find_path
from gpt.token_files import PreparedData, load_data

PAGE = PROJECT / "docs" / "scaling.md"
TEXTS = {  # name -> its config, how prepare_data.py makes its data
    "tales": ("tales", PREPARED["data/tales"]),
    "shakespeare": ("shakespeare_char_fast", ["--input=shakespeare", "--tokenizer=char"]),
}
TOKENS_PER_PARAMETER = 10
SIZES = {16: (1, 2), 24: (2, 2), 32: (2, 4), 48: (3, 4), 64: (3, 4), 96: (4, 4)}  # emb_dim -> n_layers, n_heads


@dataclass(frozen=True)
class Curve:
    """One model size, with the FLOPs spent and the loss in nats per token at each evaluation."""

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

    def __str__(self) -> str:
        return f"loss = {self.floor:.3f} + {self.factor:.4f} · (FLOPs / 10^12)^-{self.exponent:.3f}"

    def __call__(self, flops: np.ndarray | float) -> np.ndarray | float:
        return self.floor + self.factor * (np.asarray(flops) / 1e12) ** -self.exponent


def fit_law(flops: np.ndarray, losses: np.ndarray, floor: float) -> tuple[Law, float]:
    """Fit a power law to the loss above a floor by least squares of logarithms; return it and the RMS residual.

    Kaplan et al. 2020, arXiv:2001.08361; with a separate floor: Hoffmann et al. 2022, arXiv:2203.15556.
    """
    x, y = np.log(flops / 1e12), np.log(losses - floor)
    slope, constant = np.polyfit(x, y, 1)
    rest = y - slope * x - constant
    return Law(floor, float(np.exp(constant)), float(-slope)), float(np.sqrt(np.mean(rest**2)))


def fit_floor(flops: np.ndarray, losses: np.ndarray) -> Law:
    """Fit the law with its floor, for a text of unknown entropy."""
    floors = np.linspace(0, losses.min(), 2000, endpoint=False)
    return min((fit_law(flops, losses, floor) for floor in floors), key=lambda fitted: fitted[1])[0]


def train(text: str, emb_dim: int, data: PreparedData, folder: Path, settings: list[str]) -> Curve:
    """Train one size, or resume its run."""
    path = PROJECT / "configs" / f"{TEXTS[text][0]}.toml"
    n_layers, n_heads = SIZES[emb_dim]
    shape = {"emb_dim": emb_dim, "n_layers": n_layers, "n_heads": n_heads}
    config = from_dict(TrainConfig, read_toml(path))
    needs = plan.estimate_for_data(dataclasses.replace(config, model=dataclasses.replace(config.model, **shape)), data)
    per_window = config.model.context_length
    if config.data.packing == "document":
        per_window = len(data.train.tokens) / np.count_nonzero(data.train.tokens == data.tokenizer.eot_id)
    steps = round(TOKENS_PER_PARAMETER * needs.n_parameters / (config.batch_size * per_window))
    run = folder / "runs" / f"scaling-{text}-{emb_dim}"
    options = [f"--model.{name}={value}" for name, value in shape.items()]
    options += [
        f"--max_steps={steps}",
        f"--eval_every={max(1, steps // 12)}",
        "--sample_every=0",
        "--keep_checkpoints=1",
    ]
    script("train", f"--config={path}", f"--run={run}", "--resume", *options, *settings, folder=folder)
    columns = read_metrics(run / "metrics.csv")
    seen, losses = (np.array(columns[name]) for name in ("tokens_seen", "val_loss"))
    measured = np.isfinite(losses) & (seen > 0)
    flops = seen * needs.flops_per_token
    return Curve(emb_dim, n_layers, needs.n_parameters, int(seen[-1]), flops[measured], losses[measured])


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("text", nargs="?", default="tales", choices=TEXTS, help="tales (the default) or shakespeare")
    parser.add_argument("--quick", action="store_true", help="a few steps of three sizes, as a smoke test")
    arguments = parser.parse_args()
    if not arguments.quick:
        text, plot = arguments.text, PAGE.with_name(f"scaling_{arguments.text}.png")
        lines = measure(text, find_path("."), TEXTS[text][1], list(SIZES), [], plot)
        write(PAGE, {f"scaling of {text}": lines})
        return
    with tempfile.TemporaryDirectory() as folder:
        few, settings = ["--input=tales:300", "--tokenizer=bpe:2048"], ["--max_steps=6", "--eval_every=3"]
        lines = measure("tales", Path(folder), few, list(SIZES)[:3], settings, Path(folder) / "scaling.png")
        print("\n".join(lines))


def measure(
    text: str, folder: Path, prepared: list[str], sizes: list[int], settings: list[str], plot: Path
) -> list[str]:
    """Train all sizes, draw the plot, and return the lines of the page."""
    path = from_dict(TrainConfig, read_toml(PROJECT / "configs" / f"{TEXTS[text][0]}.toml")).data.path
    if not (folder / path / "meta.json").is_file():
        script("prepare_data", *prepared, f"--out={path}", folder=folder)
    data, curves = load_data(folder / path), []
    for emb_dim in sizes:
        curves.append(train(text, emb_dim, data, folder, settings))
        print(f"{emb_dim} wide: loss {curves[-1].losses[-1]:.4f} at {curves[-1].flops[-1]:.2e} FLOPs", flush=True)
    flops, losses = (np.array([getattr(curve, name)[-1] for curve in curves]) for name in ("flops", "losses"))
    entropy_floor = tales_entropy_floor(data)
    free = fit_floor(flops[:-1], losses[:-1])
    law = free
    if entropy_floor is not None:
        law = fit_law(flops[:-1], losses[:-1], entropy_floor.sum() / (len(data.val.tokens) - 1))[0]
    plot_scaling([(f"{c.n_parameters:,}", c.flops, c.losses) for c in curves], law, law.floor, plot)
    lines = [
        "| width, layers | parameters | tokens | FLOPs | loss | excess over the floor | by the law |",
        "|---|---|---|---|---|---|---|",
    ]
    for curve in curves:
        lines.append(
            f"| {curve.emb_dim}, {curve.n_layers} | {curve.n_parameters:,} | {curve.tokens / 1e6:.2f}M | "
            f"{curve.flops[-1]:.2e} | {curve.losses[-1]:.4f} | {curve.losses[-1] - law.floor:.4f} | "
            f"{law(curve.flops[-1]) - law.floor:.4f}{' (predicted)' * (curve is curves[-1])} |"
        )
    lines += ["", f"Fitted to all but the last, with a {'fitted' if law is free else 'known'} floor: {law}."]
    if law is not free:
        lines[-1] += f" With a fitted floor: {free}, which predicts {free(flops[-1]):.4f} for the last."
    return lines


if __name__ == "__main__":
    cli.run(main)
