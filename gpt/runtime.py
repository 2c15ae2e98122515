"""The machine: which device computes, in which precision, and what to do when it has not enough memory."""

import contextlib
import ctypes
import os
import platform
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
from torch import nn

TWICE_AT_ONCE = 0.2  # seconds in which a second signal is the first again: `timeout` sends each one twice


def tune() -> None:
    """Have glibc keep the memory of freed tensors for the next step, instead of handing it back to the system; and CUDA
    multiply float32 matrices in TF32, which rounds what it multiplies to 10 bits and adds up in float32.

    Call it before the first tensor. Otherwise each step's large activations are new memory, whose pages the system
    clears one by one at their first touch: a third of a training step's time on a CPU. Without glibc and without CUDA
    it does nothing.
    """
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
    if sys.platform != "linux":
        return
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # glibc's malloc.h
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**26)


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


def compiled(module: nn.Module, device: torch.device, say: Callable[[str], None]) -> nn.Module:
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


def memory_there_is(device: torch.device) -> int:
    """Bytes that this process can come to hold on a device: those that are free, and those it holds already.

    On a CPU a container's limit counts too, as its control group has it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    own = psutil.Process().memory_info()
    left = [psutil.virtual_memory().available, *_left_in_groups()]
    with contextlib.suppress(ImportError):  # on Windows
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)  # ulimit -v
        left += [max(0, limit - own.vms)] * (limit != resource.RLIM_INFINITY)
    return own.rss + min(left)


def _left_in_groups(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that each control group of this process, and each group around it, has left; none without a limit.

    What a group holds of files that nobody waits for can be given back, so it counts as left.
    """
    left = []
    with contextlib.suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":  # version 2
                top, limit, used, inactive = root, "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):  # version 1
                top, inactive = root / "memory", "total_inactive_file"
                limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
            else:
                continue
            group = top / path.strip("/")
            for folder in (group, *group.parents):  # in a container the path may be the host's: its own group is `top`
                with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                    held = int((folder / used).read_text())
                    files = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                    left.append(int((folder / limit).read_text()) - held + int(files.get(inactive, 0)))
                if folder == top:
                    break
    return left


def disk_there_is(folder: str | Path) -> int:
    """Bytes free where `folder` is, or will be made, and those of the checkpoints that it holds already."""
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    held = sum(file.stat().st_size for file in (folder / "checkpoints").glob("step-*/*"))
    return shutil.disk_usage(there).free + held


@contextlib.contextmanager
def memory_advice(batch_size: int, accumulate: int) -> Iterator[None]:
    """Turns an out-of-memory error into a sentence that names the setting to lower, and by how much."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # CUDA has a class of its own, a CPU allocator only this text
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "alloc" not in str(error).lower():
            raise
        if batch_size > 1:
            smaller = (batch_size + 1) // 2
            advice = f"batch_size {smaller} with accumulate {-(-batch_size * accumulate // smaller)} takes about half"
        else:
            advice = "lower model.context_length, model.n_layers or model.emb_dim"
        raise ValueError(f"not enough memory at batch_size {batch_size}: {advice}") from error


@contextlib.contextmanager
def stop_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """A context in which the first of SIGINT, SIGTERM and SIGHUP (the terminal is closed) calls stop(number), and a
    second one ends the program at once, with status 128 + number.

    Only the main thread may set handlers; in another thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it ignored
        numbers.append(signal.SIGHUP)
    came: list[int] = []

    def first(number: int, frame) -> None:
        if not came:
            came.append(number)
            stop(number)

    before = {number: signal.signal(number, first) for number in numbers}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_end_at_the_second, args=(reader, numbers), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()  # which ends the watcher
        watcher.join()
        reader.close()


def _end_at_the_second(reader: socket.socket, numbers: list[int]) -> None:
    """Reads the number of each signal as it comes. A handler would have to wait for its turn, and a backward pass,
    which to Python is a single call, may take a minute."""
    first = None
    while number := reader.recv(1):
        if number[0] in numbers:
            now = time.monotonic()
            first = now if first is None else first
            if now - first > TWICE_AT_ONCE:
                os._exit(128 + number[0])


def machine(device: torch.device) -> dict[str, str | int]:
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


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; from memory that is pinned CUDA copies it while it still computes."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work, so that a clock read next tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
