"""What a run tells: the rows of metrics.csv, its lines of progress, and the words it begins and ends with."""

import csv
import math
import shlex
import textwrap
from pathlib import Path

import torch

from gpt.baselines import Yardstick, yardstick
from gpt.checkpoint import RunFolder, load_model, run_data
from gpt.corpus import PROJECT
from gpt.data import PreparedData
from gpt.decoding import sample_documents
from gpt.loss import Evaluation, perplexity
from gpt.model import GPTModel
from gpt.tales import Verdict, entropy, judge

FINAL_SAMPLES = 100  # tales that are judged when a run ends

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
    portion = f"{step_windows * model.context_length:,} tokens"
    if config.data.windows == "document":
        portion = f"{step_windows:,} documents"
    precision = str(trainer.dtype).removeprefix("torch.")
    layers = (
        f"{model.n_layers} layers, {model.n_heads} heads"
        if model.backbone == "gpt"
        else f"{model.n_layers} LSTM layers"
    )
    lines = [
        f"model  {n_parameters:,} parameters: {layers}, {model.emb_dim} wide, context {model.context_length}",
        f"data   {data.source}: {len(data.train.tokens):,} training and {len(data.val.tokens):,} validation tokens "
        f"({data.tokenizer.name}, vocabulary {data.tokenizer.vocab_size:,})",
        f"run    {trainer.run.path}: {config.max_steps:,} steps of {portion}, "
        f"{epochs:.1f} times through the training windows, on {trainer.device} in {precision}",
    ]
    if trainer.step:
        lines.append(f"resumed at step {trainer.step:,}")
    return "\n".join(lines)


def summary(trainer) -> str:
    """What came out, where it is, and what to type next."""
    run, max_steps = trainer.run, trainer.config.max_steps
    path, last, best = run.find("last"), run.state("last"), run.state("best")
    in_runs = run.path.parent in (Path("runs"), PROJECT / "runs")
    name = shlex.quote(run.path.name if in_runs else str(run.path.absolute()))
    if last["step"] < max_steps:
        return (
            f"stopped at step {last['step']:,} of {max_steps:,}, saved in {path}\n"
            f"to resume: python scripts/train.py --run {name} --resume"
        )
    lines = [
        "",
        table(trainer.yardstick, "this run", trainer.evaluation or trainer.evaluate()),
        "",
    ]  # fmt: skip
    if trainer.yardstick.floor is None:
        texts = [run.samples.read_text(encoding="utf-8").rpartition(" ---\n")[2].strip()]
    else:
        texts, verdict = judge_samples(trainer.objective.model, trainer.data, FINAL_SAMPLES)
        lines += [describe_verdict(verdict), ""]
    lines += ["what it writes:", "", *(f"{indented(text)}\n" for text in texts[:3])]
    lines += [
        f"finished  {last['step']:,} steps, {last['tokens_seen']:,} tokens, {last['elapsed_s']:.0f} s",
        f"best      validation loss {best['best_loss']:.4f} nats per token, perplexity "
        f"{perplexity(best['best_loss']):,.2f}, at step {best['step']:,}",
        f"plot      {run.plot}",
        f"metrics   {run.metrics}",
        f"samples   {run.samples}",
        "",
        f'to generate text: python scripts/generate.py --run {name} --prompt "..."',
        f"to measure it:    python scripts/evaluate.py --run {name}",
    ]
    return "\n".join(lines)


def indented(text: str) -> str:
    """A text as it is shown among other lines: each of its lines wrapped, and moved in."""
    return "\n".join(
        textwrap.fill(line, 100, initial_indent="    ", subsequent_indent="    ") for line in text.splitlines()
    )


def table(measured: Yardstick, name: str, evaluation: Evaluation) -> str:
    """A loss among its baselines and above its floor, in every unit, from the highest down."""
    loss, bytes_per_token = evaluation.loss, evaluation.bytes_per_token
    rows = [*measured.baselines.items(), (name, loss)]
    if measured.floor is not None:
        rows += [("the tales' own -ln p, the floor", measured.floor_loss), ("their exact entropy", measured.entropy)]
    lines = [f"{'validation loss':<32}{'nats/token':>12}{'perplexity':>12}{'bits/token':>12}{'bits/byte':>12}"]
    for row, nats in sorted(rows, key=lambda row: -row[1]):
        bits = nats / math.log(2)
        lines.append(
            f"{row:<32}{nats:>12.4f}{perplexity(nats):>12,.{2 if nats < 7 else 0}f}{bits:>12.4f}"
            f"{bits / bytes_per_token:>12.4f}"
        )
    if measured.floor is not None and evaluation.of_documents:  # windows that begin anywhere have no floor of their own
        gap = evaluation.above(measured.floor)
        lines += [
            "",
            f"{name} lies {gap.loss:.4f} nats per token above the floor (standard error {gap.standard_error:.4f}): "
            f"its KL divergence from the source.",
            f"Of the gap between trigram and floor, which only looking back can close, it has closed "
            f"{100 * measured.gap_closed(loss):.1f}%.",
        ]
    return "\n".join(lines)


# --- what a model of tales writes -------------------------------------------------------------------------------------


def judge_samples(model: GPTModel, data: PreparedData, n: int, seed: int = 0) -> tuple[list[str], Verdict]:
    """n tales that a model writes at temperature 1, and what the grammar says of them."""
    texts = [data.tokenizer.decode(ids) for ids in sample_documents(model, data.tokenizer.eot_id, n, seed)]
    return texts, judge(texts, set(data.documents(data.train)))


def describe_verdict(verdict: Verdict) -> str:
    """A verdict as a table: what is accepted, and which rule the others break first."""
    rows = [("accepted by the grammar", verdict.accepted)]
    rows += [(f"first rule broken: {rule}", n) for rule, n in verdict.broken.items()]
    lines = [f"{f'{verdict.texts} sampled tales':<32}{'tales':>12}{'share':>12}"]
    lines += [f"{name:<32}{n:>12}{n / verdict.texts:>12.1%}" for name, n in rows]
    if verdict.accepted:
        unseen = f"{verdict.unseen} ({verdict.unseen / verdict.accepted:.1%})"
        lines += [
            "",
            f"Of those accepted, {unseen} are not in the training set; their mean ln p is "
            f"{verdict.log_probability:.1f} nats (that of the grammar's own tales: {-entropy():.1f}).",
        ]
    return "\n".join(lines)


def judge_checkpoints(folder: Path, n: int, seed: int, device: torch.device) -> None:
    """Judge n tales by each checkpoint of a run, print a line for each, and draw what was learnt when."""
    from gpt.plots import plot_verdicts  # matplotlib takes half a second to import

    run, verdicts = RunFolder(folder), {}
    for name in run.steps():
        model, _, checkpoint = load_model(run, name)
        data = run_data(run, checkpoint)
        if not verdicts and yardstick(data).floor is None:
            raise ValueError(f"{data.folder} does not hold tales, which alone have a grammar to be judged by")
        _, verdict = judge_samples(model.to(device), data, n, seed)
        verdicts[checkpoint.state["tokens_seen"]] = verdict
        broken = ", ".join(f"{rule} {count / n:.1%}" for rule, count in verdict.broken.items())
        print(f"{name}  accepted {verdict.accepted / n:.1%}{' | ' * bool(broken)}{broken}")
    out = run.path / "learnt.png"
    plot_verdicts(verdicts, out)
    print(f"picture      {out}")
