"""Small models with adapters, shared by the tests of variants."""

import dataclasses

import torch
from numerics import tolerance

from gpt.config import AdapterConfig, GPTConfig
from gpt.model import GPTModel
from gpt.variants import adapt

LORA, PREFIX = AdapterConfig("lora", rank=2, alpha=3), AdapterConfig("prefix", length=3)
EVERY = "W_query, W_key, W_value, out_proj, ff.layers.0, layers.2, out_head"
MODEL = GPTConfig(19, 12, 16, 4, 2, 0.0, qkv_bias=True, init="lecun")


def model_of(**changes):
    return GPTModel(dataclasses.replace(MODEL, **changes)).eval()


def adapted(config, model=None, dtype=torch.float32, **changes):
    """Return a model with an adapter whose parameters are no longer the initial ones."""
    model = adapt((model or model_of(**changes)).to(dtype), config).eval()
    for parameter in trained(model).values():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def trained(module):
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def tokens(n_batch=2, n_tokens=7):
    return torch.randint(MODEL.vocab_size, (n_batch, n_tokens))


def close(dtype, expected=None):
    """Return the tolerance of a model's values, or of gradients as large as `expected`: some 25 products of at most
    1,000 terms. Norms and softmaxes amplify their rounding tenfold."""
    size = 1.0 if expected is None else expected.detach().abs().max().item()
    return {"rtol": 0, "atol": tolerance(25 * 1000, 10 * size, dtype=dtype)}
