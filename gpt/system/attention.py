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


def choose_attention(
    shape: tuple[int, int, int, int], n_kv_heads: int, dtype: torch.dtype, device: torch.device
) -> str:
    """Let this process use the fastest kernel for causal attention of queries of `shape` (B, H, T, K), keys and values
    (B, G, T, K); return its name. Without a choice, as on a CPU or in float32, return "".
    """
    if device.type != "cuda" or dtype == torch.float32:
        return ""
    n_examples, _, n_tokens, head_dim = shape
    keys = (n_examples, n_kv_heads, n_tokens, head_dim)
    query, key, value = (torch.randn(s, dtype=dtype, device=device, requires_grad=True) for s in (shape, keys, keys))

    def step() -> None:
        result = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=keys[1] != shape[1])
        torch.autograd.grad(result.sum(), (query, key, value))
        torch.cuda.synchronize(device)

    best = fastest(step)
    _activate(best)
    torch.backends.cuda.enable_flash_sdp(best != "cudnn")
    torch.backends.cuda.enable_cudnn_sdp(best == "cudnn")
    return best


def fastest(step: Callable[[], None]) -> str:
    """Return the name of the kernel by which `step` takes the least time; "flash" if none works."""
    times = {}
    for name, (backend, _) in KERNELS.items():
        with contextlib.suppress(ImportError, RuntimeError, ValueError):  # not installed, or not for this card or shape
            _activate(name)
            with attention.sdpa_kernel(backend):
                step()  # a warm-up
                for _ in range(ROUNDS):
                    start = time.perf_counter()
                    step()
                    times[name] = min(time.perf_counter() - start, times.get(name, float("inf")))
    return min(times, key=times.get, default="flash")


def _activate(name: str) -> None:
    """Let FlashAttention be computed by the implementation of a kernel, PyTorch's own if it names none."""
    _, implementation = KERNELS[name]
    if implementation:
        attention.activate_flash_attention_impl(implementation)
    elif attention.current_flash_attention_impl():
        attention.restore_flash_attention_impl()
