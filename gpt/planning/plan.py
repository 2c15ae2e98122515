"""What a config will need before it runs: parameters, memory, disk, FLOPs, time; and whether the machine has it.

    plan = estimate(config)             # arithmetic alone; vocab_size filled in
    check(plan, memory, disk)           # ValueError: which setting to lower, and by how much
    describe(plan, seconds(plan, rates))    # the rates of this machine: gpt/planning/throughput.py; of others: `data_sheet`

Shape letters: B batch, T tokens in the window, D emb_dim, H heads, L layers, V vocab_size, N = B·T, P parameters.
"""

import bisect
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gpt.config import TrainConfig
from gpt.data import document_spans
from gpt.evaluation.baselines import MAX_TOKENS
from gpt.optim import AT_ONCE
from gpt.planning.flops import (
    activation_bytes,
    count_adapter,
    count_hidden,
    count_parameters,
    flops_per_token,
    gap_bytes,
    logit_bytes,
)
from gpt.planning.hardware import LOCAL, Hardware
from gpt.system.device import choose_device, choose_dtype
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.system.memory import available_disk, available_memory
from gpt.token_files import PreparedData

# Resident bytes of a training run with next to no model: Python and PyTorch's CPU build 230 MB, what torch.optim brings
# in 75, evaluation, matplotlib and the first step 55. Measured with PyTorch 2.13 on Linux.
PROGRAM_BYTES = 360_000_000
TOKENIZER_BYTES = 400  # per token of a vocabulary of byte pairs, in both directions; 21 MB for GPT-2's
NGRAM_BYTES = (
    32  # per token that n-grams are counted on: four arrays of int64, the peak of gpt.evaluation.baselines._windows
)
# Of a data sheet's FLOPs, what training reaches: nanoGPT's README has 600,000 steps of 491,520 tokens of GPT-2's
# smallest size in 4 days on 8 A100: 92 TFLOP/s of 312 on each. Larger models reach more: Chowdhery et al. 2022, 0.46.
UTILISATION = 0.3
UPDATE_BYTES = 40  # per parameter: AdamW reads four numbers and writes three; the norm reads one; to scale it takes two
LEAST_CONTEXT = 32  # tokens; a shorter window is no advice


@dataclass(frozen=True)
class Plan:
    """What a config needs: numbers, bytes and FLOPs. `memory` adds up to the peak of a training step."""

    config: TrainConfig
    n_train_tokens: int  # of the training split, as far as it is known
    parameters: dict[str, int]  # by part; a tied head counts once
    memory: dict[str, int]  # bytes by part
    disk: int  # bytes that checkpoints take at most
    layer_flops: int  # per token, forward and backward, between the embeddings and the head
    head_flops: int  # per token, forward and backward, of the logits
    window: float  # positions that a window has on average, padding included
    tokens: int  # positions that training computes
    evaluated_tokens: int  # positions that all evaluations compute together
    hardware: Hardware = LOCAL  # a process on each; `memory` is that of one

    @property
    def n_parameters(self) -> int:
        """How many numbers the model has, trained or frozen."""
        return sum(self.parameters.values())

    @property
    def peak(self) -> int:
        """Bytes at the peak of a training step: on a CPU the largest resident set of the process."""
        return sum(self.memory.values())

    @property
    def flops_per_token(self) -> int:
        """FLOPs per token, forward and backward; the forward pass takes a third of them."""
        return self.layer_flops + self.head_flops


