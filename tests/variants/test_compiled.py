"""Compiled decoding against the model as it was, in logits and text; and what becomes of it where it cannot work."""

import copy
import dataclasses
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, MODERN_BLOCK, WINDOWED_BLOCK
from torch._dynamo.testing import CompileCounterWithBackend

from gpt.config import GPTConfig
from gpt.generation import generate, generate_text_simple
from gpt.model import GPTModel, KVCache
from gpt.serve.slots import Slots
from gpt.system import kernels
from gpt.system.device import compile_obstacle, keep_compiled_code
from gpt.variants.compiled import compile_decoding, compile_training
from gpt.variants.lstm import LSTMModel
from gpt.variants.quantized import Int8Linear, QuantizedGPTModel, int8_obstacle

CONFIG = GPTConfig(vocab_size=61, context_length=24, emb_dim=32, n_heads=4, n_layers=4, drop_rate=0.0)
no_compiler = compile_obstacle(torch.device("cpu"))
needs_compiler = [pytest.mark.slow, pytest.mark.skipif(bool(no_compiler), reason=str(no_compiler))]


@pytest.fixture
def model(block):
    torch.manual_seed(7)
    model = GPTModel(dataclasses.replace(CONFIG, **block)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)  # far from ties
    return model


@torch.no_grad()
def logits_by_cache(model, ids, n_first):
    """The logits of all tokens (1, T, V): the first ones read at once, the others one by one."""
    cache = KVCache(model.config.n_layers, ids.size(1))
    parts = [ids[:, :n_first], *ids[:, n_first:].split(1, dim=1)]
    return torch.cat([model.out_head(model.hidden_states(part, cache=cache)) for part in parts], dim=1)


@pytest.fixture
def compiled():
    """Compile a model; whatever is compiled after that is an error."""

    def run(model):
        lines = []
        compile_decoding(model, lines.append)
        assert not lines
        return model

    torch._dynamo.reset()
    yield run
    torch._dynamo.reset()


@pytest.mark.parametrize(("shape", "bias"), [((1, 1, 12), True), ((1, 12), False), ((12,), True)])
def test_row_product_is_a_linear_layers(shape, bias):
    x, weight, bias = torch.randn(shape), torch.randn(7, 12), torch.randn(7) if bias else None
    torch.testing.assert_close(kernels.row_product(x, weight, bias), F.linear(x, weight, bias))


class TestWithCompiler:
    """What needs a C++ compiler."""

    pytestmark = needs_compiler

    @BLOCKS
    def test_logits_and_text_stay_the_same(self, model, compiled):
        """One code serves all layers and lengths; beyond the context too."""
        ids = torch.randint(0, 61, (1, 20))
        expected, text = model(ids), generate(model, ids[:, :3], 60, temperature=0)
        two = generate(model, [ids[0, :5], ids[0, :2]], 6, temperature=0)
        compiled(model)
        # a window's layers and the others may share code, whose guards are then met late
        with torch._dynamo.config.patch(error_on_recompile=not model.config.window):
            torch.testing.assert_close(logits_by_cache(model, ids, 7), expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(generate(model, ids[:, :3], 60, temperature=0), text)
        for row, other in zip(generate(model, [ids[0, :5], ids[0, :2]], 6, temperature=0), two, strict=True):
            assert torch.equal(row, other)
        assert torch.equal(generate_text_simple(model, ids[:, :3], 9, 24), text[:, :12])

    def test_layers_with_windows(self, compiled):
        torch.manual_seed(7)
        model = GPTModel(dataclasses.replace(CONFIG, position="rope", window=5, full_every=2, n_kv_heads=2)).eval()
        ids = torch.randint(0, 61, (1, 20))
        expected = model(ids)
        torch.testing.assert_close(logits_by_cache(compiled(model), ids, 2), expected, rtol=1e-5, atol=1e-5)

    def test_texts_that_are_written_together(self, compiled):
        """The server's rows: one text, then two, then one again, by the code that was compiled for one."""
        torch.manual_seed(7)
        model = GPTModel(dataclasses.replace(CONFIG, position="rope")).eval()
        ids = torch.randint(0, 61, (2, 12))
        expected, found = model(ids), []
        compiled(model)
        slots, caches = Slots(model, 2), [KVCache(4, 12) for _ in ids]
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
            for row, cache in zip(ids, caches, strict=True):
                model.hidden_states(row[None, :3], cache=cache)
            slots.join(caches[0])
            found.append(slots.step(ids[:1, 3]))
            slots.join(caches[1])
            found.append(slots.step(torch.stack([ids[0, 4], ids[1, 3]])))
            slots.leave(1)
            found.append(slots.step(ids[:1, 5]))
        for logits, wanted in zip(found, (expected[:1, 3], expected[[0, 1], [4, 3]], expected[:1, 5]), strict=True):
            torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)

    @BLOCKS
    def test_bfloat16_weights(self, model, compiled):
        """As a float32 model of the rounded weights."""
        rounded = QuantizedGPTModel(model, "bfloat16")
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight = torch.nn.Parameter(layer.weight.detach().bfloat16().float())
        ids = torch.randint(0, 61, (1, 9))
        expected = logits_by_cache(model, ids, 1)[:, 1:]
        torch.testing.assert_close(logits_by_cache(compiled(rounded), ids, 1)[:, 1:], expected, rtol=1e-2, atol=2e-2)
        cache = KVCache(model.config.n_layers, 2)
        with torch.no_grad():
            x = rounded.hidden_states(ids[:, :1], cache=cache)
        weight = rounded.out_head.weight.double()
        torch.testing.assert_close(rounded.out_head(x)[0, 0].double(), weight @ x[0, 0].double(), rtol=1e-5, atol=1e-5)

    @pytest.mark.skipif(bool(int8_obstacle()), reason=str(int8_obstacle()))
    def test_int8_weights(self, model, compiled):
        """The input is not rounded: each product is that of the rounded weight."""
        weights = {name: layer.weight.detach().double() for name, layer in model.named_modules() if is_linear(layer)}
        rounded = compiled(QuantizedGPTModel(model, "int8"))
        for name, layer in rounded.named_modules():
            if isinstance(layer, Int8Linear):
                scale = weights[name].abs().amax(1, keepdim=True) / 127
                exact = (weights[name] / scale).round() * scale
                x = torch.randn(layer.in_features)
                product = layer.row_product(x).double()
                torch.testing.assert_close(product, exact @ x.double(), rtol=1e-5, atol=1e-4)
        ids = torch.randint(0, 61, (1, 20))
        expected = model(ids)
        found = logits_by_cache(rounded, ids, 1)
        assert (found - expected).norm() / expected.norm() < 0.05


