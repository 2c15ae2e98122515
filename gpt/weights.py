"""The tensors of a module by the names that they are saved under."""

import torch
from torch import Tensor, nn

from gpt.model import GPTModel
from gpt.system.distributed import SINGLE_PROCESS, DistContext


def named_weights(objective: nn.Module, ctx: DistContext = SINGLE_PROCESS) -> dict[str, Tensor]:
    """An objective's tensors: the backbone's under GPTModel's own names, the objective's own under `objective.`.

    A tensor that goes by two names (a tied head) is listed once, under the first. Of several processes rank 0 has them,
    put together where they are sharded; the others have none.
    """
    named, seen = {}, set()
    for name, tensor in objective.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        whole = ctx.full_state_dict(tensor.detach())
        if ctx.is_main:
            named[_saved_name(objective, name)] = whole.contiguous()
    return named


def frozen_names(objective: nn.Module) -> set[str]:
    """The names, as `named_weights` has them, of the parameters that are not trained."""
    return {_saved_name(objective, name) for name, p in objective.named_parameters() if not p.requires_grad}


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load tensors that `named_weights` named into an objective or a GPTModel; ValueError unless all fit exactly."""
    own = module.state_dict()
    first_name = {}  # data pointer -> the first name of that tensor
    for name, tensor in own.items():
        first_name.setdefault(tensor.data_ptr(), _saved_name(module, name))
    expected = {first_name[t.data_ptr()]: t.shape for t in own.values()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    if found != expected:
        wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        name = wrong[0]
        raise ValueError(
            f"the weights do not fit the model in {len(wrong)} tensors, the first {name}: "
            f"expected {_shape(expected.get(name))}, found {_shape(found.get(name))}"
        )
    module.load_state_dict({name: weights[first_name[t.data_ptr()]] for name, t in own.items()})


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(tuple(shape))


def _saved_name(module: nn.Module, name: str) -> str:
    if isinstance(module, GPTModel):
        return name
    return name.removeprefix("model.") if name.startswith("model.") else f"objective.{name}"
