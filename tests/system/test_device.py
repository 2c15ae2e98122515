"""The choice of device and precision, memory, and signals."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from gpt.system.device import (
    allow_tf32,
    autocast,
    choose_device,
    choose_dtype,
    compile_obstacle,
    environment,
    has_fast_bfloat16,
    shutil,
)
from gpt.system.errors import oom_hint
from gpt.system.memory import ctypes, set_allocator_flags
from gpt.system.signals import stop_signals


def pretend(monkeypatch, cuda=False, mps=False, bf16=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if cuda else 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(False, False, "cpu"), (True, False, "cuda"), (False, True, "mps"), (True, True, "cuda")],
)
def test_auto_takes_the_first_available_device(monkeypatch, cuda, mps, device):
    pretend(monkeypatch, cuda, mps)
    assert choose_device("auto") == torch.device(device)


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu", "", "cuda:x", "cpu:3", "meta", "xla"])
def test_an_unavailable_device_is_refused(monkeypatch, name):
    pretend(monkeypatch)
    with pytest.raises(ValueError, match="device"):
        choose_device(name)


def test_a_second_gpu(monkeypatch):
    pretend(monkeypatch, cuda=True)
    assert choose_device("cuda:1").index == 1
    with pytest.raises(ValueError, match="cuda:2"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("device", "bf16", "n_parameters", "dtype"),
    [
        ("cuda", True, 1, torch.bfloat16),
        ("cuda", False, 10**9, torch.float16),
        ("cpu", True, 3_000_000, torch.bfloat16),
        ("cpu", True, 2_999_999, torch.float32),
        ("cpu", False, 10**9, torch.float32),
        ("mps", True, 10**9, torch.float32),
    ],
)
def test_precision(monkeypatch, device, bf16, n_parameters, dtype):
    pretend(monkeypatch, cuda=True, bf16=bf16)
    monkeypatch.setattr("gpt.system.device.has_fast_bfloat16", lambda: bf16)
    assert choose_dtype("auto", torch.device(device), n_parameters) == dtype
    for name, given in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)):
        assert choose_dtype(name, torch.device(device), n_parameters) == given


def test_autocast_runs_matrix_products_in_bfloat16():
    a = torch.randn(3, 3)
    with autocast(torch.device("cpu"), torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), torch.float32):
        assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize(
    ("batch_size", "grad_accum_steps", "words"),
    [
        (8, 1, "batch_size 4 with grad_accum_steps 2"),
        (5, 3, "batch_size 3 with grad_accum_steps 5"),
        (1, 4, "lower model.context_length"),
    ],
)
def test_out_of_memory_names_the_setting(batch_size, grad_accum_steps, words):
    with pytest.raises(ValueError, match=words), oom_hint(batch_size, grad_accum_steps):
        torch.empty(2**60)  # a real failure of the CPU's allocator
    with pytest.raises(ValueError, match=words), oom_hint(batch_size, grad_accum_steps):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_other_errors_pass_through_oom_hint():
    with pytest.raises(RuntimeError, match="shape"), oom_hint(1, 1):
        torch.zeros(2) @ torch.zeros(3, 3)  # shapes do not fit


@pytest.mark.parametrize(
    ("device", "found", "obstacle"),
    [("cpu", None, "C++ compiler"), ("cpu", "/usr/bin/c++", None), ("mps", None, "MPS")],
)
def test_compile_obstacle(monkeypatch, device, found, obstacle):
    monkeypatch.setattr(shutil, "which", lambda name: found)
    reason = compile_obstacle(torch.device(device))
    assert reason is None if obstacle is None else obstacle in reason


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(False, False, False), (True, False, True), (False, True, True), (None, None, False)],
)
def test_hardware_for_bfloat16(monkeypatch, avx512, amx, expected):
    """None is a PyTorch that cannot tell."""
    for name, answer in (("_is_avx512_bf16_supported", avx512), ("_is_amx_tile_supported", amx)):
        monkeypatch.delattr(torch.cpu, name, raising=False)
        if answer is not None:
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert has_fast_bfloat16() is expected
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not has_fast_bfloat16()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx512_core_bf16")
    assert has_fast_bfloat16() is expected


def test_set_allocator_flags_is_harmless_on_other_systems(monkeypatch):
    set_allocator_flags()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("glibc's settings on another system"))
    assert set_allocator_flags() is None


def test_tf32_is_allowed_on_cuda_alone_and_part_of_the_environment(monkeypatch):
    products = SimpleNamespace(allow_tf32=False)
    monkeypatch.setattr(torch.backends.cuda, "matmul", products)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    allow_tf32(torch.device("cpu"))
    assert not products.allow_tf32
    assert environment(torch.device("cuda"))["TF32"] == "False"
    allow_tf32(torch.device("cuda"))
    assert environment(torch.device("cuda"))["TF32"] == "True"
    assert "TF32" not in environment(torch.device("cpu"))


def test_set_allocator_flags_sets_three_glibc_options(monkeypatch):
    """No mmap for large blocks, no trimming, a padded heap: M_MMAP_MAX -4, M_TRIM_THRESHOLD -1, M_TOP_PAD -2."""
    settings = {}

    class Libc:
        @staticmethod
        def mallopt(which, value):
            settings[which] = value

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc)
    set_allocator_flags()
    assert settings.keys() == {-4, -1, -2}
    assert settings[-4] == 0
    assert settings[-1] > 2**30


# --- signals ----------------------------------------------------------------------------------------------------------

SIGNALLED = """if True:
    import sys
    import numpy as np
    from gpt.system.signals import stop_signals

    with stop_signals(lambda number: print("stop", number, flush=True)):
        x = np.random.default_rng(0).random((int(sys.argv[1]), int(sys.argv[1])))
        print("ready", flush=True)
        np.linalg.svd(x)  # a single call
    print("end", flush=True)"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
@pytest.mark.parametrize(
    ("numbers", "pause", "status"),
    [([signal.SIGTERM] * 2, 0, 0), ([signal.SIGINT, signal.SIGTERM], 0.3, 143)],
    ids=["the same twice at once", "another one later"],
)
def test_the_first_signal_waits_for_the_current_call_and_the_second_does_not(numbers, pause, status):
    """During a call that takes seconds. A signal that `timeout` sends twice in a row counts once."""
    size = "3000" if status else "1500"  # which takes many seconds, or a few
    process = subprocess.Popen(
        [sys.executable, "-c", SIGNALLED, size],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    for number in numbers:
        process.send_signal(number)
        time.sleep(pause)
    output, errors = process.communicate()
    assert errors == ""
    assert process.returncode == status
    # a second signal interrupts the call, before the handler of the first could run
    assert output == ("" if status else f"stop {int(numbers[0])}\nend\n")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals(print):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_restored():
    numbers = [signal.SIGINT, signal.SIGTERM]
    before = [signal.getsignal(number) for number in numbers]
    stopped = []
    with stop_signals(stopped.append):
        assert [signal.getsignal(number) for number in numbers] != before
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert stopped == [signal.SIGTERM]
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1
