"""What a run tells: the rows of metrics.csv, its lines of progress, and the words it begins and ends with."""

import csv
import shlex
from pathlib import Path

from gpt.checkpoint import RunFolder
from gpt.corpus import PROJECT
from gpt.loss import perplexity

COLUMNS = [
    "step", "tokens_seen", "train_loss", "train_perplexity", "val_loss", "val_loss_se", "val_perplexity",
    "val_bits_per_byte", "lr", "grad_norm", "tokens_per_second", "elapsed_s",
]  # fmt: skip


def begin(metrics: Path) -> None:
    """Write the header of a metrics.csv."""
    with metrics.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(COLUMNS)


def append(metrics: Path, row: dict[str, float]) -> None:
    """Append a row to a metrics.csv; a column that the row lacks stays empty."""
    with metrics.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([_figure(name, row.get(name)) for name in COLUMNS])


def _figure(name: str, value: float | None) -> str:
    """A figure as metrics.csv holds it: nine digits tell any two float32 losses apart."""
    return "" if value is None else f"{value:.1f}" if name in ("elapsed_s", "tokens_per_second") else f"{value:.9g}"


def line(row: dict[str, float], max_steps: int) -> str:
    """A row of metrics as a line for people."""
    parts = [f"step {row['step']:>{len(str(max_steps))}}/{max_steps}"]
    if "train_loss" in row:
        parts.append(f"train loss {row['train_loss']:.3f}, perplexity {row['train_perplexity']:,.1f}")
    if "val_loss" in row:
        parts.append(f"val loss {row['val_loss']:.3f}, perplexity {row['val_perplexity']:,.1f}")
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    return " | ".join([*parts, f"{row['elapsed_s']:.0f} s"])


def describe(trainer) -> str:
    """What a Trainer is about to train, on what, for how long."""
    config, data, model = trainer.config, trainer.data, trainer.config.model
    n_parameters = sum(p.numel() for p in trainer.parameters)
    step_windows = config.batch_size * config.accumulate
    epochs = config.max_steps * step_windows / len(trainer.windows)
    precision = str(trainer.dtype).removeprefix("torch.")
    lines = [
        f"model  {n_parameters:,} parameters: {model.n_layers} layers, {model.n_heads} heads, {model.emb_dim} wide, "
        f"context {model.context_length}",
        f"data   {data.source}: {len(data.train.tokens):,} training and {len(data.val.tokens):,} validation tokens "
        f"({data.tokenizer.name}, vocabulary {data.tokenizer.vocab_size:,})",
        f"run    {trainer.run.path}: {config.max_steps:,} steps of {step_windows * model.context_length:,} tokens, "
        f"{epochs:.1f} times through the training windows, on {trainer.device} in {precision}",
    ]
    if trainer.step:
        lines.append(f"resumed at step {trainer.step:,}")
    return "\n".join(lines)


def summary(run: RunFolder, max_steps: int) -> str:
    """What came out, where it is, and what to type next."""
    path, last, best = run.find("last"), run.state("last"), run.state("best")
    in_runs = run.path.parent in (Path("runs"), PROJECT / "runs")
    name = shlex.quote(run.path.name if in_runs else str(run.path.absolute()))
    if last["step"] < max_steps:
        return (
            f"stopped at step {last['step']:,} of {max_steps:,}, saved in {path}\n"
            f"to resume: python scripts/train.py --run {name} --resume"
        )
    sample = run.samples.read_text(encoding="utf-8").rpartition(" ---\n")[2].strip()
    lines = [
        f"finished  {last['step']:,} steps, {last['tokens_seen']:,} tokens, {last['elapsed_s']:.0f} s",
        f"best      validation loss {best['best_loss']:.4f} nats per token, perplexity "
        f"{perplexity(best['best_loss']):,.2f}, at step {best['step']:,}",
        f"plot      {run.plot}",
        f"metrics   {run.metrics}",
        f"samples   {run.samples}, the last one:",
        "",
        *("    " + text for text in sample.splitlines()),
        "",
        f'to generate text: python scripts/generate.py --run {name} --prompt "..."',
    ]
    return "\n".join(lines)
