"""Tolerances from an error bound, so that a test holds on every CPU and not only on the one that it was written on."""

import math

import torch


def tolerance(n_terms, *sizes, dtype=torch.float64):
    """Return how far two computations of the same result may differ by rounding alone.

    n_terms is the number of roundings that add up in one result: the length of a sum, or of a chain of sums the lengths
    added up. sizes are numbers or tensors as large as what is summed: sum |x_i| (a bound is enough), or the logits that
    a loss is made of. Pass the result as `abs` or `atol`; without sizes it is relative, for `rel` or `rtol`.

    Each of n operations rounds by at most u = eps / 2 of its result, and no partial sum exceeds S = sum |x_i|, so that
    a sum in whatever order is off by at most n u S (Higham 2002, section 4.2). Rounding errors have both signs: the
    error exceeds k sqrt(n) u S with a probability of at most 2 n exp(-k² / 2) (Higham and Mary 2019, theorem 2.4). The
    result here, 4 sqrt(n) eps S, is k = 8: about 2e-14 n, and half of it for each of the two sides compared. The order
    of a sum, the width of a SIMD register and fused multiply-adds make no difference to the bound.
    """
    size = max((float(torch.as_tensor(size).detach().abs().max()) for size in sizes), default=1.0)
    return 4 * math.sqrt(n_terms) * torch.finfo(dtype).eps * size
