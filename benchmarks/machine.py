"""Describe the machine and measure its peak rates: matrix products and memory reads. Shares are relative to these."""

import os
import time
from collections.abc import Callable

import psutil
import torch

from gpt.system.device import has_fast_bfloat16, machine

# (rows, columns, inner): square, and those of a GPT-2 batch of 1,024 tokens through its feed-forward layer and its head
SHAPES = [(2048, 2048, 2048), (4096, 4096, 4096), (1024, 3072, 768), (1024, 50304, 768)]
READ = 2**30  # bytes: far more than any cache holds
LIMITS = ("ATEN_CPU_CAPABILITY", "GPT_KERNELS", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")


def describe() -> dict:
    """Return what distinguishes kinds of machine: the CPU by name, family and model number, the instructions that
    PyTorch uses and those that the environment forbids, physical cores (None if unknown) and PyTorch's threads.

    A cloud machine's CPU may be named no more exactly than "AMD EPYC". Only Linux on x86 has the numbers, else None.
    """
    here = machine()
    return {
        "cpu": here["cpu"],
        **{key: int(here[key]) if key in here else None for key in ("family", "model")},
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": has_fast_bfloat16(),
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
    }


def rates(quick: bool = False) -> dict[str, float]:
    """Return the float32 FLOP/s of PyTorch's matrix product and of oneDNN's (0 if PyTorch lacks it), and those of
    PyTorch's in bfloat16 (0 without hardware for it), each the best over several large shapes; and the bytes/s of a sum
    over a large tensor by all threads."""
    shapes, n_bytes = ([(256, 256, 256)], 2**22) if quick else (SHAPES, READ)
    found = {"matmul": 0.0, "onednn": 0.0, "bfloat16": 0.0}
    for rows, columns, inner in shapes:
        x, weight = torch.rand(rows, inner), torch.rand(columns, inner)
        flops = 2 * rows * columns * inner
        found["matmul"] = max(found["matmul"], flops / _best(lambda x=x, w=weight: x @ w.T))
        if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            linear = torch.ops.mkldnn._linear_pointwise
            seconds = _best(lambda x=x, w=weight, f=linear: f(x, w, None, "none", [], ""))
            found["onednn"] = max(found["onednn"], flops / seconds)
        if has_fast_bfloat16():
            x, weight = x.bfloat16(), weight.bfloat16()
            found["bfloat16"] = max(found["bfloat16"], flops / _best(lambda x=x, w=weight: x @ w.T))
    x = torch.ones(n_bytes // 4)
    return {**found, "bandwidth": n_bytes / _best(x.sum)}


@torch.no_grad()
def _best(work: Callable[[], object]) -> float:
    """Return the shortest of five times in seconds, after an untimed run."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])
