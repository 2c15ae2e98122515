"""The text that a run prints: what it will train, a line per row of metrics, its results."""

import math
import shlex
import textwrap
from dataclasses import replace

from gpt.checkpoint import read_state
from gpt.config import GPTConfig
from gpt.evaluation.baselines import Baselines
from gpt.evaluation.samples import check_samples, describe_grammar, describe_variety
from gpt.loss import Evaluation, perplexity
from gpt.planning import plan
from gpt.planning.hardware import LOCAL
from gpt.planning.memory import n_micro_batches
from gpt.planning.throughput import busy_notice, estimate_seconds, measure_throughput
from gpt.planning.utilisation import seconds_per_token
from gpt.run.advice import advise
from gpt.run.runs import read_metrics
from gpt.system.paths import PROJECT, RUNS
from gpt.text.tales import first_broken_rule
from gpt.trainer import Trainer

FINAL_SAMPLES = 100  # tales that are checked by the grammar when a run ends


COLUMNS = [
    "step", "tokens_seen", "train_loss", "train_perplexity", "val_loss", "val_loss_se", "val_perplexity",
    "val_bits_per_byte", "lr", "grad_norm", "tokens_per_second", "mfu", "elapsed_s",
]  # fmt: skip


def metrics_row(trainer: Trainer, evaluation: Evaluation | None) -> dict[str, float]:
    """Return a row of metrics.csv, by column: training since the row before, and the evaluation if there is one.

    Where the objective counts something else than tokens, so do tokens_seen and tokens_per_second, and a loss has no
    perplexity.
    """
    row: dict[str, float] = {"step": trainer.step, "tokens_seen": trainer.tokens_seen}
    if trainer.sums:
        loss_sum, n_tokens, *sums, n_steps = trainer.sums
        row["train_loss"] = loss_sum / n_tokens
        if trainer.objective.unit == "token":
            row["train_perplexity"] = perplexity(row["train_loss"])
        row["lr"] = trainer.optimizer.param_groups[0]["lr"]
        row["grad_norm"] = trainer.grad_norm
        row |= zip(trainer.objective.training_metrics, (total / n_steps for total in sums), strict=True)
    if trainer.timed_seconds:
        row["tokens_per_second"] = trainer.timed_tokens / trainer.timed_seconds
        if seconds := seconds_per_token(trainer):
            row["mfu"] = row["tokens_per_second"] * seconds
    if evaluation:
        row |= {"val_loss": evaluation.loss, **evaluation.metrics}
        if trainer.objective.unit == "token":
            row["val_perplexity"] = evaluation.perplexity
        if not math.isnan(evaluation.bytes_per_token):
            row["val_bits_per_byte"] = evaluation.bits_per_byte
        if not math.isnan(evaluation.standard_error):
            row["val_loss_se"] = evaluation.standard_error
    return {**row, "elapsed_s": trainer.elapsed_s}


def progress_line(row: dict[str, float], max_steps: int, unit: str = "token") -> str:
    """Format a row of metrics.csv as a line for people."""

    def loss(split: str) -> str:
        perplexity = f", perplexity {row[f'{split}_perplexity']:,.1f}" if f"{split}_perplexity" in row else ""
        return f"{split} loss {row[f'{split}_loss']:.3f}{perplexity}"

    parts = [f"step {row['step']:>{len(str(max_steps))}}/{max_steps}"]
    parts += [loss(split) for split in ("train", "val") if f"{split}_loss" in row]
    parts += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in row.items() if name not in COLUMNS]
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:,.0f} {unit}s/s" + (f", MFU {row['mfu']:.1%}" if "mfu" in row else ""))
    return " | ".join([*parts, f"{row['elapsed_s']:.0f} s"])


def progress_postfix(trainer: Trainer) -> str:
    """Format the training loss and speed since the last row of metrics, for the progress bar."""
    loss, speed = trainer.sums[0] / trainer.sums[1], trainer.timed_tokens / trainer.timed_seconds
    unit = trainer.objective.unit
    level = f", perplexity {perplexity(loss):,.1f}" if unit == "token" else ""
    return f"loss {loss:.3f}{level}, {speed:,.0f} {unit}s/s"