def estimate(
    config: TrainConfig,
    n_train_tokens: int = 0,
    n_val_tokens: int = 0,
    train_filled: float = 1,
    val_filled: float = 1,
    hardware: Hardware = LOCAL,
) -> Plan:
    """The Plan of a config whose vocab_size is filled in, on splits of so many tokens, for this machine or another.

    `train_filled` and `val_filled` are the positions that a window of documents has on average, padding included, and
    those that an evaluation computes per token, as `estimate_on` reads them off the data. Nothing is drawn at random
    and no memory is taken. ValueError where vocab_size is 0, and where processes cannot share a step.
    """
    model = config.model
    if not model.vocab_size:
        raise ValueError(
            "model.vocab_size is 0, the tokenizer's: give the number of tokens, as --model.vocab_size 50257"
        )
    parameters, added = count_parameters(model), count_adapter(config.adapter, model)
    frozen = sum(parameters.values()) if added else 0
    if added:
        parameters["adapter"] = added
    n_trained = sum(parameters.values()) - frozen
    layer_flops, head_flops = flops_per_token(model, model.context_length * train_filled)
    evaluations = 1
    if config.eval_every:  # step 0, each eval_every-th and the last
        evaluations = 1 + -(-config.max_steps // config.eval_every)
    read = max(0, n_val_tokens - 1)
    if config.eval_batches:
        read = min(read, config.eval_batches * config.batch_size * model.context_length)
    window = model.context_length * train_filled
    return Plan(
        config,
        n_train_tokens,
        parameters,
        _memory(config, frozen, n_trained, n_train_tokens, hardware),
        4 * frozen + _most_checkpoints(config) * (4 * n_trained + _means(config, n_trained)),
        layer_flops,
        head_flops,
        window,
        round(config.max_steps * config.batch_size * config.grad_accum_steps * window),
        round(evaluations * read * val_filled),
        hardware,
    )


def estimate_on(config: TrainConfig, data: PreparedData, hardware: Hardware = LOCAL) -> Plan:
    """The Plan of a config on prepared data, whose tokenizer fills in vocab_size. Windows of documents are counted as
    long as the longest of their batch is, on average."""
    model = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or data.tokenizer.vocab_size)
    config = dataclasses.replace(config, model=model)
    train_filled = val_filled = 1.0
    if config.data.packing == "document" and data.has_eot:
        length, batch = model.context_length, config.batch_size
        train, val = (
            np.diff(document_spans(split.tokens, data.tokenizer.eot_id, length)[:, :2])[:, 0]
            for split in (data.train, data.val)
        )
        if len(train) and len(val):
            # the longest of B draws is at most the i-th of n lengths, in ascending order, with probability (i/n)^B
            at_most = (np.arange(len(train) + 1) / len(train)) ** batch
            train_filled = float(np.sort(train) @ np.diff(at_most)) / length
            computed = sum(len(b) * b.max() for b in np.split(val, range(batch, len(val), batch)))
            val_filled = float(computed) / val.sum()
    return estimate(config, len(data.train.tokens), len(data.val.tokens), train_filled, val_filled, hardware)


