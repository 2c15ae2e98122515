"""Measure how fast this machine trains a model, or read it off a data sheet, and derive the time of a run.

The measurement runs one layer, the loss and an optimizer update, mostly for less than a second.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch
import torch.nn.functional as F
from torch import nn

from gpt import ops
from gpt.config import GPTConfig
from gpt.generation import generate
from gpt.layers import POSITIONS
from gpt.model import TransformerBlock
from gpt.objectives import OBJECTIVES
from gpt.optim import create_optimizer, scale_and_clip
from gpt.planning.flops import flops_per_token
from gpt.planning.memory import is_half, n_micro_batches
from gpt.planning.plan import Plan
from gpt.system.device import autocast, choose_device, choose_dtype, synchronize
from gpt.variants import create_model

# The share of a data sheet's FLOP/s that training reaches, at two widths. nanoGPT's README: 600,000 steps of 491,520
# tokens of GPT-2's smallest size take 4 days on 8 A100, which is 92 of 312 TFLOP/s each. torchtitan's benchmarks of
# December 2024: Llama 3.1 8B, compiled, trains on 6,514 to 6,667 tokens/s on each of 128 or 8 H100.
UTILISATION = ((768, 0.3), (4096, 0.38))
UPDATE_BYTES = 40  # per parameter: AdamW reads 4 numbers and writes 3, the norm reads 1, scaling reads and writes 1
MAX_FLOPS = {"cpu": 4e9, "mps": 4e11, "cuda": 4e12}  # of one measurement: at most a tenth of a second
MAX_NUMEL = 2**23  # numbers in a measured head, or in a measured update
SECONDS = 0.15  # per measurement, after a first run that is not counted
ROUNDS = 3  # measurements of each plan of several
BUSY = 0.15  # share of the cores that other programs use from which a measured time is unreliable
BUSY_SECONDS = 0.3  # for which that share is measured


@dataclass(frozen=True)
class Throughput:
    """The speed at which one process trains a model."""

    layers: float  # FLOP/s between embeddings and head, forward and backward
    head: float  # FLOP/s in logits and loss, forward and backward
    update: float  # parameters/s through clipping and the optimizer
    overhead: float = 0.0  # seconds per pass, independent of the number of tokens
    sampling: float = 0.0  # seconds in which a token of each row is sampled
    communication: float = 0.0  # seconds per step for reducing gradients that backward does not hide


def expected_utilisation(model: GPTConfig) -> float:
    """Return the share of a data sheet's FLOP/s that training reaches: it rises with the logarithm of the width."""
    (narrow, low), (wide, high) = UTILISATION
    share = math.log(model.emb_dim / narrow) / math.log(wide / narrow)
    return low + (high - low) * min(1.0, max(0.0, share))


def data_sheet_throughput(plan: Plan) -> Throughput:
    """Return the throughput of a plan's hardware, by the `expected_utilisation` of its FLOP/s and by its bandwidth."""
    rate = expected_utilisation(plan.config.model) * plan.hardware.flops
    update = plan.hardware.bandwidth / UPDATE_BYTES
    return Throughput(rate, rate, update, communication=_communication_seconds(plan, rate))


