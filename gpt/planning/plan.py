"""Estimate parameters, memory, disk, FLOPs and tokens of a run before it starts, and check that the machine has them.

    plan = estimate(config)                 # arithmetic only; vocab_size must be filled in
    check_fits(plan, memory, disk)          # ValueError: which setting to lower, and to what
    print(format_plan(plan))

The time follows from the hardware's throughput: gpt/planning/throughput.py.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt.config import TrainConfig
from gpt.objectives import OBJECTIVES
from gpt.planning.flops import count_adapter, count_frozen, count_parameters, flops_per_token
from gpt.planning.hardware import LOCAL, Hardware
from gpt.planning.memory import n_micro_batches, optimizer_bytes, training_memory
from gpt.system.device import choose_device
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.system.memory import available_disk, available_memory
from gpt.token_files import PreparedData

MIN_CONTEXT = 32  # tokens; no shorter context is suggested


@dataclass(frozen=True)
class Plan:
    """The needs of a run: numbers, bytes and FLOPs."""

    config: TrainConfig
    n_train_tokens: int  # in the training split; 0: not known
    parameters: dict[str, int]  # by part; a tied head counts once
    memory: dict[str, int]  # peak bytes of one process by part
    disk: int  # bytes of all checkpoints at most
    layer_flops: int  # per token, forward and backward, between embeddings and head
    head_flops: int  # per token, forward and backward, of the logits
    example_tokens: float  # mean tokens of an example, padding included
    trained_tokens: int  # over the whole run, padding included
    evaluated_tokens: int  # over all evaluations, and in passes before the first step, padding included
    hardware: Hardware = LOCAL
    n_trained: int = 0  # parameters that are not frozen
    sampled_positions: int = 0  # over the whole run, in which a process samples a token of each of its rows

    @property
    def n_parameters(self) -> int:
        """The number of parameters, trained and frozen."""
        return sum(self.parameters.values())

    @property
    def peak(self) -> int:
        """Bytes at the peak of a training step; on a CPU, the process's largest resident set."""
        return sum(self.memory.values())

    @property
    def row_tokens(self) -> float:
        """The mean length of a row of a batch in tokens, padding included: an example has one, or several."""
        return self.example_tokens / OBJECTIVES[self.config.objective.name].rows_per_example(self.config)

    @property
    def flops_per_token(self) -> int:
        """FLOPs per token, forward and backward; the forward pass takes a third of them."""
        return self.layer_flops + self.head_flops


