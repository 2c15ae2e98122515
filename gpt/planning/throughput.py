"""How fast this machine trains a model: one layer, the loss and an update are timed, for less than a second mostly."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from gpt import ops
from gpt.model import TransformerBlock
from gpt.optim import create_optimizer, scale_and_clip
from gpt.planning.flops import flops_per_token
from gpt.planning.plan import Plan, Throughput
from gpt.system.device import autocast, choose_device, choose_dtype, synchronize
from gpt.variants import create_model

FLOPS_AT_ONCE = 4e9  # a tenth of a second on one core
NUMBERS_AT_ONCE = 2**23  # of a head's weights, and of the weights that are updated
SECONDS = 0.15  # for each measurement, after a first run that is not counted


def probe(plan: Plan) -> Throughput:
    """This machine's rates for a plan, timed in the model's own shapes and precision, on fewer tokens where its batch
    would take too long. What stands around the matrix products is timed with them.

    The global random state is afterwards as it was.
    """
    config = plan.config
    device = choose_device(config.device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.device(device):
        (layers, in_layers), (head, in_head) = _layers(plan, device), _head(plan, device)
        return Throughput(layers, head, _update(plan, device), in_layers + in_head)


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """The median time of `work`, in seconds."""
    times: list[float] = []
    while len(times) < 3 or (sum(times[1:]) < SECONDS and len(times) < 50):
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _layers(plan: Plan, device: torch.device) -> tuple[float, float]:
    """FLOP per second of a layer, forward and backward; and the seconds that all layers take besides, even for a single
    token: the calls, and a gradient of the size of the weights."""
    config, model = plan.config, plan.config.model
    dtype = choose_dtype(config.dtype, device)
    is_lstm = model.backbone == "lstm"
    layer = nn.LSTM(model.emb_dim, model.emb_dim, batch_first=True) if is_lstm else TransformerBlock(model)

    def flops(n_tokens: float) -> float:
        return flops_per_token(model, n_tokens)[0] / model.n_layers

    def seconds(n_examples: int, n_tokens: int) -> float:
        x = torch.rand(n_examples, n_tokens, model.emb_dim, requires_grad=True)  # (B, T, D)

        def work() -> None:
            with autocast(device, dtype):
                y = layer(x)[0] if is_lstm else layer(x)
            y.backward(torch.ones_like(y))
            layer.zero_grad()

        return _seconds(work, device)

    n_tokens = max(2, round(min(plan.window, FLOPS_AT_ONCE / flops(plan.window))))
    n_examples = max(1, min(config.batch_size, int(FLOPS_AT_ONCE / flops(n_tokens) / n_tokens)))
    return _rate(flops(n_tokens), n_examples * n_tokens, seconds(1, 1), seconds(n_examples, n_tokens), model.n_layers)


def _rate(flops: float, n_tokens: int, one: float, all_of_them: float, times: float) -> tuple[float, float]:
    """What a token more takes, as FLOP per second, and what one alone takes, in seconds, so many times."""
    return flops * (n_tokens - 1) / max(all_of_them - one, all_of_them / 10), one * times


def _head(plan: Plan, device: torch.device) -> tuple[float, float]:
    """FLOP per second of the logits and their loss, forward and backward; and the seconds that the embedding and the
    head take besides, even for a single token: each writes a gradient for all its rows."""
    config, model = plan.config, plan.config.model
    dtype = choose_dtype(config.dtype, device)
    vocab_size = min(model.vocab_size, max(1, NUMBERS_AT_ONCE // model.emb_dim))
    weight = torch.rand(vocab_size, model.emb_dim).requires_grad_()  # (V, D)
    flops = 6 * weight.numel()
    n_tokens = max(2, min(round(config.batch_size * plan.window), int(FLOPS_AT_ONCE / flops)))

    def seconds(n_tokens: int) -> float:
        ids = torch.arange(n_tokens) % vocab_size

        def work() -> None:
            with autocast(device, dtype):
                hidden = F.embedding(ids, weight)  # (N, D)
                loss = ops.implementation(model.implementation).linear_cross_entropy(hidden, weight, ids, "sum")
            loss.backward()
            weight.grad = None

        return _seconds(work, device)

    return _rate(flops, n_tokens, seconds(1), seconds(n_tokens), model.vocab_size / vocab_size)


def _update(plan: Plan, device: torch.device) -> float:
    """Parameters per second that are clipped and updated, of a model of fewer layers and tokens: Muon's time depends on
    the shapes of the layers."""
    model = plan.config.model
    share = min(1, NUMBERS_AT_ONCE / plan.n_parameters)
    n_layers, vocab_size = (max(1, round(n * share)) for n in (model.n_layers, model.vocab_size))
    module = create_model(dataclasses.replace(model, n_layers=n_layers, vocab_size=vocab_size, init="pytorch"))
    optimizer, parameters = create_optimizer(module, plan.config.optim), list(module.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def work() -> None:
        scale_and_clip(parameters, 1.0, plan.config.optim.grad_clip)
        optimizer.step()

    return sum(p.numel() for p in parameters) / _seconds(work, device)
