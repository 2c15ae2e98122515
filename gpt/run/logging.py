"""What a run tells: the rows of metrics.csv, its lines of progress, and the words it begins and ends with."""

import contextlib
import math
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from gpt.evaluation.baselines import Baselines
from gpt.evaluation.samples import describe_verdict, judge_samples
from gpt.loss import Evaluation, perplexity
from gpt.planning import plan
from gpt.planning.hardware import LOCAL
from gpt.planning.throughput import probe
from gpt.system.files import append_text
from gpt.system.paths import PROJECT, RUNS
from gpt.text.tales import first_broken_rule

FINAL_SAMPLES = 100  # tales that are judged when a run ends

COLUMNS = [
    "step", "tokens_seen", "train_loss", "train_perplexity", "val_loss", "val_loss_se", "val_perplexity",
    "val_bits_per_byte", "lr", "grad_norm", "tokens_per_second", "elapsed_s",
]  # fmt: skip


def begin(metrics: Path, figures: Sequence[str] = ()) -> None:
    """Write the header of a metrics.csv, with a column for each of an objective's further figures."""
    metrics.write_text(",".join([*COLUMNS, *figures]) + "\n", encoding="utf-8", newline="\n")


def row(trainer, evaluation: Evaluation | None) -> dict[str, float]:
    """The row of metrics.csv for a Trainer's current step, by column; `evaluation` where it has just made one."""
    figures: dict[str, float] = {"step": trainer.step, "tokens_seen": trainer.tokens_seen}
    if trainer.loss_tokens:
        figures["train_loss"] = trainer.loss_sum / trainer.loss_tokens
        figures["train_perplexity"] = perplexity(figures["train_loss"])
        figures["lr"] = trainer.optimizer.param_groups[0]["lr"]
        figures["grad_norm"] = trainer.grad_norm
    if trainer.timed_seconds:
        figures["tokens_per_second"] = trainer.timed_tokens / trainer.timed_seconds
    if evaluation:
        figures["val_loss"], figures["val_perplexity"] = evaluation.loss, evaluation.perplexity
        figures |= evaluation.metrics
        if not math.isnan(evaluation.bytes_per_token):
            figures["val_bits_per_byte"] = evaluation.bits_per_byte
        if not math.isnan(evaluation.standard_error):
            figures["val_loss_se"] = evaluation.standard_error
    return {**figures, "elapsed_s": trainer.elapsed_s}


def append(metrics: Path, row: dict[str, float], figures: Sequence[str] = ()) -> None:
    """Append a row to a metrics.csv; a column that the row lacks stays empty."""
    append_text(metrics, ",".join(_figure(name, row.get(name)) for name in [*COLUMNS, *figures]) + "\n")


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
    parts += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in row.items() if name not in COLUMNS]
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    return " | ".join([*parts, f"{row['elapsed_s']:.0f} s"])


def progress_postfix(trainer) -> str:
    """How training goes, beside the bar of progress: since the last row of metrics."""
    loss, speed = trainer.loss_sum / trainer.loss_tokens, trainer.timed_tokens / trainer.timed_seconds
    return f"loss {loss:.3f}, perplexity {perplexity(loss):,.1f}, {speed:,.0f} tokens/s"


def draw(trainer) -> None:
    """Draw loss.png from metrics.csv."""
    from gpt.run.plots import plot_losses  # matplotlib takes half a second to import

    run, measure = trainer.run, trainer.baselines
    try:
        plot_losses(run.metrics, run.plot, measure)
    except (ValueError, KeyError, TypeError) as error:  # an edited metrics.csv is no reason to stop
        trainer.tell(f"{run.plot} was not drawn, since {run.metrics} is damaged ({error})")
    except OSError as error:  # nor is a full disk, while the next checkpoint may find room
        trainer.tell(f"{run.plot} was not drawn ({error.strerror})")


def diverged(
    trainer, what: str, batch: dict[str, Tensor] | None = None, examples: Sequence[int] = ()
) -> FloatingPointError:
    """The error to stop with: what happened, what helps, and what there is to go on from. The step's batch is saved, to
    be looked at."""
    run, steps = trainer.run, trainer.run.steps()
    good = f"the last good checkpoint is {steps[-1]}" if steps else "there is no checkpoint yet"
    if batch and trainer.ctx.is_main:
        with contextlib.suppress(OSError):  # a full disk is not what went wrong here
            run.save_batch(batch, step=trainer.step + 1, examples=list(examples))
            good = f"its batch is in {run.not_finite}, {good}"
    return FloatingPointError(
        f"{what}; {good}. A lower --optim.lr helps most often, with --resume or in a new run with a longer "
        f"--optim.warmup_steps"
    )