def estimate(
    config: TrainConfig,
    n_train_tokens: int = 0,
    n_val_tokens: int = 0,
    train_fill: float = 1,
    val_fill: float = 1,
    hardware: Hardware = LOCAL,
) -> Plan:
    """Return the Plan of a config whose vocab_size is filled in, for splits of these sizes.

    `train_fill` is the mean example length over context_length, `val_fill` the positions that an evaluation computes
    per token, padding included; `estimate_for_data` reads both off the data. Nothing is allocated or drawn at random.

    Raises ValueError where vocab_size is 0, and where the processes cannot share a step.
    """
    model = config.model
    if not model.vocab_size:
        raise ValueError(
            "model.vocab_size is 0, the tokenizer's: give the number of tokens, as --model.vocab_size 50257"
        )
    parameters, n_adapter = count_parameters(model), count_adapter(config.adapter, model)
    n_frozen = sum(parameters.values()) if n_adapter else count_frozen(model, config.freeze)[0]
    if n_adapter:
        parameters["adapter"] = n_adapter
    n_trained = sum(parameters.values()) - n_frozen
    kind = OBJECTIVES[config.objective.name]
    example_tokens = kind.rows_per_example(config) * model.context_length * train_fill
    n_sampled = 0
    if kind.samples(config):
        n_rounds = n_micro_batches(config, hardware) * -(-config.max_steps // config.objective.passes)
        n_sampled = round(n_rounds * model.context_length * train_fill)
    layer_flops, head_flops = flops_per_token(model, model.context_length * train_fill)
    # evaluations: at step 0, every eval_every steps, and at the last step
    n_evaluations = 1 + -(-config.max_steps // config.eval_every) if config.eval_every else 1
    n_scored = max(0, n_val_tokens - 1)
    if config.eval_batches:
        n_scored = min(n_scored, config.eval_batches * config.batch_size * model.context_length)
    n_read = n_evaluations * n_scored + kind.prepare_passes * (n_train_tokens + n_val_tokens)
    return Plan(
        config,
        n_train_tokens,
        parameters,
        training_memory(config, n_frozen, n_trained, n_train_tokens, hardware),
        4 * n_frozen + _max_checkpoints(config) * (4 * n_trained + optimizer_bytes(config, n_trained)),
        layer_flops,
        head_flops,
        example_tokens,
        round(config.max_steps * config.batch_size * config.grad_accum_steps * example_tokens),
        round(n_read * val_fill),
        hardware,
        n_trained,
        n_sampled,
    )


def estimate_for_data(config: TrainConfig, data: PreparedData, hardware: Hardware = LOCAL) -> Plan:
    """Return the Plan of a config on prepared data, whose tokenizer fills in vocab_size.

    Examples are padded to the longest of their batch; their mean padded length is computed from the data.
    """
    model = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or data.tokenizer.vocab_size)
    config = dataclasses.replace(config, model=model)
    train_fill = val_fill = 1.0
    kind, batch = OBJECTIVES[config.objective.name], config.batch_size
    train, val = (kind.example_lengths(config, data, split) for split in (data.train, data.val))
    if len(train) and len(val):
        train_fill = padded_length(train, batch) / model.context_length
        computed = sum(len(b) * b.max() for b in np.split(val, range(batch, len(val), batch)))
        val_fill = kind.rows_per_example(config) * float(computed) / (len(data.val.tokens) - 1)
    return estimate(config, len(data.train.tokens), len(data.val.tokens), train_fill, val_fill, hardware)


def padded_length(lengths: np.ndarray, batch_size: int) -> float:
    """Return the expected length of the longest of batch_size examples, to which the others are padded, in tokens."""
    # the maximum of B draws is at most the i-th smallest of n lengths with probability (i/n)^B
    at_most = (np.arange(len(lengths) + 1) / len(lengths)) ** batch_size
    return float(np.sort(lengths) @ np.diff(at_most))


def _max_checkpoints(config: TrainConfig) -> int:
    """Return the most checkpoints that exist at once: those kept, the best one, and the one being written.

    Any evaluation may be the best so far, and then its checkpoint is saved.
    """
    intervals = [n for n in (config.eval_every, config.save_every) if n]
    n_saved = sum(config.max_steps // n for n in intervals)
    n_saved -= config.max_steps // math.lcm(*intervals) if len(intervals) > 1 else 0
    n_saved += all(config.max_steps % n for n in intervals)  # the last step
    return min(config.keep_checkpoints + 2, n_saved)


# --- does it fit? -----------------------------------------------------------------------------------------------------


def check_fits(plan: Plan, memory: int | None = None, disk: int | None = None) -> None:
    """Raise ValueError where a plan needs more bytes of memory or disk than available (None: not known).

    The message names the need, the available amount, and the largest setting that fits.
    """
    if memory is not None and plan.peak > memory:
        each = f" in each of {plan.hardware.n} processes" if plan.hardware.n > 1 else ""
        raise ValueError(
            f"a training step needs about {format_bytes(plan.peak)} of memory{each}, but {format_bytes(memory)} is "
            f"available: {suggest_smaller(plan, memory)}"
        )
    if disk is not None and plan.disk > disk:
        keep = _largest(plan.config.keep_checkpoints - 1, lambda n: _replan(plan, keep_checkpoints=n).disk <= disk)
        needed = format_bytes(_replan(plan, keep_checkpoints=keep or 1).disk)
        way_out = f"keep_checkpoints {keep} needs {needed}"
        if not keep:
            way_out = f"even keep_checkpoints 1 needs {needed}, so free some space"
        raise ValueError(
            f"checkpoints take up to {format_bytes(plan.disk)} of disk, but {format_bytes(disk)} is free: {way_out}"
        )


def plan_or_raise(
    config: TrainConfig, data: PreparedData, folder: str | Path, ctx: DistContext = SINGLE_PROCESS
) -> Plan:
    """Return the Plan of a run in `folder` on this machine. Raises ValueError where it does not fit."""
    plan = estimate_for_data(config, data, dataclasses.replace(LOCAL, n=ctx.world_size, per_node=ctx.local_world_size))
    check_fits(plan, memory_per_process(config, ctx.local_world_size), available_disk(folder))
    return plan


def memory_per_process(config: TrainConfig, n: int = 1) -> int:
    """Return the bytes available to each of n processes on this machine, which share a CPU's memory."""
    device = choose_device(config.device)
    return available_memory(device) // (n if device.type == "cpu" else 1)


def _replan(plan: Plan, **changes) -> Plan:
    """Return a plan with other settings of the run or of the model. Only its memory and disk are valid."""
    run_fields = {field.name for field in dataclasses.fields(TrainConfig)}
    of_run = {name: changes.pop(name) for name in list(changes) if name in run_fields}
    config = dataclasses.replace(plan.config, model=dataclasses.replace(plan.config.model, **changes), **of_run)
    return estimate(config, plan.n_train_tokens, hardware=plan.hardware)


def suggest_smaller(plan: Plan, memory: int) -> str:
    """Return the settings to lower so that a plan fits, and what they need then.

    A smaller batch comes first, since gradient accumulation keeps the optimizer steps the same.
    """
    config, n_examples = plan.config, plan.config.batch_size * plan.config.grad_accum_steps

    def with_batch(batch_size: int, **model) -> Plan:
        return _replan(plan, batch_size=batch_size, grad_accum_steps=-(-n_examples // batch_size), **model)

    if batch_size := _largest(config.batch_size - 1, lambda n: with_batch(n).peak <= memory):
        divisor = next(n for n in range(batch_size, 0, -1) if n_examples % n == 0)  # it leaves the steps as they are
        fitting = with_batch(divisor if divisor > batch_size // 2 else batch_size)
        batch_size, accumulation = fitting.config.batch_size, fitting.config.grad_accum_steps
        n = batch_size * accumulation
        step = f"the same {n} examples per step" if n == n_examples else f"{n} examples per step"
        needed = format_bytes(fitting.peak)
        return f"batch_size {batch_size} with grad_accum_steps {accumulation} ({step}) needs {needed}"
    width = config.model.n_heads * (2 if config.model.position == "rope" else 1)  # emb_dim is a multiple of it
    for name, lowest, unit in (("context_length", MIN_CONTEXT, 1), ("n_layers", 1, 1), ("emb_dim", width, width)):

        def peak(n: int, name: str = name, unit: int = unit) -> int:
            return with_batch(1, **{name: n * unit}).peak

        value = _largest((getattr(config.model, name) - 1) // unit, lambda n, peak=peak: peak(n) <= memory)
        if value * unit >= lowest:
            setting = f"model.{name} {value * unit}"
            return f"batch_size 1 with grad_accum_steps {n_examples} and {setting} needs {format_bytes(peak(value))}"
    return "even the smallest model does not fit, so use a larger machine"


def _largest(high: int, fits: Callable[[int], bool]) -> int:
    """Return the largest n in 1..high for which `fits` is true, or 0. All numbers below a fitting one must fit too."""
    return bisect.bisect_left(range(1, high + 1), True, key=lambda n: not fits(n))


# --- output -----------------------------------------------------------------------------------------------------------


def format_bytes(n_bytes: float) -> str:
    """Return a size as text: 23.1 GB, 0.6 GB, 18 MB (10^9 and 10^6 bytes)."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.0f} MB"


def format_duration(seconds: float) -> str:
    """Return a duration as text: 40 seconds, 2.4 minutes, 17 hours, 12 days."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length or (unit == "minutes" and seconds >= 90):
            return f"{seconds / length:,.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:.0f} seconds"


def summarize_plan(plan: Plan, memory: int | None = None, seconds: float | None = None) -> str:
    """Return one line with the needs of a run; `memory` is the available bytes, if known."""
    available = f" ({format_bytes(memory)} available)" if memory is not None else ""
    time = f", about {format_duration(seconds)}" if seconds is not None else ""
    return f"needs  about {format_bytes(plan.peak)} of memory{available}, {format_bytes(plan.disk)} of disk{time}"


def format_plan(plan: Plan, memory: int | None = None, disk: int | None = None, seconds: float | None = None) -> str:
    """Return a plan as a table; `memory` and `disk` are the available bytes, if known.

    20 tokens per parameter is the compute-optimal ratio of Hoffmann et al. 2022 ("Chinchilla"), arXiv:2203.15556.
    """
    tokens, n = plan.trained_tokens, plan.n_parameters
    each = f"   in each of {plan.hardware.n} processes" if plan.hardware.n > 1 else ""
    rows = [*((part, f"{count:,}") for part, count in plan.parameters.items()), ("all parameters", f"{n:,}")]
    rows += [*([("of them trained", f"{plan.n_trained:,}")] if plan.n_trained < n else []), ("", "")]
    rows += [*((part, format_bytes(count)) for part, count in plan.memory.items() if count)]
    available, free = (f"   of {format_bytes(x)}" if x is not None else "" for x in (memory, disk))
    rows += [("peak memory", format_bytes(plan.peak) + available + each)]
    rows += [("checkpoints on disk", format_bytes(plan.disk) + free), ("", "")]
    rows += [
        ("FLOPs per token", f"{plan.flops_per_token:,}   forward and backward"),
        ("tokens", f"{tokens:,}   {tokens / n:.1f} per parameter; Chinchilla's 20 would be {20 * n:,}"),
        ("FLOPs in total", f"{plan.flops_per_token * (tokens + plan.evaluated_tokens / 3):.2e}"),
        *([("time", format_duration(seconds))] if seconds is not None else []),
    ]
    return "\n".join(f"{name:<22}{figure}" for name, figure in rows).replace("\n" + " " * 22 + "\n", "\n\n")


def format_sweep(name: str, plans: dict[str, Plan], seconds: Sequence[float | None], memory: int) -> str:
    """Return the plans for several values of a setting as a table, one row each.

    A plan that needs more than `memory` bytes has no time.
    """
    rows = [(name, "parameters", "memory", f"of {format_bytes(memory)}", "tokens/parameter", "time")]
    for (value, plan), time in zip(plans.items(), seconds, strict=True):
        share, ratio = f"{plan.peak / memory:.0%}", f"{plan.trained_tokens / plan.n_parameters:,.1f}"
        shown = "too large" if time is None else format_duration(time)
        rows.append((value, f"{plan.n_parameters:,}", format_bytes(plan.peak), share, ratio, shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join(map(str.rjust, row, widths)) for row in rows)
