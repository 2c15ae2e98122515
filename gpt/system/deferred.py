"""Modules whose memory and initialization wait until they are sharded: no process ever holds the whole model.

deferred = DeferredInit()
with deferred.recording():
    model = GPTModel(config)               # shapes without memory, nothing drawn
before = list(model.parameters())
fully_shard(model)
deferred.materialize(model, before, device)  # this process's shard of the weights of a plain GPTModel(config)
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpt.system.distributed import copy_shard


class DeferredInit(TorchFunctionMode):
    """The calls that initialize new modules, recorded by `recording` and made by `materialize`.

    They are made in the order in which plain construction makes them, each on a whole parameter on the CPU: weights and
    the state of the random generator are those of plain construction, bit for bit, however the model is sharded.
    """

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict[str, Any], Tensor]] = []  # function, arguments, what it fills

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """A context in which new parameters are on the meta device, and nn.init waits for `materialize`."""
        with torch.device("meta"), self:
            yield

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.zero_, Tensor.fill_):
            tensor = args[0] if args else kwargs["tensor"]
            self.calls.append((func, args, kwargs, tensor))
            return tensor
        if func in (torch.ones, torch.zeros):  # of norms, and buffers: small, and made at once
            kwargs = {"device": "cpu", **kwargs}
        return func(*args, **kwargs)

    @torch.no_grad()
    def materialize(self, module: nn.Module, before: list[nn.Parameter], device: torch.device) -> None:
        """Give a module's parameters memory on a device, for its shards alone if it is sharded, and their values.

        `before` are its parameters as recorded; sharding has replaced them by others in the same order. A tied weight
        stays one parameter.
        """
        after = list(module.parameters())
        new = {p: nn.Parameter(torch.empty_like(p, device=device), p.requires_grad) for p in after if p.is_meta}
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
                if parameter in new:
                    setattr(owner, name, new[parameter])
        targets = {old: new[p] for old, p in zip(before, after, strict=True) if p in new}
        last = {tensor: number for number, (*_, tensor) in enumerate(self.calls)}  # only its result remains
        for number, (func, args, kwargs, tensor) in enumerate(self.calls):
            whole = torch.empty(tensor.shape, dtype=tensor.dtype)
            args = [whole if argument is tensor else argument for argument in args]
            kwargs = {name: whole if value is tensor else value for name, value in kwargs.items()}
            func(*args, **kwargs)
            if number == last[tensor] and tensor in targets:
                copy_shard(whole, targets[tensor])
            del whole, args, kwargs  # before the next one
        self.calls.clear()
