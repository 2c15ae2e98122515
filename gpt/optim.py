"""The optimizer, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from gpt.config import OptimConfig
from gpt.muon import Muon
from gpt.parallel import shared_like, whole


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """The trainable parameters in two groups: matrices, which decay, and vectors (biases, norms), which do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def is_hidden(name: str, dim: int) -> bool:
    """Whether a parameter of that name and so many dimensions is a matrix between the embeddings and the head, which
    maps vectors to vectors; the rows of the others belong to one token or position each."""
    return dim == 2 and not any(part.endswith(("_emb", "_head")) for part in name.split("."))


def create_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over the trainable parameters of `module`, or Muon over its
    hidden matrices, where there are any, and AdamW over the rest.

    PyTorch's fused kernel updates a tensor in one pass over memory.
    """
    groups = [group for group in parameter_groups(module, config.weight_decay) if group["params"]]
    if not groups:
        raise ValueError("nothing to train: no parameter requires a gradient")
    betas = (config.beta1, config.beta2)
    hidden = {p: None for name, p in module.named_parameters() if p.requires_grad and is_hidden(name, p.dim())}
    if config.name == "adamw" or not hidden:
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)
    others = [{**group, "params": [p for p in group["params"] if p not in hidden]} for group in groups]
    return Muon(list(hidden), others, config.lr, config.beta1, config.weight_decay, betas)


def restore(optimizer: torch.optim.Optimizer, saved: dict, step: int) -> None:
    """Give an optimizer the means and the learning rate of a `state_dict` saved after so many steps; all else stays the
    config's.

    ValueError unless each parameter gets means of its own shape: the fused kernel, which does not ask, would write
    beyond them.
    """
    groups = zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    own = [{**group, "lr": float(before["lr"])} for group, before in groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    means = {
        number: {name: shared_like(value, parameters[number]) for name, value in of_one.items()}
        for number, of_one in saved["state"].items()
    }
    optimizer.load_state_dict({"state": means, "param_groups": own})
    for group in optimizer.param_groups if step else ():
        for parameter in group["params"]:
            shape = parameter.shape
            expected = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
            if "momentum" in group:
                expected = {"momentum": shape}
            if {name: value.shape for name, value in optimizer.state[parameter].items()} != expected:
                raise ValueError(f"the means of a parameter of shape {tuple(shape)} do not fit it")


def learning_rate(step: int, config: OptimConfig, decay_steps: int) -> float:
    """The learning rate of step `step`, counted from 0.

    It rises linearly to `lr` over warmup_steps, then falls to `min_lr` at `decay_steps` along half a cosine
    (Loshchilov and Hutter 2017, arXiv:1608.03983) or a line, and stays there; "constant" stays at `lr`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(1, decay_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)  # 0 .. 1
    remaining = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + (config.lr - config.min_lr) * remaining


def scale_and_clip(parameters: list[nn.Parameter], divisor: float, max_norm: float) -> float:
    """Divide all gradients by `divisor`, then scale them down to the global norm `max_norm` where they exceed it
    (0: never); the norm before clipping.

    The accumulated gradients are those of summed losses; divided by the tokens counted, they are the mean's. Both
    factors are applied in one pass. Pascanu et al. 2013, arXiv:1211.5063.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients)).item() / divisor
    factor = 1 / divisor
    if max_norm > 0 and norm > max_norm:
        factor *= max_norm / norm
    torch._foreach_mul_(gradients, factor)
    return norm
