"""LoRA against its formulas: values, gradients, merging."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS
from small_adapters import LORA, MODEL, PREFIX, adapted, close, every_layer, model_of, tokens, trained
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.layers import Linear
from gpt.ops import fused, use_implementation
from gpt.variants import adapt
from gpt.variants.lora import LoRALinear, merge, unmerge
from gpt.variants.quantized import QuantizedGPTModel


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_adds_alpha_over_rank_times_b_a(implementation, bias):
    linear = Linear(5, 4, bias).double()
    use_implementation(linear, implementation)
    layer = LoRALinear(linear, rank=2, alpha=7.0)
    layer.lora_B.data.normal_()
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    matrix = linear.weight + 7 / 2 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer(x), F.linear(x, matrix, linear.bias), **close(torch.float64))
    torch.testing.assert_close(layer.merged()(x), layer(x), **close(torch.float64))
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert (layer.lora_A.shape, layer.lora_B.shape) == ((2, 5), (4, 2))


@pytest.mark.parametrize("tied", [True, False])
@BLOCKS
def test_logits_are_unchanged_at_the_start(tied, block):
    model, ids, targets = model_of(tie_embeddings=tied, **block), tokens(), every_layer(block)
    names, logits = set(model.state_dict()), model(ids)
    adapt(model, dataclasses.replace(LORA, targets=targets if not tied else targets.removesuffix(", out_head")))
    assert torch.equal(model(ids), logits)
    assert {name for name in model.state_dict() if "lora" not in name} == names
    a = model.trf_blocks[0].att.out_proj.lora_A  # normal, with the variance 1/in
    assert a.std().item() == pytest.approx(MODEL.emb_dim**-0.5, rel=0.4)


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@BLOCKS
def test_gradients_of_a_and_b_follow_from_that_of_the_weight(implementation, block):
    """dL/dA = s B^T dL/dW and dL/dB = s dL/dW A^T, with dL/dW that of a plain model of the weights W + s B A."""
    config = dataclasses.replace(LORA, targets=every_layer(block))
    model = adapted(config, dtype=torch.float64, implementation=implementation, **block)
    ids, targets = tokens(), tokens()
    plain = copy.deepcopy(model)
    merge(plain)
    model(ids, targets).backward()
    F.cross_entropy(plain(ids).flatten(0, 1), targets.flatten()).backward()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}
    assert len(layers) == sum(isinstance(module, nn.Linear) for module in model.modules())
    for name, layer in layers.items():
        gradient = plain.get_submodule(name).weight.grad
        for found, expected in (
            (layer.lora_A.grad, 1.5 * layer.lora_B.T @ gradient),
            (layer.lora_B.grad, 1.5 * gradient @ layer.lora_A.T),
        ):
            torch.testing.assert_close(found, expected, **close(torch.float64, expected))


class Made(TorchDispatchMode):
    """Collects the shapes of all tensors that PyTorch computes, forward and backward, but for views of one."""

    def __init__(self, viewed):
        super().__init__()
        self.shapes = set()
        self.viewed = viewed.untyped_storage().data_ptr()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        made = op(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() != self.viewed:
            self.shapes.add(made.shape)
        return made


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("formula", ["linear", "linear_cross_entropy"])
def test_no_gradient_is_computed_for_a_frozen_weight(formula, trained):
    x, weight, targets = torch.randn(6, 512).requires_grad_(), torch.randn(600, 512), torch.arange(6)
    weight.requires_grad_(trained)
    with Made(weight) as made:
        if formula == "linear":
            fused.linear(x, weight).sum().backward()
        else:
            fused.linear_cross_entropy(x, weight, targets, "sum").backward()
    assert (weight.shape in made.shapes) == trained
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("every", [False, True])
@BLOCKS
def test_merge_keeps_the_function_and_unmerge_restores_the_layers(every, dtype, block):
    config = dataclasses.replace(LORA, targets=every_layer(block)) if every else LORA
    model, ids, labels = adapted(config, dtype=dtype, **block), tokens(), tokens()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits, loss = model(ids), model(ids, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), labels.flatten()), **close(dtype))
    matrices = {n: m.weight + 1.5 * m.lora_B @ m.lora_A for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    layers = merge(model)
    assert layers.keys() == matrices.keys()
    assert {type(model.get_submodule(name)) for name in matrices} == {Linear}
    assert model.state_dict().keys() == model_of(**block).state_dict().keys()
    assert len(trained(model)) == len(list(model.parameters()))
    for name, matrix in matrices.items():
        torch.testing.assert_close(model.get_submodule(name).weight, matrix, **close(dtype))
    torch.testing.assert_close(model(ids), logits, **close(dtype))
    torch.testing.assert_close(model(ids, labels), loss, **close(dtype))
    assert merge(model) == {}
    unmerge(model, layers)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(ids), logits)
    assert set(trained(model)) == {name for name in before if "lora" in name}


def test_only_named_layers_get_an_update():
    model = adapt(
        model_of(), dataclasses.replace(LORA, targets="trf_blocks.1.att.W_key,  out_head, trf_blocks.1.att.W_key")
    )
    assert set(trained(model)) == {
        f"{name}.lora_{letter}" for name in ("trf_blocks.1.att.W_key", "out_head") for letter in "AB"
    }


@BLOCKS
def test_int8_weights_need_a_merged_model(block):
    model = adapted(LORA, **block)
    for unmerged in (model, adapted(PREFIX, **block)):
        with pytest.raises(ValueError, match=r"(lora_A|prefix_key): use float32"):
            QuantizedGPTModel(unmerged, "int8")
    ids = tokens()
    logits = model(ids)
    merge(model)
    assert (
        QuantizedGPTModel(model, "int8")(ids) - logits
    ).norm() / logits.norm() < 0.1  # a squared ReLU doubles the rounding
