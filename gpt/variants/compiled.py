"""Compiled code, block by block: for training, and for decoding, where a block reads one token of one text.

The blocks share their code, which is compiled once for all layers. In plain decoding each token takes a few hundred
calls of PyTorch's kernels, whose products of one row read weights at half of the memory's speed. In compiled code such
a product is a loop that reads them at the memory's speed (docs/speed-log.md).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gpt.layers import Rotation
from gpt.loss import evaluation_mode
from gpt.model import GPTModel, KVCache, TransformerBlock
from gpt.system.device import compile_obstacle, keep_compiled_code
from gpt.variants.quantized import QuantizedLinear


class _LayerCache:
    """What a KVCache is to a compiled block: keys and values (1, G, S, K) of one layer, whose last place is free."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVCache.extend`. It takes no notice of the layer, so that the same code serves all layers."""
        self.keys[:, :, -1:].copy_(key)
        self.values[:, :, -1:].copy_(value)
        return self.keys, self.values


def compile_training(model: GPTModel, device: torch.device, log: Callable[[str], None]) -> None:
    """Let a model compute its blocks and its loss by compiled code while it trains, in place.

    Evaluation and sampling stay as they are: their lengths would be compiled too. The whole model as one graph takes
    steps no shorter, and 2.6 times as long to compile at 12 layers (docs/speed-log.md); FSDP2 gathers between blocks.
    Where it cannot work, log the reason and leave the model unchanged.
    """
    if obstacle := compile_obstacle(device):
        log(f"continuing without compile = true: {obstacle}")
        return
    keep_compiled_code()
    for block in getattr(model, "trf_blocks", ()):
        block.forward = partial(_choose, block, block.forward, torch.compile(block.forward))
    loss = model.loss_from_hidden
    model.loss_from_hidden = partial(_choose, model, loss, torch.compile(loss))


def _choose(module: nn.Module, plain: Callable, compiled: Callable, *args, **kwargs) -> Any:
    """Call the compiled function while the module trains, else the plain one."""
    return (compiled if module.training else plain)(*args, **kwargs)


def compile_decoding(model: GPTModel, log: Callable[[str], None]) -> None:
    """Let a model on a CPU read single tokens of single texts by compiled code, in place. All else stays as it is.

    Compiling takes some ten seconds, the next time two: see `keep_compiled_code`. Where it cannot work, log the reason
    and leave the model unchanged. ValueError for a model without blocks, or on another device.
    """
    device = model.tok_emb.weight.device
    if not hasattr(model, "trf_blocks") or device.type != "cpu":
        raise ValueError(f"compiled decoding needs a GPTModel on device cpu, not {type(model).__name__} on {device}")
    if obstacle := compile_obstacle(device):
        log(f"continuing without compiled decoding: {obstacle}")
        return
    keep_compiled_code()
    rounded = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    for layer in rounded:
        layer.prepare_compiled()
    read, project = torch.compile(TransformerBlock.forward), torch.compile(type(model.out_head).forward)
    changed = (*model.trf_blocks, model.out_head)
    for block in model.trf_blocks:
        block.forward = partial(_read, block, read)
    model.out_head.forward = partial(_project, model.out_head, project)
    try:
        _warm_up(model)
    except RuntimeError as error:  # a compiler that does not work
        for module in changed:
            del module.forward  # the class's is back
        for layer in rounded:
            layer.forget_compiled()
        lines = str(error).strip().splitlines()
        reason = next((line for line in lines if " error: " in line), lines[0])  # g++'s own, among PyTorch's
        log(f"continuing without compiled decoding: {reason}")


@torch.no_grad()
def _warm_up(model: GPTModel) -> None:
    """Read three tokens, the last two by compiled code."""
    cache, token = KVCache(model.config.n_layers, min(3, model.config.context_length)), torch.tensor([[0]])
    with evaluation_mode(model):
        for _ in range(cache.max_length):
            model.out_head(model.hidden_states(token, cache=cache)[:, -1])


def _read(
    block: TransformerBlock,
    compiled: Callable[..., Tensor],
    x: Tensor,
    mask: Tensor | str = "causal",
    cache: KVCache | None = None,
    rotation: Rotation | None = None,
) -> Tensor:
    """Return block(x, mask, cache, rotation), by compiled code if x is one token, (1, 1, D), of a text in the cache."""
    layer = block.att.layer
    if cache is None or isinstance(mask, Tensor) or x.size(0) * x.size(1) != 1 or cache.keys[layer] is None:
        return TransformerBlock.forward(block, x, mask, cache, rotation)
    n = cache.length - cache.start + 1
    if rotation is not None:  # positions (T,) and (B, T) give it different shapes
        rotation = tuple(part.reshape(1, -1) for part in rotation)  # (1, K)
    n_seen = min(n, block.att.window or n)
    # (1, G, n_seen, K)
    places = [stored.narrow(2, n - n_seen, n_seen) for stored in (cache.keys[layer], cache.values[layer])]
    for place in places:
        torch._dynamo.mark_dynamic(place, 2)  # one code for all lengths
    return compiled(block, x, mask, _LayerCache(*places), rotation)


def _project(head: Any, compiled: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Return head(x), by compiled code if x (..., D) is one vector."""
    if x.numel() != x.size(-1):
        return type(head).forward(head, x)
    return compiled(head, x.reshape(1, -1)).view(*x.shape[:-1], -1)
