"""The schedule by its shape, clipping against torch's, AdamW against the paper's formula, Muon against torch.optim.Muon
and the singular value decomposition."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from blocks import BLOCKS
from numerics import tolerance
from torch import nn

from gpt import optim
from gpt.config import GPTConfig, OptimConfig
from gpt.model import GPTModel
from gpt.optim import create_optimizer, learning_rate, orthogonalize, parameter_groups, restore, scale_and_clip
from gpt.variants import create_model

CONFIG = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=10, weight_decay=0.1)
TINY = {"vocab_size": 7, "context_length": 4, "emb_dim": 8, "n_heads": 2, "n_layers": 2, "qkv_bias": True}


def test_warm_up_is_linear_and_never_zero():
    rates = [learning_rate(step, CONFIG, 110) for step in range(11)]
    assert rates[:10] == pytest.approx([0.1 * (k + 1) for k in range(10)])
    assert rates[10] == pytest.approx(1.0)


def test_cosine_falls_over_half_a_period_and_stays():
    assert learning_rate(35, CONFIG, 110) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(60, CONFIG, 110) == pytest.approx(0.55)
    assert learning_rate(60, replace(CONFIG, decay_steps=110), 500) == pytest.approx(0.55)
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


@BLOCKS
def test_only_matrices_decay(block):
    model = GPTModel({**TINY, **block})
    decayed, kept = parameter_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    vectors = {names[id(p)].rpartition(".")[2] for p in kept["params"]}
    assert vectors == {"bias", "scale", "shift"} - ({"shift"} if block.get("norm") == "rms" else set())
    assert all(p.dim() == 2 for p in decayed["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_frozen_parameters_are_left_out():
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    (group,) = create_optimizer(layer, CONFIG).param_groups
    assert group["params"] == [layer.bias]
    layer.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="empty parameter list"):
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


# --- Muon -------------------------------------------------------------------------------------------------------------

MUON = OptimConfig(name="muon", lr=0.02, min_lr=0.0, beta1=0.85, weight_decay=0.1)
EXACT = ((2.0, -1.5, 0.5),) * 40  # has a fixed point of slope 0 at 1: each singular value ends there


def with_singular_values(values, n_rows, n_columns):
    """A matrix of those singular values, and the U·V^T that is nearest to it."""
    u, _, vh = torch.linalg.svd(torch.randn(n_rows, n_columns, dtype=torch.float64), full_matrices=False)
    return u @ torch.diag(values.double()) @ vh, u @ vh


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 8, 40), (2, 40, 8), (1, 1, 5)])
def test_orthogonal_matrices_are_those_of_the_singular_value_decomposition(shape):
    """The directions are exact; the singular values come as near to 1 as the three polynomials bring them."""
    matrices = torch.randn(shape, dtype=torch.float64) * 1e-6
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonalize(matrices) @ vh.mT  # diagonal
    lifted = found.diagonal(dim1=-2, dim2=-1)
    # the slopes at 0 multiply to 134: rounding of sums of 40 numbers is amplified as the singular values are
    rounding = tolerance(3 * 3 * 40, 134**2)
    torch.testing.assert_close(found, torch.diag_embed(lifted), rtol=0, atol=rounding)
    assert lifted.max() < 1.87
    assert lifted[values > 0.01 * values.pow(4).sum(-1, keepdim=True) ** 0.25].min() > 0.18


def test_polynomials_come_equally_near_to_one_from_both_sides():
    """As best approximations of 1 do (Amsel et al. 2025), for singular values from 0.001 to 1."""
    low, high = 1e-3, 1.0
    for a, b, c in optim.POLAR_EXPRESS:
        x = torch.linspace(low, high, 100_001, dtype=torch.float64)
        values = a * x + b * x**3 + c * x**5
        assert (values.argmin(), values.min() > 0) == (0, True)
        assert values.min() + values.max() == pytest.approx(2, abs=1e-6)
        low, high = values.min().item(), values.max().item()
    assert low > 0.1


def test_many_steps_of_a_convergent_polynomial_end_in_the_nearest_orthogonal_matrix(monkeypatch):
    monkeypatch.setattr(optim, "POLAR_EXPRESS", EXACT)
    matrix, nearest = with_singular_values(torch.logspace(-3, 1, 6), 6, 17)
    torch.testing.assert_close(orthogonalize(matrix[None])[0], nearest)
    torch.testing.assert_close(orthogonalize(matrix.T[None])[0], nearest.T)


def test_zeros_stay_zeros_and_float32_is_enough():
    assert not orthogonalize(torch.zeros(2, 3, 5)).any()
    matrices = torch.randn(4, 32, 128) @ torch.diag(torch.logspace(-4, 0, 128))
    torch.testing.assert_close(orthogonalize(matrices), orthogonalize(matrices.double()).float(), rtol=0, atol=1e-3)


def test_muon_is_pytorchs_muon(monkeypatch):
    """Momentum, Nesterov's step, scale, decay, and matrices of one shape together. PyTorch's Newton-Schulz steps run in
    bfloat16, and begin at another norm: with polynomials that converge neither matters but for bfloat16's rounding."""
    monkeypatch.setattr(optim, "POLAR_EXPRESS", EXACT)
    monkeypatch.setattr(optim, "MAX_ELEMENTS", 2 * 6 * 10)  # the third matrix of a shape comes in a batch of its own
    shapes = [(6, 10), (6, 10), (10, 6), (6, 10), (8, 8)]
    ours = nn.ParameterList([torch.rand(shape) for shape in shapes])
    theirs = nn.ParameterList([p.detach().clone() for p in ours])
    optimizer = create_optimizer(ours, MUON)
    truth = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.1, momentum=0.85, ns_coefficients=EXACT[0], ns_steps=40,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    before = [p.detach().clone() for p in ours]
    for _ in range(4):
        for p, q, shape in zip(ours, theirs, shapes, strict=True):
            u, _, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
            p.grad = u @ torch.diag(1 + torch.rand(min(shape))) @ vh  # well-conditioned
            q.grad = p.grad.clone()
        optimizer.step(), truth.step()
    for p, q, start in zip(ours, theirs, before, strict=True):
        assert ((p - q).norm() / (q - start).norm()).item() < 0.02