def describe(trainer: Trainer) -> str:
    """Describe what a Trainer is about to train, on what, for how long, and what it needs."""
    config, data, model = trainer.config, trainer.data, trainer.config.model
    n_parameters = sum(p.numel() for p in trainer.objective.parameters())
    n_trained = sum(p.numel() for p in trainer.parameters)
    trained = "" if n_trained == n_parameters else f", {n_trained:,} of them trained"
    step_examples = config.batch_size * config.grad_accum_steps
    epochs = config.max_steps * step_examples / len(trainer.examples)
    per_step = f"{step_examples * model.context_length:,} tokens"
    if config.data.packing == "document":
        per_step = f"{step_examples:,} {trainer.objective.overlong(data)[0]}"
    precision = str(trainer.dtype).removeprefix("torch.")
    lines = [
        f"model  {n_parameters:,} parameters{trained}: {describe_shape(model)}",
        f"data   {data.source}: {len(data.train.tokens):,} training and {len(data.val.tokens):,} validation tokens "
        f"({data.tokenizer.name}, vocabulary {data.tokenizer.vocab_size:,})",
        f"run    {trainer.run.path}: {config.max_steps:,} steps of {per_step}, {epochs:.1f} epochs, "
        f"on {trainer.device} in {precision}",
        _needs(trainer, n_trained),
    ]
    if trainer.step:
        lines.append(f"resumed at step {trainer.step:,}")
    return "\n".join(lines)


def describe_shape(model: GPTConfig) -> str:
    """Describe a model's layers, width and context."""
    layers = f"{model.n_layers} LSTM layers"
    if model.backbone == "gpt":
        layers = f"{model.n_layers} layers, {model.n_heads} heads"
    return f"{layers}, {model.emb_dim} wide, context {model.context_length}"


def _needs(trainer: Trainer, n_trained: int) -> str:
    """Describe the memory, disk and time that the run needs."""
    config, ctx = trainer.config, trainer.ctx
    needs = plan.estimate_for_data(
        config, trainer.data, replace(LOCAL, n=ctx.world_size, per_node=ctx.local_world_size)
    )
    seconds, notice = None, ""
    if needs.trained_tokens * needs.flops_per_token > 1e11:  # a shorter run would end before its time is known
        communication = ctx.all_reduce_seconds(n_trained, trainer.device)
        if config.parallel != "ddp":  # in each pass weights are gathered twice and gradients summed, half a sum each
            communication *= n_micro_batches(config, needs.hardware) * (2 * trainer.dtype.itemsize + 4) / 8
        notice = busy_notice(trainer.device) if ctx.world_size == 1 else ""  # the other processes are no strangers
        throughput = replace(measure_throughput(needs), communication=communication)
        seconds = estimate_seconds(needs, throughput, trainer.step)
    summary = plan.summarize_plan(needs, plan.memory_per_process(config, ctx.local_world_size), seconds)
    return summary + f" ({notice})" * bool(notice)


def summary(trainer: Trainer, evaluation: Evaluation, baselines: Baselines) -> str:
    """Describe the results of a run, where its files are, and what to type next."""
    run, max_steps = trainer.run, trainer.config.max_steps
    last = read_state(run.find("last"))
    in_runs = run.path.parent in (RUNS, PROJECT / RUNS)
    name = shlex.quote(run.path.name if in_runs else str(run.path.absolute()))
    if not trainer.finished:
        return (
            f"stopped at step {last['step']:,} of {max_steps:,}, saved in {run.find('last')}\n"
            f"to resume: python scripts/train.py --run {name} --resume"
        )
    use = f'to generate text: python scripts/generate.py --run {name} --prompt "..."'
    objective = trainer.objective
    if trainer.data.train.flags is not None and objective.continues_prompts and objective.left_to_right:
        use = f"to talk to it:    python scripts/chat.py --run {name}"
    has_grammar, unit = baselines.entropy_floor is not None, baselines.unit
    level = f", perplexity {perplexity(last['best_loss']):,.2f}" if unit == "token" else ""
    lines = ["", comparison(baselines, f"this run, step {last['step']:,}", evaluation), ""]
    if has_grammar:
        texts, report, variety = check_samples(trainer.objective, trainer.data, FINAL_SAMPLES)
        lines += [describe_grammar(report), "", describe_variety(variety), "", "the first three:"]
        for text in texts[:3]:
            rule = first_broken_rule(text)
            lines += ["", indent(text), f"    ({f'breaks the rule: {rule}' if rule else 'accepted'})"]
    else:
        last_sample = run.samples.read_text(encoding="utf-8").rpartition(" ---\n")[2].strip()
        lines += ["sample:", "", indent(last_sample)]
    lines += [
        "",
        f"finished  {_end(trainer, last['step'])}, {last['tokens_seen']:,} {unit}s, {last['elapsed_s']:.0f} s",
        f"best      validation loss {last['best_loss']:.4f} nats per {unit}{level}, at step "
        f"{int(last['best'].removeprefix('step-')):,}",
        f"page      {run.page}",
        f"plot      {run.plot}",
        f"metrics   {run.metrics}",
        f"samples   {run.samples}",
        *(advice_line(line) for line in advise(read_metrics(run.metrics), baselines, trainer.config)),
        "",
        use,
        f"to evaluate it:   python scripts/evaluate.py --run {name}",
        *(
            [f"to go on:         python scripts/train.py --run {name} --resume --patience 0"]
            * (last["step"] < max_steps)
        ),
        *([f"rules over time:  python scripts/evaluate.py --run {name} --checkpoint all"] * has_grammar),
    ]
    return "\n".join(lines)


