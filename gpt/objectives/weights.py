"""The tensors of an objective or a model, by the names under which checkpoints store them."""

import difflib
import re

import torch
from torch import Tensor, nn

from gpt.model import GPTModel
from gpt.system.distributed import DistContext, copy_shard
from gpt.system.sharded_files import UnreadTensor, read_into


def named_weights(objective: nn.Module) -> dict[str, Tensor]:
    """Return an objective's tensors: the model's under GPTModel's names, the objective's own under `objective.`.

    A tied tensor appears once, under its first name. A sharded one stays sharded.
    """
    return {name: tensor.detach().contiguous() for name, tensor in _own_tensors(objective).items()}


def frozen_names(objective: nn.Module) -> set[str]:
    """Return the names, as in `named_weights`, of the parameters that are not trained."""
    return {_saved_name(objective, name) for name, p in objective.named_parameters() if not p.requires_grad}


def freeze(module: nn.Module, beginnings: str) -> None:
    """Stop training the parameters whose names begin with one of `beginnings`, separated by commas.

    Names are those of `named_weights`, compared in whole parts: trf_blocks.1 is no beginning of trf_blocks.10. A weight
    that two layers share is frozen under either name. ValueError for a beginning of no name, and if nothing is left.
    """
    parameters = {_saved_name(module, name): p for name, p in module.named_parameters(remove_duplicate=False)}
    parts = [name.split(".") for name in parameters]
    known = dict.fromkeys(".".join(part[:n]) for part in parts for n in range(1, len(part) + 1))
    for beginning in filter(None, map(str.strip, beginnings.split(","))):
        if beginning not in known:
            near = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(beginning, known, n=1))
            near += "There are" if near else "there are"
            tops = ", ".join(dict.fromkeys(part[0] for part in parts))
            blocks = sum(re.fullmatch(r"trf_blocks\.\d+", name) is not None for name in known)
            tops = tops.replace("trf_blocks", f"trf_blocks.0 to trf_blocks.{blocks - 1}")
            raise ValueError(f"freeze: no parameter's name begins with {beginning!r}: {near} {tops}")
        for name, parameter in parameters.items():
            if f"{name}.".startswith(f"{beginning}."):
                parameter.requires_grad_(False)
    if beginnings and not any(p.requires_grad for p in parameters.values()):
        raise ValueError(f"freeze {beginnings!r} leaves no parameter to train: name fewer")


def load_weights(module: nn.Module, weights: dict[str, Tensor | UnreadTensor]) -> None:
    """Load tensors named by `named_weights` into an objective or a GPTModel, sharded or not. ValueError unless all fit
    exactly."""
    for name, buffer in module.named_buffers():  # an objective's own have the size of its data
        if (saved := weights.get(_saved_name(module, name))) is not None:
            buffer.resize_(saved.shape)
    own = _own_tensors(module)
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise ValueError(
            f"the weights do not fit the model in {len(wrong)} tensors, the first {wrong[0]}: "
            f"expected {expected.get(wrong[0], 'none')}, found {found.get(wrong[0], 'none')}"
        )
    read_into(weights, own)


@torch.no_grad()
def scatter_weights(module: nn.Module, weights: dict[str, Tensor], ctx: DistContext) -> None:
    """Load whole tensors, which rank 0 alone has, into a sharded objective or GPTModel, one after the other."""
    for name, tensor in _own_tensors(module).items():
        whole = weights[name] if ctx.is_main else torch.empty(tensor.shape, dtype=tensor.dtype)
        copy_shard(whole, tensor, from_main=True)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's tensors by the names under which checkpoints store them; a tied one under its first name."""
    first = {}  # id -> name and tensor
    for name, tensor in module.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (_saved_name(module, name), tensor))
    return dict(first.values())


def _saved_name(module: nn.Module, name: str) -> str:
    if isinstance(module, GPTModel):
        return name
    return name.removeprefix("model.") if name.startswith("model.") else f"objective.{name}"
