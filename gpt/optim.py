"""Optimizers (AdamW, Muon), gradient clipping, and the learning rate as a pure function of the step.

Notebooks: 07_training, 16_run_taken_apart.
"""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from gpt.config import OptimConfig
from gpt.system.device import cuda_has_bfloat16
from gpt.system.distributed import SINGLE_PROCESS, DistContext, full_tensor, shard_like
from gpt.system.sharded_files import read_like


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Return the trainable parameters in groups: matrices with weight decay, vectors (biases, norms) without."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices, vectors = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
    groups = ({"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return the trainable matrices between the embeddings and the heads, which map vectors to vectors.

    In the other matrices each row belongs to one token, position or class.
    """
    heads = [m for m in module.modules() if isinstance(m, nn.Embedding) or getattr(m, "role", "") == "head"]
    tables = {p for head in heads for p in head.parameters(recurse=False)}
    return [p for p in module.parameters() if p.requires_grad and p.dim() == 2 and p not in tables]


def create_optimizer(
    module: nn.Module, config: OptimConfig, ctx: DistContext = SINGLE_PROCESS
) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) for the trainable parameters of `module`, or Muon for
    its hidden matrices and AdamW for the rest. ValueError if nothing is trainable."""
    groups, hidden = parameter_groups(module, config.weight_decay), hidden_matrices(module)
    if config.name == "adamw" or not hidden:
        return _adamw(groups, config)
    others = [{**group, "params": [p for p in group["params"] if p not in set(hidden)]} for group in groups]
    return Muon(hidden, others, config, ctx)


def _adamw(groups: list[dict], config: OptimConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def restore(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load the state and learning rate of a `state_dict`, sharded as the parameters are. All else stays as configured.

    The state has to fit the parameters: the fused kernel does not check it.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {number: read_like(values, parameters[number]) for number, values in saved["state"].items()}
    groups = zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    groups = [{**group, "lr": before["lr"]} for group, before in groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def learning_rate(step: int, config: OptimConfig, max_steps: int) -> float:
    """Return the learning rate of step `step`, counted from 0, in a run of `max_steps`.

    It rises linearly to `lr` over warmup_steps, then falls along half a cosine (Loshchilov and Hutter 2017,
    arXiv:1608.03983) or a line to `min_lr` at decay_steps (0: max_steps), and stays there. "constant" stays at `lr`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(1, (config.decay_steps or max_steps) - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)  # 0 .. 1
    remaining = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + (config.lr - config.min_lr) * remaining


def scale_and_clip(parameters: list[nn.Parameter], divisor: Tensor, max_norm: float) -> Tensor:
    """Divide gradients by `divisor` and clip their global norm to `max_norm` (0: no clipping) in one pass over memory.

    Return the norm before clipping, a scalar, as the divisor is: nothing waits for the device. Divided by the number of
    tokens, gradients of summed losses become those of the mean. Pascanu et al. 2013, arXiv:1211.5063.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients)) / divisor
    factor = 1 / divisor
    if max_norm > 0:
        factor = factor * (max_norm / norm).clamp(max=1)
    torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
    return norm


# Three polynomials x -> a·x + b·x^3 + c·x^5 that together take singular values from 0.01 .. 1 to 0.18 .. 1.87: the
# first rows of table 1 in Amsel et al. 2025, "The Polar Express", arXiv:2505.16932. More rows come closer to 1 but
# train no better.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)
MAX_ELEMENTS = 2**22  # of the matrices orthogonalized together on a CPU: 16 MB in float32; 64 times as many on a GPU


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return approximately U·V^T for each matrix U·S·V^T of a batch (n, R, C); zeros for zeros.

    A Newton-Schulz iteration needs matrix products only: an odd polynomial of X acts on its singular values, because
    X·X^T·X = U·S^3·V^T. It equals P·X with P = a + b·G + c·G^2 and G = X·X^T, and the next Gram matrix is P·G·P, so all
    products but the first and last are of (R, R) matrices. X is first divided by the root of |G|, the Frobenius
    norm, which is closer to the largest singular value than |X| and no smaller than it.
    """
    if matrices.size(-2) > matrices.size(-1):  # the Gram matrix is that of the shorter side
        return orthogonalize(matrices.mT).mT
    gram = matrices @ matrices.mT  # (n, R, R)
    norm = gram.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(gram.dtype).tiny)  # (n, 1, 1)
    gram /= norm
    polynomial = product = _quadratic(gram, *POLAR_EXPRESS[0])
    for coefficients in POLAR_EXPRESS[1:]:
        gram = polynomial @ gram @ polynomial
        polynomial = _quadratic(gram, *coefficients)
        product = polynomial @ product
    return product @ (matrices / norm.sqrt())


def _quadratic(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """Return a + b·G + c·G^2 for each matrix G of a batch, (n, R, R)."""
    result = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result


class Muon(torch.optim.Optimizer):
    """Muon for `matrices`, the first parameter group; AdamW for `others`, the remaining groups.

    M <- momentum·M + (1 - momentum)·G, then W <- W - lr·(weight_decay·W + 0.2·sqrt(max(R, C))·UV^T of Nesterov's
    momentum·M + (1 - momentum)·G), for W of shape (R, C). The root makes the size of a step that of AdamW, so that both
    use one learning rate: Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv:2502.16982, section 2.2.
    """

    def __init__(self, matrices: list[nn.Parameter], others: list[dict], config: OptimConfig, ctx: DistContext):
        self.ctx = ctx
        self.adamw = _adamw(others, config)
        own = {"params": matrices, "momentum": config.beta1, "weight_decay": config.weight_decay}
        super().__init__([own, *self.adamw.param_groups], {"lr": config.lr})

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        own, *others = self.param_groups
        by_shape = defaultdict(list)  # one batched product is faster than many small ones
        for matrix in own["params"]:
            if matrix.grad is not None:
                by_shape[matrix.shape].append(matrix)
        for shape, matrices in by_shape.items():
            n = max(1, MAX_ELEMENTS * (64 if matrices[0].is_cuda else 1) // shape.numel())
            for start in range(0, len(matrices), n):
                self._update(matrices[start : start + n], own)
        self.adamw.param_groups, self.adamw.state = others, self.state  # load_state_dict replaces them
        self.adamw.step()

    def _update(self, matrices: list[nn.Parameter], group: dict) -> None:
        """Do one step on matrices of one shape. The processes share the work; a GPU computes directions in bfloat16."""
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        gradients, means = [m.grad for m in matrices], [self.state[m]["momentum"] for m in matrices]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, means, group["momentum"])
        stack = torch.stack([full_tensor(m) for m in ahead])  # (n, R, C)
        rounded = stack.bfloat16() if stack.is_cuda and cuda_has_bfloat16() else stack
        directions = self.ctx.map_rows(orthogonalize, rounded).to(stack.dtype)
        steps = [shard_like(step, matrix) for step, matrix in zip(directions, matrices, strict=True)]
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, steps, alpha=-group["lr"] * 0.2 * math.sqrt(max(directions.shape[1:])))