def advice_line(text: str) -> str:
    """Format a piece of advice like the other results."""
    return textwrap.fill(text, 110, initial_indent="advice    ", subsequent_indent=" " * 10)


def _end(trainer: Trainer, step: int) -> str:
    """Describe the length of a finished run, and why it ended early if it did."""
    if step == trainer.config.max_steps:
        return f"{step:,} steps"
    return f"early at step {step:,}, after {trainer.stale} evaluations without a better loss (patience)"


def describe_evaluation(evaluation: Evaluation, unit: str = "token") -> str:
    """Format a loss and the objective's other metrics, one line each."""
    names = [name.removeprefix("val_").replace("_", " ") for name in evaluation.metrics]
    width = max(16, *(len(name) + 2 for name in names)) if names else 16
    lines = [f"{'loss':<{width}}{evaluation.loss:.4f} nats per {unit}{with_error(evaluation.standard_error)}"]
    lines += [f"{name:<{width}}{value:.4f}" for name, value in zip(names, evaluation.metrics.values(), strict=True)]
    return "\n".join(lines)


def with_error(error: float, form: str = ".4f") -> str:
    """Return a standard error as the end of a line, or "" for NaN: a single segment has none."""
    return "" if math.isnan(error) else f", standard error {error:{form}}"


def indent(text: str) -> str:
    """Wrap the lines of a text and indent them by four spaces."""
    return "\n".join(
        textwrap.fill(line, 100, initial_indent="    ", subsequent_indent="    ") for line in text.splitlines()
    )


def comparison(baselines: Baselines, name: str, evaluation: Evaluation) -> str:
    """Format a loss, its baselines and its floor as a table, highest first, in nats, perplexity, bits and bits/byte.

    A loss that is not one of tokens is given in nats alone.
    """
    rows = [*baselines.losses.items(), (name, evaluation.loss)]
    if baselines.entropy_floor is not None:
        rows += [
            ("floor: -ln p of these tales", baselines.entropy_floor_loss),
            ("exact entropy of all tales", baselines.entropy),
        ]
    has_bytes, has_tokens = not math.isnan(evaluation.bytes_per_token), baselines.unit == "token"
    header = f"{'perplexity':>12}{'bits/token':>12}" * has_tokens + f"{'bits/byte':>12}" * has_bytes
    lines = [f"{'validation loss':<32}{f'nats/{baselines.unit}':>12}{header}"]
    for row, nats in sorted(rows, key=lambda row: -row[1]):
        bits = nats / math.log(2)
        others = f"{perplexity(nats):>12,.{2 if nats < 7 else 0}f}{bits:>12.4f}" * has_tokens
        others += f"{bits / evaluation.bytes_per_token:>12.4f}" if has_bytes else ""
        lines.append(f"{row:<32}{nats:>12.4f}{others}")
    if baselines.entropy_floor is not None:
        excess = evaluation.excess_over_floor(baselines.entropy_floor)
        error = "" if math.isnan(excess.standard_error) else f" (standard error {excess.standard_error:.4f})"
        lines += [
            "",
            f"The loss is {excess.loss:.4f} nats per token above the floor{error}: an estimate of KL(tales || model).",
        ]
        if (closed := baselines.gap_closed(excess.loss)) > 0:
            lines.append(
                f"It closes {100 * closed:.1f}% of the gap between the trigram model and the floor, which only longer "
                f"context can close."
            )
    return "\n".join(lines)
