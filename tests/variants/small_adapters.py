"""Small models with adapters, shared by the tests of variants."""

import dataclasses

import pytest
import torch
from blocks import GPT2_BLOCK
from numerics import tolerance
from runs import train

from gpt.config import AdapterConfig, DataConfig, GPTConfig, TrainConfig
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


def every_layer(block):
    """Return the targets that name each linear layer of a model with this block."""
    return EVERY if block.get("feed_forward") != "swiglu" else EVERY.replace("ff.layers.0, layers.2", "gate, up, down")


def tokens(n_batch=2, n_tokens=7):
    return torch.randint(MODEL.vocab_size, (n_batch, n_tokens))


def close(dtype, expected=None):
    """Return the tolerance of a model's values, or of gradients as large as `expected`: some 25 products of at most
    1,000 terms. Norms and softmaxes amplify their rounding tenfold."""
    size = 1.0 if expected is None else expected.detach().abs().max().item()
    return {"rtol": 0, "atol": tolerance(25 * 1000, 10 * size, dtype=dtype)}


def train_base(prepared, folder, block=GPT2_BLOCK):
    """Train for two steps the small model that other runs start from. Return the run's folder."""
    config = TrainConfig(
        seed=1, max_steps=2, batch_size=4, sample_every=0, sample_prompt="on the", device="cpu",
        model=dataclasses.replace(MODEL, vocab_size=0, context_length=16, tie_embeddings=True, **block),
        data=DataConfig(path=str(prepared.folder), stride=256),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)
        return train(config, folder).run.path
