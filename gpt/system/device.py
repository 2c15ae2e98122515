"""The device, its precision, compilation and random state."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from gpt.system.paths import cache_folder

MIN_BFLOAT16_PARAMETERS = 3_000_000  # smaller models do not train faster in bfloat16 on a CPU (docs/speed-log.md)


def choose_device(name: str = "auto") -> torch.device:
    """Return a device by name. "auto" is CUDA if available, otherwise Apple's MPS, otherwise the CPU.

    ValueError for an unknown name, and for a device that this machine or build of PyTorch does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: auto, cpu, cuda, cuda:1, mps") from None
    available = {
        "cpu": lambda: device.index in (None, 0),
        "cuda": lambda: torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": lambda: torch.backends.mps.is_available(),
    }
    if not available.get(device.type, lambda: False)():
        raise ValueError(f"device {name!r} is not available on this machine: device cpu always is")
    return device


def choose_dtype(name: str, device: torch.device, n_parameters: int) -> torch.dtype:
    """Return the precision of a model's matrix products. "auto" is bfloat16 where the hardware multiplies it.

    That is on a CUDA device, or on a CPU for models of MIN_BFLOAT16_PARAMETERS and more. An older CUDA device, such as
    a T4, gets float16, which it multiplies eight times as fast as float32. Otherwise "auto" is float32. Weights and
    optimizer state are always float32.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if cuda_has_bfloat16() else torch.float16
    is_fast = device.type == "cpu" and n_parameters >= MIN_BFLOAT16_PARAMETERS and has_fast_bfloat16()
    return torch.bfloat16 if is_fast else torch.float32


def cuda_has_bfloat16() -> bool:
    """Return whether the CUDA device multiplies bfloat16 in hardware."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def has_fast_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware, by AVX-512 or AMX. Others emulate it, slowly.

    So does oneDNN where the environment limits its instructions.
    """
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not public: another PyTorch may lack them
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    is_allowed = limit in ("ALL", "DEFAULT") or limit.endswith(("BF16", "FP16", "AMX"))
    return is_allowed and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """A context in which matrix products run in `dtype`."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def compile_obstacle(device: torch.device) -> str | None:
    """Return the reason why torch.compile cannot work here, or None."""
    if device.type == "mps":
        return "torch.compile is unreliable on MPS"
    if device.type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            return "torch.compile on CUDA needs the package triton"
    elif not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        return "torch.compile on a CPU needs a C++ compiler (g++, clang++ or cl)"
    return None


def keep_compiled_code() -> None:
    """Keep what torch.compile makes in the user's cache folder, apart for each kind of machine.

    PyTorch's own folder is lost when the machine restarts, and takes no notice of a limit on the instructions to use
    (ATEN_CPU_CAPABILITY): code compiled for AVX-512 computes nonsense within a program limited to AVX2. It serves where
    the user's cannot be written.
    """
    folder = cache_path("compiled")
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    is_default = not given or Path(given).name.startswith(
        "torchinductor_"
    )  # PyTorch writes its own there once it is used
    if is_default and os.access(folder, os.W_OK):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def environment(device: torch.device) -> dict[str, str | int]:
    """Return what the last digits of a run's results depend on in addition to its config."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}" * (device.type == "cpu")
    facts = {
        "device": f"{device.type} {kind}".strip(),
        "PyTorch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return facts | ({"TF32": str(torch.backends.cuda.matmul.allow_tf32)} if device.type == "cuda" else {})


def allow_tf32(device: torch.device) -> None:
    """Let a CUDA device multiply float32 matrices in TF32, for training: factors are rounded to 10 bits."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True


def machine() -> dict[str, str | int]:
    """Return what the speed of a product depends on, apart from its shape, and what compiled code depends on."""
    known = {"model name": platform.processor() or platform.machine()}
    with contextlib.suppress(OSError):  # Linux has the model's name here; that of a cloud's CPU may be just "AMD EPYC"
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        known |= {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    names = {"cpu": "model name", "family": "cpu family", "model": "model"}
    limits = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
    return {
        **{key: known[name] for key, name in names.items() if name in known},
        **environment(torch.device("cpu")),
        **{limit: os.environ[limit] for limit in limits if limit in os.environ},
    }


def cache_path(name: str) -> Path:
    """Return the path for what this kind of machine may reuse, in the user's cache folder."""
    digest = hashlib.sha256(json.dumps(machine(), sort_keys=True).encode()).hexdigest()[:12]
    return cache_folder() / f"{name}-{digest}"


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of the random generators that training uses."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore the generators to a state returned by `random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move a tensor to a device. CUDA copies pinned memory while it computes.

    Elsewhere the copy is complete on return: MPS would still read memory that has been freed (pytorch issue 189690).
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def stack_scalars(values: Sequence[float | torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return numbers and scalar tensors as one tensor on a device, without waiting for it; float64 but on MPS."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    scalars = (v if isinstance(v, torch.Tensor) else torch.full((), v, device=device) for v in values)
    return torch.stack([scalar.to(dtype) for scalar in scalars])


def read_later(tensor: torch.Tensor) -> Callable[[], list[float]]:
    """Start to copy a tensor to the host. Return a function that waits for this copy, but not for what a GPU has been
    given to do since, and returns the numbers."""
    if not tensor.is_cuda:
        return tensor.tolist
    copy, copied = tensor.to("cpu", non_blocking=True), torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return copy.tolist()

    return read


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished, for example before reading a clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class _SkipInitialization(TorchFunctionMode):
    """A context in which the functions of torch.nn.init do nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """A context in which new modules have shapes but no memory (the meta device), for weights to be assigned.

    They are not initialized: on that device PyTorch would import its compiler for it, which takes seconds.
    """
    with torch.device("meta"), _SkipInitialization():
        yield
