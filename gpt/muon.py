"""Muon: the momentum of a matrix, with all its singular values brought near 1, is the step.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon.

A gradient's few large singular values would have all the say; made orthogonal, the step moves in every direction alike.
"""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from gpt.parallel import shared_like, whole

# x -> a·x + b·x^3 + c·x^5, one after the other, lift singular values from 0.01 .. 1 to 0.18 .. 1.87: the first three
# steps of table 1 in Amsel et al. 2025, "The Polar Express", arXiv:2505.16932. More steps come nearer to 1 and train no
# better.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)
AT_ONCE = 2**22  # numbers of the matrices that are made orthogonal together: 16 MB in float32


def orthogonalise(matrices: Tensor) -> Tensor:
    """About U·V^T of each matrix U·S·V^T of a batch, (n, R, C) -> (n, R, C); of zeros, zeros.

    A Newton-Schulz iteration, matrix products alone: an odd polynomial of X takes its singular values one by one, since
    X·X^T·X = U·S^3·V^T. It is P·X with P = a + b·G + c·G^2, G = X·X^T, and the next X has the Gram matrix P·G·P: so all
    but the first product and the last are of (R, R) matrices. It begins with X over the root of |G|, the Frobenius
    norm, which is nearer to the largest singular value than |X| is, and no smaller.
    """
    if matrices.size(-2) > matrices.size(-1):  # the shorter side is the Gram matrix's
        return orthogonalise(matrices.mT).mT
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
    """a + b·G + c·G^2 of each matrix G of a batch, (n, R, R)."""
    result = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result


class Muon(torch.optim.Optimizer):
    """Muon on `matrices`, its first parameter group; AdamW on `others`, the groups after it.

    M <- momentum·M + (1 - momentum)·G, then W <- W - lr·(weight_decay·W + 0.2·sqrt(max(R, C))·UV^T of Nesterov's
    momentum·M + (1 - momentum)·G), for W of shape (R, C). The root gives a step the size of AdamW's, so that both take
    one learning rate: Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv:2502.16982, section 2.2.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[dict],
        lr: float,
        momentum: float,
        weight_decay: float,
        betas: tuple[float, float],
    ):
        self.adamw = torch.optim.AdamW(others, lr=lr, betas=betas, fused=True)
        own = {"params": matrices, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([own, *self.adamw.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        own, *others = self.param_groups
        by_shape = defaultdict(list)  # one product over a batch is faster than many small ones
        for matrix in own["params"]:
            if matrix.grad is not None:
                by_shape[matrix.shape].append(matrix)
        for shape, matrices in by_shape.items():
            at_once = max(1, AT_ONCE // shape.numel())
            for first in range(0, len(matrices), at_once):
                self._update(matrices[first : first + at_once], own)
        self.adamw.param_groups, self.adamw.state = others, self.state  # load_state_dict makes new ones
        self.adamw.step()

    def _update(self, matrices: list[nn.Parameter], group: dict) -> None:
        """One step of Muon on matrices of one shape."""
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        gradients, means = [m.grad for m in matrices], [self.state[m]["momentum"] for m in matrices]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        ahead = torch.stack([whole(m) for m in torch._foreach_lerp(gradients, means, group["momentum"])])  # (n, R, C)
        length = group["lr"] * 0.2 * math.sqrt(max(ahead.shape[1:]))
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        steps = [shared_like(step, matrix) for step, matrix in zip(orthogonalise(ahead), matrices, strict=True)]
        torch._foreach_add_(matrices, steps, alpha=-length)