def describe(trainer) -> str:
    """What a Trainer is about to train, on what, for how long."""
    config, data, model = trainer.config, trainer.data, trainer.config.model
    n_parameters, n_trained = (
        sum(p.numel() for p in parameters) for parameters in (trainer.objective.parameters(), trainer.parameters)
    )
    trained = "" if n_trained == n_parameters else f", of which {n_trained:,} are trained"
    step_windows = config.batch_size * config.grad_accum_steps
    epochs = config.max_steps * step_windows / len(trainer.examples)
    portion = f"{step_windows * model.context_length:,} tokens"
    if config.data.packing == "document":
        portion = f"{step_windows:,} documents"
    precision = str(trainer.dtype).removeprefix("torch.")
    layers = (
        f"{model.n_layers} layers, {model.n_heads} heads"
        if model.backbone == "gpt"
        else f"{model.n_layers} LSTM layers"
    )
    lines = [
        f"model  {n_parameters:,} parameters{trained}: {layers}, {model.emb_dim} wide, context {model.context_length}",
        f"data   {data.source}: {len(data.train.tokens):,} training and {len(data.val.tokens):,} validation tokens "
        f"({data.tokenizer.name}, vocabulary {data.tokenizer.vocab_size:,})",
        f"run    {trainer.run.path}: {config.max_steps:,} steps of {portion}, "
        f"{epochs:.1f} times through the training windows, on {trainer.device} in {precision}",
    ]
    needs = plan.estimate_on(config, data, replace(LOCAL, n=trainer.ctx.world_size))
    takes_long = needs.tokens * needs.flops_per_token > 1e11  # else the run would be over before its time is known
    seconds = None
    if takes_long:
        exchange = trainer.ctx.all_reduce_seconds(n_trained, trainer.device)
        exchange *= 1.5 if config.parallel == "fsdp" else 1  # weights twice and gradients once, half a sum each
        seconds = plan.seconds(needs, replace(probe(needs), exchange=exchange), trainer.step)
    lines.append(plan.line(needs, plan.memory_per_process(config, trainer.ctx.local_world_size), seconds))
    if trainer.step:
        lines.append(f"resumed at step {trainer.step:,}")
    return "\n".join(lines)


def summary(trainer) -> str:
    """What came out, where it is, and what to type next."""
    run, max_steps = trainer.run, trainer.config.max_steps
    path, last = run.find("last"), run.state("last")
    in_runs = run.path.parent in (RUNS, PROJECT / RUNS)
    name = shlex.quote(run.path.name if in_runs else str(run.path.absolute()))
    if last["step"] < max_steps:
        return (
            f"stopped at step {last['step']:,} of {max_steps:,}, saved in {path}\n"
            f"to resume: python scripts/train.py --run {name} --resume"
        )
    has_grammar = trainer.baselines.entropy_floor is not None
    name_of_model = f"this run, step {last['step']:,}"
    lines = ["", comparison(trainer.baselines, name_of_model, trainer.evaluation or trainer.evaluate()), ""]
    if not has_grammar:
        last_sample = run.samples.read_text(encoding="utf-8").rpartition(" ---\n")[2].strip()
        lines += ["what it writes:", "", indented(last_sample)]
    else:
        texts, verdict = judge_samples(trainer.objective, trainer.data, FINAL_SAMPLES)
        lines += [describe_verdict(verdict), "", "the first three:"]
        for text in texts[:3]:
            rule = first_broken_rule(text)
            lines += ["", indented(text), f"    ({f'breaks the rule: {rule}' if rule else 'accepted'})"]
    lines.append("")
    lines += [
        f"finished  {last['step']:,} steps, {last['tokens_seen']:,} tokens, {last['elapsed_s']:.0f} s",
        f"best      validation loss {last['best_loss']:.4f} nats per token, perplexity "
        f"{perplexity(last['best_loss']):,.2f}, at step {int(last['best'].removeprefix('step-')):,}",
        f"plot      {run.plot}",
        f"metrics   {run.metrics}",
        f"samples   {run.samples}",
        "",
        f'to generate text: python scripts/generate.py --run {name} --prompt "..."',
        f"to measure it:    python scripts/evaluate.py --run {name}",
        *([f"learnt when:      python scripts/evaluate.py --run {name} --checkpoint all"] * has_grammar),
    ]
    return "\n".join(lines)


def describe_evaluation(evaluation: Evaluation) -> str:
    """A loss, and what else an objective measures, a line for each."""
    lines = [f"loss            {evaluation.loss:.4f} nats, standard error {evaluation.standard_error:.4f}"]
    lines += [f"{name.replace('_', ' '):<16}{value:.4f}" for name, value in evaluation.metrics.items()]
    return "\n".join(lines)


def indented(text: str) -> str:
    """A text as it is shown among other lines: each of its lines wrapped, and moved in."""
    return "\n".join(
        textwrap.fill(line, 100, initial_indent="    ", subsequent_indent="    ") for line in text.splitlines()
    )


def comparison(baselines: Baselines, name: str, evaluation: Evaluation) -> str:
    """A loss among its baselines and above its floor as a table, in every unit, from the highest down."""
    rows = [*baselines.losses.items(), (name, evaluation.loss)]
    if baselines.entropy_floor is not None:
        rows += [
            ("floor: -ln p of these tales", baselines.entropy_floor_loss),
            ("exact entropy of all tales", baselines.entropy),
        ]
    per_byte = "" if math.isnan(evaluation.bytes_per_token) else f"{'bits/byte':>12}"
    lines = [f"{'validation loss':<32}{'nats/token':>12}{'perplexity':>12}{'bits/token':>12}{per_byte}"]
    for row, nats in sorted(rows, key=lambda row: -row[1]):
        bits = nats / math.log(2)
        per_byte = "" if math.isnan(evaluation.bytes_per_token) else f"{bits / evaluation.bytes_per_token:>12.4f}"
        lines.append(f"{row:<32}{nats:>12.4f}{perplexity(nats):>12,.{2 if nats < 7 else 0}f}{bits:>12.4f}{per_byte}")
    if baselines.entropy_floor is not None:
        gap = evaluation.excess_over_floor(baselines.entropy_floor)
        error = "" if math.isnan(gap.standard_error) else f" (standard error {gap.standard_error:.4f})"
        lines += [
            "",
            f"The loss lies {gap.loss:.4f} nats per token above the floor{error}: an estimate of KL(tales || model).",
            f"Of the gap between trigram and floor, which closes by looking further back, it has closed "
            f"{100 * baselines.gap_closed(gap.loss):.1f}%.",
        ]
    return "\n".join(lines)
