"""Weights of fewer bits against the same rounding written out in float64, and the model that they are made from."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS

from gpt.config import GPTConfig
from gpt.generation import generate, generate_text_simple
from gpt.loss import evaluate
from gpt.model import GPTModel
from gpt.variants.lstm import LSTMModel
from gpt.variants.quantized import BFloat16Linear, Int8Linear, QuantizedGPTModel, int8_obstacle, weight_bytes

CONFIG = GPTConfig(vocab_size=61, context_length=12, emb_dim=32, n_heads=2, n_layers=2, tie_embeddings=True)
EVERY_KIND = pytest.mark.parametrize("weights", ["bfloat16", "int8"])
here = pytest.mark.skipif(bool(int8_obstacle()), reason=str(int8_obstacle()))


@pytest.fixture
def model(block):
    torch.manual_seed(7)
    return GPTModel(dataclasses.replace(CONFIG, **block)).eval()


def rounded_product(x, weight, bias, levels):
    """x · weight^T + bias with both rounded, number by number as the docstrings say, in float64."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    size = x.abs().amax(-1, keepdim=True)
    x = x / size
    step = (x.max().clamp(min=0) - x.min().clamp(max=0)) / levels
    zero = (-x.min().clamp(max=0) / step).round()
    whole = ((x / step).round() + zero).clamp(0, levels) - zero
    return size * (whole * step @ ((weight / scale).round() * scale).T) + bias


@here
@pytest.mark.parametrize("shape", [(1, 1), (2, 5)])
def test_layer_computes_with_rounded_numbers(shape):
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 24)
    with torch.no_grad():
        layer.weight *= torch.logspace(-3, 3, 24)[:, None]  # a scale for each output: one for all would lose the small
        layer.weight[5] = 0
    x = torch.randn(*shape, 32) * torch.logspace(0, 3, shape[-1])[:, None]  # one scale would lose the small tokens
    int8 = Int8Linear(layer)
    expected = rounded_product(x, layer.weight, layer.bias, levels=127 if int8.reduce_range else 255)
    size = layer.weight.detach().abs().amax(1).clamp(min=1).double() * x.abs().amax(-1, keepdim=True)
    # one number may fall to the other side of a half
    torch.testing.assert_close(int8(x).double() / size, expected.detach() / size, rtol=0, atol=0.02)
    size = layer.weight.detach().norm(dim=1) + 1e-9
    error = (int8(x) - layer(x)).detach() / size / x.norm(dim=-1, keepdim=True)
    assert error.abs().max() < 0.01


@pytest.mark.parametrize("in_hardware", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5)])
def test_bfloat16_layer_computes_with_the_first_16_bits(monkeypatch, shape, in_hardware):
    monkeypatch.setattr("gpt.variants.quantized.has_fast_bfloat16", lambda: in_hardware)
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(32, 24), torch.randn(*shape, 32)
    expected = x.double() @ first_16_bits(layer.weight).double().T + layer.bias.double()
    found = BFloat16Linear(layer)(x)
    is_rounded = in_hardware or shape == (1, 1)  # x, and the product
    torch.testing.assert_close(found.double(), expected.detach(), rtol=0, atol=2**-7 if is_rounded else 1e-6)
    assert (found - layer(x)).abs().max() > 1e-4


def first_16_bits(x):
    """Round float32 numbers to the nearest whose last 16 bits are 0, in integers."""
    bits = x.detach().numpy().view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000  # ties to even
    return torch.from_numpy(bits.astype(np.uint32).view(np.float32))


@EVERY_KIND
@BLOCKS
def test_model_shares_embeddings_and_stays_close(model, weights):
    ids = torch.randint(0, 61, (3, 12))
    before = {name: w.clone() for name, w in model.state_dict().items()}
    rounded = QuantizedGPTModel(model, weights)
    with torch.no_grad():
        logits, near = model(ids), rounded(ids)
    assert 0 < (logits - near).norm() / logits.norm() < 0.03
    assert rounded.tok_emb.weight.data_ptr() == model.tok_emb.weight.data_ptr()
    assert not any(p.is_meta or p.requires_grad for p in rounded.parameters())
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    packed = {id(p) for layer in layers for p in layer.parameters()}
    shared = sum(p.numel() for p in model.parameters() if id(p) not in packed or p is model.tok_emb.weight)
    per_weight, per_output = {"bfloat16": (2, 4), "int8": (1, 12)}[weights]
    own = sum(per_weight * layer.weight.numel() + per_output * len(layer.weight) for layer in layers)
    assert weight_bytes(rounded) == own + 4 * shared
    assert weight_bytes(model) == 4 * model.num_parameters()