def _communication_seconds(plan: Plan, rate: float) -> float:
    """Return the seconds per step in which processes only send and receive, computing `rate` FLOP/s otherwise.

    A ring of n processes sends (n-1)/n of some numbers to gather them, or to sum them by shards; twice that so that
    each has the sum. DDP sums gradients during the last backward pass, two thirds of a pass. FSDP2 gathers the weights
    twice and sums the gradients in each pass, during all of it; HSDP does so within a node, and then sums over nodes.
    """
    config, hardware = plan.config, plan.hardware
    n_shards, n_passes = hardware.n_shards(config.parallel), n_micro_batches(config, hardware)
    n_examples = config.batch_size * config.grad_accum_steps / (hardware.n * n_passes)
    seconds = plan.flops_per_token * n_examples * plan.example_tokens / rate  # of a pass

    def sent(n_bytes: float, n: int, is_local: bool) -> float:
        return n_bytes * (n - 1) / n / (hardware.link if is_local else hardware.network) if n > 1 else 0.0

    gathered = 2 if is_half(config, hardware) else 4  # bytes of a weight; a gradient has 4
    in_each = sent((2 * gathered + 4) * plan.n_parameters, n_shards, n_shards <= hardware.per_node)
    at_the_end = 2 * sent(4 * plan.n_parameters / n_shards, hardware.n // n_shards, hardware.n <= hardware.per_node)
    return n_passes * max(0.0, in_each - seconds) + max(0.0, at_the_end - 2 / 3 * seconds)


def estimate_seconds(plan: Plan, throughput: Throughput, first_step: int = 0) -> float:
    """Return the seconds from `first_step` to the end of a run, evaluations included.

    An evaluation only goes forward, a third of the FLOPs. All processes work at this throughput.
    """
    config, n = plan.config, plan.hardware.n
    per_token = (plan.layer_flops / throughput.layers + plan.head_flops / throughput.head) / n
    updated = plan.n_parameters / plan.hardware.n_shards(config.parallel)
    per_step = n_micro_batches(config, plan.hardware) * throughput.overhead
    per_step += updated / throughput.update + throughput.communication
    trained = per_token + (plan.layer_flops / 3 / throughput.layers / n if config.recompute else 0)  # forward again
    training = plan.trained_tokens * trained + config.max_steps * per_step
    n_batches = plan.evaluated_tokens / (config.batch_size * plan.example_tokens) / n
    evaluations = (plan.evaluated_tokens * per_token + n_batches * throughput.overhead) / 3
    sampling = plan.sampled_positions * throughput.sampling
    return (training + evaluations + sampling) * (1 - first_step / config.max_steps)


def measure_throughput(plan: Plan) -> Throughput:
    """Return this machine's throughput for a plan, measured in the model's own shapes and precision.

    Fewer tokens are used where the batch would take too long. The global random state is left unchanged.
    """
    config = plan.config
    device = choose_device(config.device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.device(device):
        layers, layers_overhead = _measure_layers(plan, device)
        head, head_overhead = _measure_head(plan, device)
        sampling = _measure_sampling(plan, device) if plan.sampled_positions else 0.0
        return Throughput(layers, head, _measure_update(plan, device), layers_overhead + head_overhead, sampling)


def estimate_times(plans: Sequence[Plan], memory: int) -> list[float | None]:
    """Return the seconds of each plan, all for the same hardware; None for one that needs more than `memory` bytes."""
    fitting = [plan for plan in plans if plan.peak <= memory]
    if plans[0].hardware.device:
        found = iter([data_sheet_throughput(plan) for plan in fitting])
    else:
        found = iter(measure_throughputs(fitting))
    return [estimate_seconds(plan, next(found)) if plan.peak <= memory else None for plan in plans]


def measure_throughputs(plans: Sequence[Plan]) -> list[Throughput]:
    """Return this machine's throughput for each of several plans, comparable among them.

    One plan is measured once. Several are measured in turn, ROUNDS times, and the best counts: another program then
    slows down no plan more than the others.
    """
    rounds = [[measure_throughput(plan) for plan in plans] for _ in range(ROUNDS if len(plans) > 1 else 1)]
    return [
        Throughput(*(max(getattr(t, name) for t in found) for name in ("layers", "head", "update")),
                   **{name: min(getattr(t, name) for t in found) for name in ("overhead", "sampling")})
        for found in zip(*rounds, strict=True)
    ]  # fmt: skip


def busy_notice(device: torch.device) -> str:
    """Return that a time measured now on a CPU is unreliable, as other programs use it; "" if it is idle."""
    if device.type != "cpu":
        return ""
    own = time.process_time()  # this process sleeps meanwhile, but its threads may not do so at once
    busy = psutil.cpu_percent(BUSY_SECONDS) / 100 - (time.process_time() - own) / BUSY_SECONDS / psutil.cpu_count()
    if busy < BUSY:
        return ""
    return f"other programs use {busy:.0%} of this machine's cores, so the time is unreliable: measure when it is idle"


def _median_seconds(work: Callable[[], None], device: torch.device) -> float:
    """Return the median time of `work` in seconds."""
    times: list[float] = []
    while len(times) < 3 or (sum(times[1:]) < SECONDS and len(times) < 50):
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _measure_layers(plan: Plan, device: torch.device) -> tuple[float, float]:
    """Return the FLOP/s of a layer, forward and backward, and the seconds of overhead of all layers.

    The overhead is the time for a single token: Python calls, and gradients as large as the weights.
    """
    config, model = plan.config, plan.config.model
    dtype = choose_dtype(config.dtype, device, plan.n_parameters)
    is_lstm = model.backbone == "lstm"
    layer = nn.LSTM(model.emb_dim, model.emb_dim, batch_first=True) if is_lstm else TransformerBlock(model)

    def flops(n_tokens: float) -> float:
        return flops_per_token(model, n_tokens)[0] / model.n_layers

    def seconds(n_examples: int, n_tokens: int) -> float:
        x = torch.rand(n_examples, n_tokens, model.emb_dim, requires_grad=True)  # (B, T, D)
        _, rotation = POSITIONS[model.position](model).encode(x, torch.arange(n_tokens))

        def work() -> None:
            with autocast(device, dtype):
                y = layer(x)[0] if is_lstm else layer(x, rotation=rotation)
            y.backward(torch.ones_like(y))
            layer.zero_grad()

        return _median_seconds(work, device)

    largest = MAX_FLOPS[device.type]
    n_tokens = max(2, round(min(plan.row_tokens, largest / flops(plan.row_tokens))))
    n_examples = max(1, min(config.batch_size, int(largest / flops(n_tokens) / n_tokens)))
    one = seconds(1, 1)
    rate = _flop_rate(flops(n_tokens), n_examples * n_tokens, one, seconds(n_examples, n_tokens))
    return rate, one * model.n_layers


def _flop_rate(flops: float, n_tokens: int, one: float, all_tokens: float) -> float:
    """Return FLOP/s from the seconds for one token and for n_tokens, at `flops` per token."""
    return flops * (n_tokens - 1) / max(all_tokens - one, all_tokens / 10)


def _measure_head(plan: Plan, device: torch.device) -> tuple[float, float]:
    """Return the FLOP/s of logits and loss, forward and backward, and the seconds of overhead.

    The overhead is the time for a single token: embedding and head each write a gradient for all their rows.
    """
    config, model = plan.config, plan.config.model
    dtype = choose_dtype(config.dtype, device, plan.n_parameters)
    vocab_size = min(model.vocab_size, max(1, MAX_NUMEL // model.emb_dim))
    weight = torch.rand(vocab_size, model.emb_dim).requires_grad_()  # (V, D)
    flops = 6 * weight.numel()
    n_tokens = max(2, min(round(config.batch_size * plan.example_tokens), int(MAX_FLOPS[device.type] / flops)))

    def seconds(n_tokens: int) -> float:
        ids = torch.arange(n_tokens) % vocab_size

        def work() -> None:
            with autocast(device, dtype):
                hidden = F.embedding(ids, weight)  # (N, D)
                loss = ops.IMPLEMENTATIONS[model.implementation].linear_cross_entropy(hidden, weight, ids, "sum")
            loss.backward()
            weight.grad = None

        return _median_seconds(work, device)

    one = seconds(1)
    return _flop_rate(flops, n_tokens, one, seconds(n_tokens)), one * model.vocab_size / vocab_size


def _measure_update(plan: Plan, device: torch.device) -> float:
    """Return the parameters clipped and updated per second.

    Layers and vocabulary are fewer than the model's, but of the same shape, on which Muon's time depends.
    """
    model = plan.config.model
    share = min(1, MAX_NUMEL / plan.n_parameters)
    n_layers, vocab_size = (max(1, round(n * share)) for n in (model.n_layers, model.vocab_size))
    module = create_model(dataclasses.replace(model, n_layers=n_layers, vocab_size=vocab_size, init="pytorch"))
    optimizer, parameters = create_optimizer(module, plan.config.optim), list(module.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def work() -> None:
        scale_and_clip(parameters, torch.ones(()), plan.config.optim.grad_clip)
        optimizer.step()

    return sum(p.numel() for p in parameters) / _median_seconds(work, device)


def _measure_sampling(plan: Plan, device: torch.device) -> float:
    """Return the seconds in which the model samples a token for each row of a micro-batch, from models of one layer and
    of two: all layers take the same time."""
    config, n_tokens = plan.config, 8
    n_rows = config.batch_size * OBJECTIVES[config.objective.name].rows_per_example(config)
    prompts = torch.zeros(n_rows, max(1, config.model.context_length // 2), dtype=torch.long)  # half a cache

    def seconds(n_layers: int, n_new: int) -> float:
        model = create_model(dataclasses.replace(config.model, n_layers=n_layers))
        return _median_seconds(lambda: generate(model, prompts, n_new), device)

    one, two = ((seconds(n, 1 + n_tokens) - seconds(n, 1)) / n_tokens for n in (1, 2))
    return max(0.0, one) + (config.model.n_layers - 1) * max(0.0, two - one)
