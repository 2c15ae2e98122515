"""The schedule by its shape, clipping against torch's, AdamW against the paper's formula."""

import math

import pytest
import torch
from torch import nn

from gpt.config import OptimConfig
from gpt.model import GPTModel
from gpt.optim import create_optimizer, learning_rate, parameter_groups, scale_and_clip

CONFIG = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=10, weight_decay=0.1)


def test_warm_up_is_linear_and_never_zero():
    rates = [learning_rate(step, CONFIG, 110) for step in range(11)]
    assert rates[:10] == pytest.approx([0.1 * (k + 1) for k in range(10)])
    assert rates[10] == pytest.approx(1.0)


def test_cosine_goes_down_half_a_wave_and_stays():
    assert learning_rate(35, CONFIG, 110) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(60, CONFIG, 110) == pytest.approx(0.55)
    assert learning_rate(110, CONFIG, 110) == learning_rate(10_000, CONFIG, 110) == pytest.approx(0.1)


def test_cosine_is_pytorchs_own():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    truth = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.1)
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=0)
    for step in range(50):
        assert learning_rate(step, config, 50) == pytest.approx(truth.get_last_lr()[0])
        optimizer.step(), truth.step()


def test_linear_and_constant():
    linear, constant = (OptimConfig(lr=1.0, min_lr=0.0, warmup_steps=0, schedule=s) for s in ("linear", "constant"))
    assert [learning_rate(step, linear, 4) for step in range(6)] == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0])
    assert {learning_rate(step, constant, 4) for step in range(9)} == {1.0}


def test_a_warm_up_longer_than_the_run_is_no_error():
    assert learning_rate(3, CONFIG, 5) == pytest.approx(0.4)
    assert learning_rate(10, CONFIG, 5) == pytest.approx(1.0)
    assert learning_rate(11, CONFIG, 5) == pytest.approx(0.1)


def test_only_matrices_decay():
    model = GPTModel(
        {"vocab_size": 7, "context_length": 4, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "qkv_bias": True}
    )
    decayed, kept = parameter_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in kept["params"]} == {"bias", "scale", "shift"}
    assert all(p.dim() == 2 for p in decayed["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_frozen_parameters_are_left_out():
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    (group,) = create_optimizer(layer, CONFIG).param_groups
    assert group["params"] == [layer.bias]
    layer.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        create_optimizer(layer, CONFIG)


def test_adamw_is_the_papers_formula():
    """Loshchilov and Hutter 2019, algorithm 2, three steps by hand in float64."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2, bias=False).double()
    optimizer = create_optimizer(layer, CONFIG)
    theta, m, v = layer.weight.detach().clone(), torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    for t in range(1, 4):
        gradient = torch.randn(2, 3).double()
        layer.weight.grad = gradient.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.95**t)
        theta = theta - 1.0 * 0.1 * theta - 1.0 * m_hat / (v_hat.sqrt() + 1e-8)
        torch.testing.assert_close(layer.weight.detach(), theta)


@pytest.mark.parametrize("divisor", [1, 7.0])
@pytest.mark.parametrize("max_norm", [0, 0.5, 1e9])
def test_scale_and_clip_against_torch(divisor, max_norm):
    torch.manual_seed(1)
    a, b = ([nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))] for _ in "ab")
    for p, q in zip(a[:2], b[:2], strict=True):  # the third has no gradient
        p.grad = torch.randn_like(p) * 9
        q.grad = p.grad / divisor
    norm = scale_and_clip(a, divisor, max_norm)
    true_norm = nn.utils.clip_grad_norm_(b, max_norm or math.inf)
    assert norm == pytest.approx(true_norm.item(), rel=1e-6)
    for p, q in zip(a[:2], b[:2], strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6)
