"""Model FLOPs utilisation against figures by hand, for a device that is only claimed to be there."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import corpus_of
from runs import change, quiet

from gpt.config import DataConfig
from gpt.planning.hardware import peak_flops
from gpt.planning.utilisation import seconds_per_token
from gpt.run.training import start_run
from gpt.text.prepare import prepare_data


def on(trainer, monkeypatch, name="NVIDIA L4", dtype=torch.bfloat16):
    """Let a trainer claim to use a device."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    trainer.device, trainer.dtype = torch.device("cuda"), dtype
    seconds_per_token.cache_clear()
    return seconds_per_token(trainer)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", None),  # a slower board
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_full_name(name, teraflops):
    assert peak_flops(name) == (teraflops and teraflops * 1e12)


def test_seconds_per_token_equal_those_by_hand(tiny_config, tmp_path, monkeypatch):
    trainer = start_run(tiny_config, tmp_path / "run", quiet)
    # D 32, 2 layers of 4·D² + 8·D² weights, V 31, T 16: 6 FLOPs per weight, 12·T·D per layer for attention
    flops = 6 * 2 * 12 * 32**2 + 2 * 12 * 16 * 32 + 6 * 31 * 32
    assert on(trainer, monkeypatch) == pytest.approx(flops / 121e12, rel=1e-12)
    trainer.ctx = SimpleNamespace(world_size=4)  # four such devices
    assert on(trainer, monkeypatch) == pytest.approx(flops / 4 / 121e12, rel=1e-12)


def test_short_documents_have_less_attention(tiny_config, tmp_path, monkeypatch):
    texts = ["the cat sat on the mat"[: 4 + n % 9] for n in range(60)]
    data = prepare_data(corpus_of(tmp_path / "in", *texts), "char", tmp_path / "data")
    config = change(tiny_config, sample_prompt="", data=DataConfig(str(data.folder), packing="document"))
    trainer = start_run(config, tmp_path / "run", quiet)
    lengths = np.diff(np.flatnonzero(data.train.tokens == data.tokenizer.eot_id))  # tokens that the model reads
    lengths = lengths.astype(float)
    attention = (lengths * 2 * 12 * lengths * 32).sum() / lengths.sum()
    flops = 6 * 2 * 12 * 32**2 + attention + 6 * trainer.config.model.vocab_size * 32
    assert on(trainer, monkeypatch) == pytest.approx(flops / 121e12, rel=1e-3)


def test_it_is_not_known_elsewhere(tiny_config, tmp_path, monkeypatch):
    trainer = start_run(tiny_config, tmp_path / "cpu", quiet)
    assert seconds_per_token(trainer) is None
    assert on(trainer, monkeypatch, dtype=torch.float32) is None  # the sheet's figure is bfloat16's
    assert on(trainer, monkeypatch, name="another device") is None
    frozen = start_run(change(tiny_config, freeze="tok_emb"), tmp_path / "frozen", quiet)
    assert on(frozen, monkeypatch) is None
    masked = change(tiny_config, objective=dataclasses.replace(tiny_config.objective, name="infilling"))
    assert on(start_run(masked, tmp_path / "masked", quiet), monkeypatch) is None
