"""The device that computes, its precision, its random state."""

import contextlib
import platform
import shutil
from collections.abc import Callable

import torch
from torch import nn


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, then Apple's MPS, then the CPU.

    ValueError for an unknown name and for a device that this machine, or this build of PyTorch, does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: auto, cpu, cuda, cuda:1, mps") from None
    there = {
        "cpu": lambda: device.index in (None, 0),
        "cuda": lambda: torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": lambda: torch.backends.mps.is_available(),
    }
    if not there.get(device.type, lambda: False)():
        raise ValueError(f"device {name!r} is not available on this machine: device cpu always is")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of the matrix products; "auto" is bfloat16 where a CUDA device has it in hardware.

    On a CPU "auto" stays at float32: there the figures are meant to come out alike on every machine. Weights, and
    what the optimizer keeps, are float32 in any case.
    """
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """A context in which matrix products run in `dtype`; nothing to do for float32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def compile_obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, in words, or None."""
    if device.type == "mps":
        return "torch.compile is not dependable on MPS"
    if device.type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            return "torch.compile on CUDA needs the package triton"
    elif not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        return "torch.compile on a CPU needs a C++ compiler (g++, clang++ or cl)"
    return None


def compile_module(module: nn.Module, device: torch.device, say: Callable[[str], None]) -> nn.Module:
    """A module as torch.compile makes it; as it is, and a word about it, where that cannot work."""
    if obstacle := compile_obstacle(device):
        say(f"going on without compile = true: {obstacle}")
        return module
    return torch.compile(module)


@torch.no_grad()
def check_device(model: nn.Module, token_ids: torch.Tensor) -> None:
    """Compare one batch of logits of `model` with the CPU's. Some MPS releases compute wrongly and say nothing.

    RuntimeError where they differ by more than rounding.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    there = model(token_ids.to(device)).float().cpu()
    here = model.to("cpu")(token_ids).float()
    model.to(device).train(was_training)
    difference = (there - here).abs().max().item()
    if not difference <= 1e-2 * max(1.0, here.abs().max().item()):
        raise RuntimeError(
            f"{device} computes wrongly: its logits differ from the CPU's by {difference:.3g}. "
            f"Train with device cpu, or with another version of PyTorch or of the system"
        )


def environment(device: torch.device) -> dict[str, str | int]:
    """What the last digits of a run depend on besides its config: where all of it is the same, so are they."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}" * (device.type == "cpu")
    return {
        "device": f"{device.type} {kind}".strip(),
        "PyTorch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of the generators that training draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Have the generators go on as they would have after `random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; from memory that is pinned CUDA copies it while it still computes."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work, so that a clock read next tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
