"""The choice of an attention kernel, with kernels that a CPU has in place of a GPU's."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from gpt.system import attention
from gpt.system.attention import fastest, fastest_attention, use_attention


@pytest.mark.parametrize("best", ["first", "second"])
def test_the_kernel_that_takes_the_least_time_is_chosen(monkeypatch, best):
    """PyTorch's plain formula and its CPU's FlashAttention; the other one is made to wait."""
    kernels = {"first": (SDPBackend.MATH, None), "second": (SDPBackend.FLASH_ATTENTION, None)}
    monkeypatch.setattr(attention, "KERNELS", {**kernels, "broken": (SDPBackend.CUDNN_ATTENTION, None)})
    used = []

    def step():
        x = torch.ones(1, 2, 8, 4)
        F.scaled_dot_product_attention(x, x, x, is_causal=True)
        backend = torch._fused_sdp_choice(x, x, x, is_causal=True)
        used.append(backend)
        if backend != kernels[best][0].value:
            time.sleep(0.02)

    assert fastest(step) == best
    assert set(used) == {backend.value for backend, _ in kernels.values()}


def test_an_implementation_that_is_not_installed_is_passed_over(monkeypatch):
    monkeypatch.setattr(attention, "KERNELS", {name: attention.KERNELS[name] for name in ("FA3", "flash")})
    assert fastest(lambda: None) == "flash"
    assert torch.nn.attention.current_flash_attention_impl() is None
    for name in ("activate_flash_attention_impl", "current_flash_attention_impl"):
        monkeypatch.delattr(torch.nn.attention, name)  # an older PyTorch
    assert fastest(lambda: None) == "flash"


def test_where_no_kernel_works_nothing_is_chosen_or_changed(monkeypatch):
    def step():
        raise RuntimeError("no kernel for this card")

    monkeypatch.setattr(torch.backends.cuda, "enable_flash_sdp", lambda on: pytest.fail("changed"))
    assert fastest(step) == ""
    use_attention("")


def test_there_is_no_choice_on_a_cpu_and_in_float32():
    assert fastest_attention((1, 2, 8, 4), 1, 0.0, torch.bfloat16, torch.device("cpu")) == ""
    assert fastest_attention((1, 2, 8, 4), 1, 0.0, torch.float32, torch.device("cuda")) == ""