def is_linear(layer):
    return isinstance(layer, torch.nn.Linear)


@pytest.mark.parametrize("failure", ["obstacle", "compiler"])
def test_where_it_cannot_work_the_model_stays_as_it_is(model, monkeypatch, failure):
    def fail(*arguments):
        raise RuntimeError("C++ compile error\n\nCommand:\ng++ a.cpp\n\na.cpp:1:9: fatal error: Python.h: none\nmore")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "somewhere")  # put back at the end
    monkeypatch.setattr("gpt.variants.compiled.compile_obstacle", lambda _: "no g++" if failure == "obstacle" else None)
    monkeypatch.setattr(torch, "compile", lambda function: fail)
    lines, text = [], generate(model, torch.tensor([[3]]), 5, temperature=0)
    compile_decoding(model, lines.append)
    reason = "no g++" if failure == "obstacle" else "a.cpp:1:9: fatal error: Python.h: none"
    assert lines == [f"continuing without compiled decoding: {reason}"]
    assert torch.equal(generate(model, torch.tensor([[3]]), 5, temperature=0), text)
    assert not any("forward" in vars(module) for module in model.modules())


def test_other_models_are_refused(model):
    lstm = LSTMModel(dataclasses.replace(CONFIG, backbone="lstm"))
    with pytest.raises(ValueError, match="needs a GPTModel on device cpu, not LSTMModel"):
        compile_decoding(lstm, print)
    with pytest.raises(ValueError, match="not GPTModel on meta"):
        compile_decoding(model.to("meta"), print)


def test_compiled_code_is_kept_apart_for_each_kind_of_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "put back at the end")
    folders = set()
    for capability in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        for unset in ("", "/tmp/torchinductor_someone"):  # PyTorch's own, which it writes there itself
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = unset
            keep_compiled_code()
            folders.add(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert len(folders) == 2
    assert all(folder.startswith(str(tmp_path)) for folder in folders)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "a person's own")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "a person's own"
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(__file__)))  # no folder can be made in a file
    del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    keep_compiled_code()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_a_model_that_cannot_be_compiled_trains_as_it_is():
    model, lines = GPTModel(GPTConfig(5, 8, 8, 2, 1, 0.0)), []
    compile_training(model, torch.device("mps"), lines.append)
    assert lines == ["continuing without compile = true: torch.compile is unreliable on MPS"]
    assert "forward" not in vars(model.trf_blocks[0])


def test_only_training_is_compiled(monkeypatch):
    """Evaluation and sampling, whose lengths differ, run the plain block."""
    monkeypatch.setattr("gpt.variants.compiled.compile_obstacle", lambda device: None)
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function: lambda *a, **k: calls.append(1) or function(*a, **k))
    model, ids = GPTModel(GPTConfig(5, 8, 8, 2, 3, 0.0)).train(), torch.zeros(1, 4, dtype=torch.long)
    plain = model(ids, ids)
    compile_training(model, torch.device("cpu"), pytest.fail)
    assert torch.equal(model(ids, ids), plain)
    assert len(calls) == 3 + 1  # the blocks and the loss
    model.eval()(ids, ids)
    assert len(calls) == 3 + 1


@pytest.mark.slow
@pytest.mark.parametrize("block", [{"tie_embeddings": True}, MODERN_BLOCK, {**WINDOWED_BLOCK, "window": 16}], ids=str)
def test_five_compilations_serve_texts_of_twenty_lengths(block, monkeypatch):
    """Of all blocks, one for the first length alone and one for the others; with a window, one for texts of which it
    hides nothing, and layers without a window have their own. Of the loss, one more where its chunks are equal."""
    torch._dynamo.reset()
    counter, compile_function = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr("gpt.system.chunked_loss.MAX_LOGITS", 2**18)  # eager code takes up to 48 chunks
    monkeypatch.setattr("gpt.variants.compiled.compile_obstacle", lambda device: None)
    shape = {"vocab_size": 3 * 4096, "context_length": 128, "emb_dim": 8, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0}
    plain = GPTModel({**shape, **block})
    model = copy.deepcopy(plain)
    monkeypatch.setattr("torch.compile", lambda f: compile_function(f, fullgraph=True, backend=counter))
    compile_training(model, torch.device("cpu"), pytest.fail)
    for length in (128, 128, 64, 65, 100, 30, 27, 90, 127, 33, 41, 50, 60, 70, 80, 110, 120, 31, 44, 48, 52, 15, 12):
        ids = torch.randint(0, 1000, (8, length + 1))
        loss = model(ids[:, :-1], ids[:, 1:], reduction="sum")
        loss.backward()
        torch.testing.assert_close(loss, plain(ids[:, :-1], ids[:, 1:], reduction="sum"))
    assert counter.frame_count == (5 if "window" in block else 2) + 3