@pytest.mark.parametrize("tied", [False, True])
@BLOCKS
def test_muon_gets_the_hidden_matrices_and_adamw_the_rest(tied, block):
    models = [GPTModel({**TINY, **block, "tie_embeddings": tied}) for _ in "ab"]
    models[1].load_state_dict(models[0].state_dict())
    kinds = ["att.W_query", "att.W_key", "att.W_value", "att.out_proj"]
    kinds += ["ff.gate", "ff.up", "ff.down"] if "ffn_dim" in block else ["ff.layers.0", "ff.layers.2"]
    hidden = {f"trf_blocks.{layer}.{kind}.weight" for layer in (0, 1) for kind in kinds}
    rest = [p for name, p in models[1].named_parameters() if name not in hidden]
    groups = [{"params": [p for p in rest if p.dim() == d], "weight_decay": 0.1 * (d == 2)} for d in (1, 2)]
    ours, truth = create_optimizer(models[0], MUON), torch.optim.AdamW(groups, lr=0.02, betas=(0.85, 0.95), fused=True)
    assert {id(p) for p in ours.param_groups[0]["params"]} == {id(models[0].get_parameter(name)) for name in hidden}
    for _ in range(3):
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step(), truth.step()
    for name, parameter in models[1].named_parameters():
        assert torch.equal(parameter, models[0].get_parameter(name)) == (name not in hidden), name


def test_muon_takes_the_recurrent_matrices_and_leaves_what_is_frozen():
    model = create_model(GPTConfig(**{**TINY, "backbone": "lstm"}))
    model.lstm.weight_hh_l1.requires_grad_(False)
    matrices, *others = create_optimizer(model, MUON).param_groups
    names = {p: name for name, p in model.named_parameters()}
    assert [names[p] for p in matrices["params"]] == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_ih_l1"]
    assert sum(len(group["params"]) for group in others) == len(names) - 4


def test_without_hidden_matrices_everything_is_adamws():
    assert type(create_optimizer(nn.ModuleDict({"tok_emb": nn.Embedding(3, 2)}), MUON)) is torch.optim.AdamW
    layer = nn.Linear(2, 2, bias=False)  # nor need there be anything else
    layer.weight.grad = torch.ones(2, 2)
    create_optimizer(layer, MUON).step()


def test_a_restored_optimizer_continues_as_the_saved_one():
    layers = [nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6)) for _ in "ab"]
    optimizer = create_optimizer(layers[0], MUON)

    def step(layer, optimizer, seed):
        torch.manual_seed(seed)
        for p in layer.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()

    for seed in range(3):
        step(layers[0], optimizer, seed)
    layers[1].load_state_dict(layers[0].state_dict())
    saved, resumed = copy.deepcopy(optimizer.state_dict()), create_optimizer(layers[1], MUON)
    restore(resumed, saved)
    for seed in range(3, 6):
        step(layers[0], optimizer, seed), step(layers[1], resumed, seed)
    for p, q in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert torch.equal(p, q)


# --- clipping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divisor", [1, 7.0])
@pytest.mark.parametrize("max_norm", [0, 0.5, 1e9])
def test_scale_and_clip_against_torch(divisor, max_norm):
    torch.manual_seed(1)
    a, b = ([nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))] for _ in "ab")
    for p, q in zip(a[:2], b[:2], strict=True):  # the third has no gradient
        p.grad = torch.randn_like(p) * 9
        q.grad = p.grad / divisor
    norm = scale_and_clip(a, torch.tensor(divisor, dtype=torch.float64), max_norm)
    true_norm = nn.utils.clip_grad_norm_(b, max_norm or math.inf)
    assert norm.item() == pytest.approx(true_norm.item(), rel=tolerance(17, dtype=torch.float32))
    for p, q in zip(a[:2], b[:2], strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6)
