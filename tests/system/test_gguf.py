"""GGUF files against the package gguf: each type of metadata and tensor, read and written."""

import numpy as np
import pytest
import torch

from gpt.system.gguf import GGUFFile, write_gguf

gguf = pytest.importorskip("gguf", reason='quantized GGUF files need pip install -e ".[gguf]"')
from gguf_files import written  # noqa: E402, after the skip

TYPES = gguf.GGMLQuantizationType
QUANTIZED = [
    TYPES.Q8_0, TYPES.Q4_0, TYPES.Q4_1, TYPES.Q5_0, TYPES.Q5_1, TYPES.Q2_K, TYPES.Q3_K, TYPES.Q4_K, TYPES.Q5_K,
    TYPES.Q6_K, TYPES.IQ4_NL, TYPES.IQ4_XS,
]  # fmt: skip


def test_metadata_of_each_type(tmp_path):
    values = {
        "uint8": 200, "int8": -5, "uint16": 60_000, "int16": -300, "uint32": 4_000_000_000, "int32": -7,
        "uint64": 2**60, "int64": -(2**50), "float32": 0.25, "float64": 0.1, "bool": True, "string": "Größe \n",
    }  # fmt: skip

    def add(writer):
        for name, value in values.items():
            getattr(writer, f"add_{name}")(name, value)
        writer.add_array("words", ["a", "", "né"])
        writer.add_array("numbers", [1, -2, 3])
        writer.add_array("scores", [0.5, -2.0])
        writer.add_array("flags", [True, False])

    found = GGUFFile(written(tmp_path / "a.gguf", add)).metadata
    assert found["general.architecture"] == "llama"
    assert {name: found[name] for name in values} == values
    assert [found[name] for name in ("words", "numbers", "scores", "flags")] == [
        ["a", "", "né"], [1, -2, 3], [0.5, -2.0], [True, False]
    ]  # fmt: skip


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_quantized_tensors(kind, tmp_path, monkeypatch):
    """The bytes are random, since the package quantizes to few of these types; scales are made finite."""
    monkeypatch.setattr("gpt.system.gguf.CHUNK_BLOCKS", 3)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 60, (5, 2 * block_bytes), dtype=np.uint8)

    def add(writer):
        writer.add_tensor("small", np.arange(6, dtype=np.float32))
        writer.add_tensor("matrix", raw, raw_dtype=kind)

    file = GGUFFile(written(tmp_path / "a.gguf", add))
    expected = gguf.dequantize(raw, kind)
    assert file.shapes == {"small": (6,), "matrix": (5, 2 * block)}
    assert np.isfinite(expected).all() and expected.std() > 0
    assert np.array_equal(file["matrix"].numpy(), expected)
    assert file["small"].tolist() == [0, 1, 2, 3, 4, 5]


def test_float_tensors(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)

    def add(writer):
        writer.add_tensor("f32", values)
        writer.add_tensor("f16", values.astype(np.float16))
        writer.add_tensor("bf16", gguf.quantize(values, TYPES.BF16), raw_dtype=TYPES.BF16)

    file = GGUFFile(written(tmp_path / "a.gguf", add))
    assert set(file) == {"f32", "f16", "bf16"}
    assert all(tensor.dtype == torch.float32 and tensor.shape == (3, 4, 6) for tensor in file.values())
    assert np.array_equal(file["f32"].numpy(), values)
    assert np.array_equal(file["f16"].numpy(), values.astype(np.float16).astype(np.float32))
    assert torch.equal(file["bf16"], torch.from_numpy(values).bfloat16().float())


@pytest.mark.parametrize(("dtype", "kind"), [("float32", TYPES.F32), ("float16", TYPES.F16), ("q8_0", TYPES.Q8_0)])
def test_a_written_file_is_read_by_the_package(dtype, kind, tmp_path):
    torch.manual_seed(0)
    tensors = {"token_embd.weight": torch.randn(5, 64), "odd.weight": torch.randn(3, 40), "norm.weight": torch.randn(7)}
    tensors |= {"position_embd.weight": torch.randn(4, 64), "zero.weight": torch.zeros(2, 32)}
    metadata = {"general.architecture": "llama", "n": 3, "x": 0.25, "yes": True, "words": ["a", "né"], "types": [1, 3]}
    write_gguf(tmp_path / "a.gguf", {**metadata, "scores": [0.5, 1.0], "none": []}, tensors, dtype)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    found = {key: field.contents() for key, field in reader.fields.items()}
    assert {key: found[key] for key in metadata} == metadata
    assert found["scores"] == [0.5, 1.0]
    assert found["none"] == []
    assert found["general.file_type"] == {"float32": 0, "float16": 1, "q8_0": 7}[dtype]
    types = {"norm.weight": TYPES.F32, "position_embd.weight": TYPES.F32}
    types |= {"odd.weight": TYPES.F16} if dtype == "q8_0" else {}
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        value = tensors[tensor.name].numpy()
        expected = types.get(tensor.name, kind)
        assert tensor.tensor_type == expected
        assert np.array_equal(tensor.data, gguf.quantize(value, expected)), tensor.name
        assert np.array_equal(GGUFFile(tmp_path / "a.gguf")[tensor.name], gguf.dequantize(tensor.data, expected))