def _most_checkpoints(config: TrainConfig) -> int:
    """How many checkpoints there are at once: the newest, the best and the one being written, if so many come about.

    Each evaluation may be the best so far, and is saved then.
    """
    every = [n for n in (config.eval_every, config.save_every) if n]
    saved = sum(config.max_steps // n for n in every) - (config.max_steps // math.lcm(*every) if len(every) > 1 else 0)
    saved += all(config.max_steps % n for n in every)  # the last step
    return min(config.keep_checkpoints + 2, saved)


def _means(config: TrainConfig, n_trained: int) -> int:
    """Bytes that the optimizer keeps, in float32: AdamW's two means, and Muon's one."""
    by_muon = count_hidden(config.model) if config.optim.name == "muon" and config.adapter.name == "none" else 0
    return 8 * n_trained - 4 * by_muon


def _n_passes(config: TrainConfig, hardware: Hardware) -> int:
    """Passes that each process makes in a step. ValueError where they cannot share it."""
    return DistContext(0, hardware.n).n_micro_batches(config.batch_size * config.grad_accum_steps, config.batch_size)


# --- memory -----------------------------------------------------------------------------------------------------------


def _memory(
    config: TrainConfig, n_frozen: int, n_trained: int, n_train_tokens: int, hardware: Hardware
) -> dict[str, int]:
    """Bytes of one process by part, which are counted as if none took the place of another that has been freed.

    Backward frees activations while gradients come, and logits are gone before either; yet on a CPU the heap is cut up
    by then (tune has it keep what is freed), and when gradients accumulate both are there in any case.
    """
    if hardware.device:
        device, half = hardware.device, config.dtype == "bfloat16" or (config.dtype == "auto" and hardware.has_bfloat16)
    else:
        chosen = choose_device(config.device)
        device, half = chosen.type, choose_dtype(config.dtype, chosen) == torch.bfloat16
    model, on_cpu, n_weights = config.model, device == "cpu", n_frozen + n_trained
    n_micro_batches = _n_passes(config, hardware)
    batch_size = -(
        -config.batch_size * config.grad_accum_steps // (hardware.n * n_micro_batches)
    )  # of one pass of one process
    one = activation_bytes(model, batch_size, model.context_length, half, device)
    gaps = 0
    if on_cpu and sys.platform == "linux":
        # a pass after the first finds the gaps cut up by gradients, which lie where activations were: it takes new room
        gaps = gap_bytes(model, batch_size, model.context_length, half) + (n_micro_batches > 1) * one
    shared = hardware.n if config.parallel == "fsdp" else 1  # a process holds one part of so many, and beside it ...
    together = count_hidden(model) // model.n_layers  # ... what is put together: a block that computes, and the next
    together = min(n_weights, n_weights - count_hidden(model) + 2 * together)  # what is around them, all the time
    beside = (shared > 1) * 4 * (n_weights if on_cpu else together)  # a CPU's heap keeps what evaluations put together
    memory = {
        "weights": 4 * n_weights // shared + beside,
        # between passes those of all weights wait for their sum
        "gradients": 4 * n_trained // shared + (shared > 1) * 4 * (n_trained if n_micro_batches > 1 else together),
        "optimizer": _means(config, n_trained) // shared,
        "activations": one,
        "heap's gaps": gaps,
        "logits": logit_bytes(model, batch_size * model.context_length, half),
        # beside a GPU's memory the program's own is no matter
        "program": (PROGRAM_BYTES + TOKENIZER_BYTES * model.vocab_size) * on_cpu,
    }
    # the n-grams are counted, and forgotten, before the first step
    ngrams = NGRAM_BYTES * min(n_train_tokens, MAX_TOKENS) * on_cpu
    passed = sum(memory[part] for part in ("activations", "heap's gaps", "logits"))  # free when the optimizer steps
    # Muon: the momentum ahead, its stack, what is made of it twice, and Gram matrices; as much again, since the heap is
    # cut up where matrices of another shape follow (measured)
    steps = 10 * 4 * min(AT_ONCE, count_hidden(model)) * (config.optim.name == "muon")
    memory["orthogonal steps"] = max(0, steps - passed)
    # what is sharded rank 0 collects on its CPU for a checkpoint, while the rest is free
    memory["whole for a checkpoint"] = max(
        0, (shared > 1) * on_cpu * (4 * n_weights + _means(config, n_trained)) - passed
    )
    return {**memory, "n-grams": max(0, ngrams - passed - memory["gradients"] - memory["optimizer"])}


# --- does it fit? -----------------------------------------------------------------------------------------------------


def check(plan: Plan, memory: int | None = None, disk: int | None = None) -> None:
    """ValueError where a plan needs more bytes of memory or of disk than there are (None: not known), naming what it
    needs, what there is, and the largest setting that fits."""
    if memory is not None and plan.peak > memory:
        each = f" in each of {plan.hardware.n} processes" if plan.hardware.n > 1 else ""
        raise ValueError(
            f"a training step needs about {size(plan.peak)} of memory{each}, and there are {size(memory)}: "
            f"{_smaller(plan, memory)}"
        )
    if disk is not None and plan.disk > disk:
        keep_checkpoints = _largest(
            plan.config.keep_checkpoints - 1, lambda n: _with(plan, keep_checkpoints=n).disk <= disk
        )
        least = _with(plan, keep_checkpoints=keep_checkpoints or 1).disk
        raise ValueError(
            f"the checkpoints of the run take up to {size(plan.disk)} of disk, and {size(disk)} are free: "
            + (
                f"keep {keep_checkpoints} needs {size(least)}"
                if keep_checkpoints
                else f"even keep 1 needs {size(least)}, so make room"
            )
        )


def plan_or_raise(
    config: TrainConfig, data: PreparedData, folder: str | Path, ctx: DistContext = SINGLE_PROCESS
) -> Plan:
    """The Plan of a run that is about to begin, or to go on, in `folder` on this machine; ValueError as `check` has
    it."""
    plan = estimate_on(config, data, dataclasses.replace(LOCAL, n=ctx.world_size))
    check(plan, memory_per_process(config, ctx.local_world_size), available_disk(folder))
    return plan


def memory_per_process(config: TrainConfig, n: int = 1) -> int:
    """Bytes there are for each of n processes on this machine: those on a CPU share its memory."""
    device = choose_device(config.device)
    return available_memory(device) // (n if device.type == "cpu" else 1)


def _with(plan: Plan, **changes) -> Plan:
    """A plan's memory and disk with other settings; batch_size, accumulate and keep, or those of the model."""
    own = {
        name: changes.pop(name) for name in ("batch_size", "grad_accum_steps", "keep_checkpoints") if name in changes
    }
    config = dataclasses.replace(plan.config, model=dataclasses.replace(plan.config.model, **changes), **own)
    return estimate(config, plan.n_train_tokens, hardware=plan.hardware)


def _smaller(plan: Plan, memory: int) -> str:
    """The settings to lower, and what they need then: the batch first, whose steps stay the same."""
    config, examples = plan.config, plan.config.batch_size * plan.config.grad_accum_steps

    def portions(batch_size: int, **model) -> Plan:
        return _with(plan, batch_size=batch_size, grad_accum_steps=-(-examples // batch_size), **model)

    if batch_size := _largest(config.batch_size - 1, lambda n: portions(n).peak <= memory):
        divisor = next(n for n in range(batch_size, 0, -1) if examples % n == 0)  # it leaves the steps as they are
        fits = portions(divisor if divisor > batch_size // 2 else batch_size)
        n, grad_accum_steps = fits.config.batch_size * fits.config.grad_accum_steps, fits.config.grad_accum_steps
        same = f"the same {n} windows a step" if n == examples else f"{n} windows a step"
        return f"batch_size {fits.config.batch_size} with grad_accum_steps {grad_accum_steps} ({same}) needs {size(fits.peak)}"
    heads = config.model.n_heads  # emb_dim is a multiple of it
    for name, least, step in (("context_length", LEAST_CONTEXT, 1), ("n_layers", 1, 1), ("emb_dim", heads, heads)):

        def peak(n: int, name: str = name, step: int = step) -> int:
            return portions(1, **{name: n * step}).peak

        value = _largest((getattr(config.model, name) - 1) // step, lambda n, peak=peak: peak(n) <= memory)
        if value * step >= least:
            setting = f"model.{name} {value * step}"
            return f"batch_size 1 with grad_accum_steps {examples} and {setting} needs {size(peak(value))}"
    return "the least model does not fit either, so take a larger machine"


def _largest(high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to `high` that fits, where all smaller ones do; 0 where none does."""
    return bisect.bisect_left(range(1, high + 1), True, key=lambda n: not fits(n))


@dataclass(frozen=True)
class Throughput:
    """How fast one process trains a model: `gpt.planning.throughput.probe` measures it, `data_sheet` reads it off."""

    layers: float  # FLOP per second between embeddings and head, forward and backward
    head: float  # FLOP per second in logits and loss, forward and backward
    update: float  # parameters per second through clipping and the optimizer
    overhead: float = 0.0  # seconds that a pass takes besides, however many its tokens
    exchange: float = 0.0  # seconds by which processes that add up gradients make a step longer


def data_sheet(plan: Plan) -> Throughput:
    """The rates of a plan's hardware: UTILISATION of its FLOPs, and its memory's bandwidth for the update.

    Gradients are sent while backward, two thirds of the last pass, still computes: what takes longer makes the step
    longer. In a ring of n each sends 2·(n-1)/n of them; FSDP2 sends weights twice and gradients once.
    """
    config, found = plan.config, plan.hardware
    rate = UTILISATION * found.flops
    sent = (3 if config.parallel == "fsdp" else 2) * 4 * plan.n_parameters * (found.n - 1) / found.n
    n_examples = config.batch_size * config.grad_accum_steps / (found.n * _n_passes(config, found))  # of one pass
    backward = 2 / 3 * plan.flops_per_token * n_examples * plan.window / rate
    exchange = max(0.0, sent / found.link - backward) if found.n > 1 else 0.0
    return Throughput(rate, rate, found.bandwidth / UPDATE_BYTES, exchange=exchange)


def seconds(plan: Plan, rates: Throughput, first_step: int = 0) -> float:
    """Seconds of all training steps from `first_step` on, and of the evaluations between them, which go forward alone
    (a third of the FLOPs); of all processes together, each at these rates."""
    config, n = plan.config, plan.hardware.n
    per_token = (plan.layer_flops / rates.layers + plan.head_flops / rates.head) / n
    n_micro_batches = _n_passes(config, plan.hardware)
    updated = plan.n_parameters / (n if config.parallel == "fsdp" else 1)
    per_step = n_micro_batches * rates.overhead + updated / rates.update + rates.exchange
    training = plan.tokens * per_token + config.max_steps * per_step
    n_batches = plan.evaluated_tokens / (config.batch_size * plan.window) / n
    evaluations = (plan.evaluated_tokens * per_token + n_batches * rates.overhead) / 3
    return (training + evaluations) * (1 - first_step / config.max_steps)


# --- in words ---------------------------------------------------------------------------------------------------------


def size(n_bytes: float) -> str:
    """Bytes in words: 23.1 GB, 0.6 GB, 18 MB (10^9 and 10^6 bytes)."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """Seconds in words: 40 seconds, 2.4 minutes, 17 hours, 12 days."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length or (unit == "minutes" and seconds >= 90):
            return f"{seconds / length:,.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:.0f} seconds"


def line(plan: Plan, memory: int | None = None, seconds: float | None = None) -> str:
    """What a run needs, in one line for its beginning; `memory` is what there is, in bytes, if known."""
    free = f" ({size(memory)} free)" if memory is not None else ""
    time = f", {duration(seconds)}" if seconds is not None else ""
    return f"needs  about {size(plan.peak)} of memory{free}, {size(plan.disk)} of disk{time}"


def compare(name: str, plans: dict[str, Plan], seconds: Sequence[float | None], memory: int) -> str:
    """Plans for several values of a setting as a table, a row each; no time where one takes more than the memory."""
    rows = [(name, "parameters", "memory", f"of {size(memory)}", "tokens/parameter", "time")]
    for (value, plan), time in zip(plans.items(), seconds, strict=True):
        share, ratio = f"{plan.peak / memory:.0%}", f"{plan.tokens / plan.n_parameters:,.1f}"
        words = "too large" if plan.peak > memory else duration(time)
        rows.append((value, f"{plan.n_parameters:,}", size(plan.peak), share, ratio, words))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join(map(str.rjust, row, widths)) for row in rows)


def describe(plan: Plan, memory: int | None = None, disk: int | None = None, seconds: float | None = None) -> str:
    """All of a plan as a table; `memory` and `disk` are the bytes there are, if known.

    Tokens are set beside the 20 per parameter at which a given compute is spent best: Hoffmann et al. 2022
    ("Chinchilla"), arXiv:2203.15556.
    """
    tokens, n, ctx = plan.tokens, plan.n_parameters, plan.hardware.n
    each = f"   in each of {ctx} processes" if ctx > 1 else ""
    rows = [*((part, f"{count:,}") for part, count in plan.parameters.items()), ("all parameters", f"{n:,}"), ("", "")]
    rows += [*((part, size(count)) for part, count in plan.memory.items() if count)]
    rows += [("memory at its peak", size(plan.peak) + (f"   of {size(memory)}" if memory is not None else "") + each)]
    rows += [("checkpoints on disk", size(plan.disk) + (f"   of {size(disk)}" if disk is not None else "")), ("", "")]
    rows += [
        ("FLOPs per token", f"{plan.flops_per_token:,}   forward and backward"),
        ("tokens", f"{tokens:,}   {tokens / n:.1f} per parameter; Chinchilla's 20 would be {20 * n:,}"),
        ("FLOPs in all", f"{plan.flops_per_token * (tokens + plan.evaluated_tokens / 3):.2e}"),
        *([("time", duration(seconds))] if seconds is not None else []),
    ]
    return "\n".join(f"{name:<22}{figure}" for name, figure in rows).replace("\n" + " " * 22 + "\n", "\n\n")