@here
@BLOCKS
def test_losses_match_the_logits(model, monkeypatch):
    monkeypatch.setattr(
        "gpt.system.chunked_loss.MAX_LOGITS", 61 * 36
    )  # one chunk: the scale of what is read is one for it
    int8 = QuantizedGPTModel(model, "int8")
    ids, targets = torch.randint(0, 61, (2, 3, 12))
    targets[0, :5] = -100
    logits = int8(ids).flatten(0, 1)
    for reduction in ("mean", "sum", "none"):
        truth = F.cross_entropy(logits, targets.flatten(), reduction=reduction)
        torch.testing.assert_close(int8(ids, targets, reduction=reduction).flatten(), truth.flatten())
    with pytest.raises(ValueError, match="no target counts"):
        int8(ids, torch.full_like(ids, -100))
    monkeypatch.setattr("gpt.system.chunked_loss.MAX_LOGITS", 61 * 7)
    torch.testing.assert_close(int8(ids, targets), F.cross_entropy(logits, targets.flatten()), rtol=1 / 255, atol=0)


@here
@BLOCKS
def test_generation_follows_the_logits(model):
    """One row: the prompt is one token, since the scale of what is read belongs to all that is read at once."""
    int8 = QuantizedGPTModel(model, "int8")
    cached = generate(int8, torch.tensor([[3]]), 11, temperature=0)
    logits = int8(cached[:, :-1])
    chosen = logits.gather(-1, cached[..., 1:, None])[..., 0]
    assert (logits.amax(-1) - chosen).max() < 0.05 * logits.std()  # near-ties may fall to the other side
    assert generate(int8, [torch.tensor([1, 2]), torch.tensor([3])], 20, temperature=0)[0].shape == (22,)
    assert generate_text_simple(int8, torch.tensor([[3]]), 3, 12).shape == (1, 4)


@here
@pytest.mark.slow
@BLOCKS
def test_trained_model_keeps_its_loss_and_its_text(prepared, block):
    """Loss on held-out text, and a batch of unequal prompts, beyond the context too."""
    config = GPTConfig(prepared.tokenizer.vocab_size, 24, 32, 4, 2, 0.0, tie_embeddings=True, init="gpt2", **block)
    model, tokens = GPTModel(config), torch.tensor(prepared.train.tokens.astype(int))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(600):
        starts = torch.randint(len(tokens) - 25, (16,), generator=torch.Generator().manual_seed(step))
        batch = tokens[starts[:, None] + torch.arange(25)]
        model(batch[:, :-1], batch[:, 1:]).backward()
        optimizer.step(), optimizer.zero_grad()
    int8 = QuantizedGPTModel(model.eval(), "int8")
    before, after = (evaluate(m, prepared.val.tokens, 24).loss for m in (model, int8))
    assert before < 0.3
    assert abs(after - before) < 0.02
    encode, decode = prepared.tokenizer.encode, prepared.tokenizer.decode
    prompts = [torch.tensor(encode(text)) for text in ("green bottles ha", "and if 3 should fa", "e to s")]
    sung = [decode(ids.tolist()) for ids in generate(int8, prompts, 18, temperature=0)]
    assert sung[0].startswith("green bottles hanging on the wall")
    assert sung[1].startswith("and if 3 should fall there is more t")
    assert sung[2].startswith("e to sing.")


@EVERY_KIND
def test_training_is_refused(model, weights):
    rounded = QuantizedGPTModel(model, weights)
    with pytest.raises(ValueError, match="no gradient: train the float32 model"):
        rounded.train()
    assert not any(module.training for module in rounded.modules())


@EVERY_KIND
def test_unsupported_models_are_refused(model, weights):
    lstm = LSTMModel(GPTConfig(vocab_size=61, emb_dim=32, n_heads=2, n_layers=1, backbone="lstm"))
    with pytest.raises(ValueError, match=f"{weights} weights need a GPTModel, not LSTMModel"):
        QuantizedGPTModel(lstm, weights)
    with pytest.raises(ValueError, match="need a GPTModel, not QuantizedGPTModel"):
        QuantizedGPTModel(QuantizedGPTModel(model, weights), weights)
    with pytest.raises(ValueError, match=r"float32 model on device cpu, not torch\.float64"):
        QuantizedGPTModel(model.double(), weights)
    model.float().out_head.weight.data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        QuantizedGPTModel(model, weights)


def test_missing_int8_product_is_named(model, monkeypatch):
    def linear_prepack(*args):
        raise RuntimeError("Didn't find engine for operation quantized::linear_prepack NoQEngine")

    monkeypatch.setattr(torch.ops.quantized, "linear_prepack", linear_prepack)
    with pytest.raises(ValueError, match=r"PyTorch .* has no int8 product .*NoQEngine\): use float32 weights"):
        QuantizedGPTModel(model, "int8")
