"""Which of PyTorch's attention kernels a CUDA device uses: measured where the program runs.

FlashAttention 2 comes with PyTorch, cuDNN's kernel too; FlashAttention 3 and 4 are there if their packages are
installed. Which one is fastest depends on the card and on the shape.
"""

import contextlib
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn import attention
from torch.nn.attention import SDPBackend

ROUNDS = 5
# name: PyTorch's backend, and the implementation of FlashAttention to activate for it
KERNELS = {
    "flash": (SDPBackend.FLASH_ATTENTION, None),
    "cudnn": (SDPBackend.CUDNN_ATTENTION, None),
    "FA3": (SDPBackend.FLASH_ATTENTION, "FA3"),
    "FA4": (SDPBackend.FLASH_ATTENTION, "FA4"),
}


def fastest_attention(
    shape: tuple[int, int, int, int], n_kv_heads: int, drop_rate: float, dtype: torch.dtype, device: torch.device
) -> str:
    """Return the name of the fastest kernel for causal attention, forward and backward, on a CUDA device; "" where none
    of them works, and on other devices or in float32, where there is no choice.

    Queries have the `shape` (B, H, T, K), keys and values (B, G, T, K).
    """
    if device.type != "cuda" or dtype == torch.float32:
        return ""
    keys = (shape[0], n_kv_heads, *shape[2:])
    query, key, value = (torch.randn(s, dtype=dtype, device=device, requires_grad=True) for s in (shape, keys, keys))

    def step() -> None:
        is_grouped = n_kv_heads != shape[1]
        result = F.scaled_dot_product_attention(query, key, value, None, drop_rate, True, enable_gqa=is_grouped)
        torch.autograd.grad(result.sum(), (query, key, value))
        torch.cuda.synchronize(device)

    with torch.random.fork_rng([device]):
        return fastest(step)


def fastest(step: Callable[[], None]) -> str:
    """Return the name of the kernel by which `step` takes the least time; "" if it works by none."""
    times = {}
    for name, (backend, implementation) in KERNELS.items():
        with contextlib.suppress(ImportError, RuntimeError, ValueError):  # not installed, or not for this card or shape
            _activate(implementation)
            with attention.sdpa_kernel(backend):
                step()  # a warm-up
                for _ in range(ROUNDS):
                    start = time.perf_counter()
                    step()
                    times[name] = min(time.perf_counter() - start, times.get(name, float("inf")))
    _activate(None)
    return min(times, key=times.get, default="")


def use_attention(name: str) -> None:
    """Let this process use a kernel by its name wherever it works, from now on; "" changes nothing."""
    if name:
        _activate(KERNELS[name][1])
        torch.backends.cuda.enable_flash_sdp(name != "cudnn")
        torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")


def _activate(implementation: str | None) -> None:
    """Let FlashAttention be computed by an implementation; None: PyTorch's own."""
    if not hasattr(attention, "activate_flash_attention_impl"):  # an older PyTorch
        if implementation:
            raise ImportError
    elif implementation:
        attention.activate_flash_attention_impl(implementation)
    elif attention.current_flash_attention_impl():
        attention.restore_flash_attention_impl()
