"""What a checkpoint folder holds, and whether it is what was written: by the checksums, and by what they cannot tell.

A checksum finds damage, but no forgery: whoever writes a file can write its sum. So nothing in a checkpoint is
executed, and what does not fit is refused in words.
"""

import pickle
import reprlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gpt.config import TrainConfig, from_dict
from gpt.system.files import read_checksummed, sha256

FORMAT = 2  # of a checkpoint
FILES = {"model.safetensors", "training_state.pt", "metrics.csv", "samples.txt"}  # and state.json, with their sums
FROZEN = "frozen.safetensors"  # in the run folder: weights that its checkpoints share
_NUMBER, _NONE = (int, float), type(None)
_KINDS = {
    "step": int, "tokens_seen": int, "report_due": bool, "loss_sum": _NUMBER, "loss_tokens": int,
    "grad_norm": (*_NUMBER, _NONE), "best_loss": (*_NUMBER, _NONE), "elapsed_s": _NUMBER, "data": dict, "machine": dict,
    "config": dict, "best": (str, _NONE), "tokenizer": str, "sha256": dict, "frozen": str,
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder held: tensors by name, the optimizer's and the RNG's state, and counters."""

    path: Path
    weights: dict[str, Tensor]
    training_state: dict[str, Any] | None  # None where it was not asked for
    state: dict[str, Any]

    @property
    def config(self) -> TrainConfig:
        """The config of the run when it was saved."""
        return from_dict(TrainConfig, self.state["config"])


def read_state(folder: Path) -> dict[str, Any]:
    """The counters of a checkpoint: step, tokens_seen, best_loss, ... ValueError where they are missing, damaged, of
    another format, or not of their kinds."""
    file = folder / "state.json"
    try:
        state = read_checksummed(file)
    except FileNotFoundError:
        raise ValueError(f"{folder} is incomplete: state.json is missing") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    if state.get("format") != FORMAT:
        raise ValueError(f"{folder} has checkpoint format {state.get('format')}, this version reads {FORMAT}")
    state.setdefault("frozen", "")  # as of all checkpoints that are older than adapters
    for name, kind in _KINDS.items():
        value = state.get(name, "missing")
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if name not in state or not fits or (type(value) is int and not 0 <= value < 2**63):
            raise ValueError(f"{file} is damaged: its {name} is {reprlib.repr(value)}")
    if folder.name not in (name := f"step-{state['step']:06d}", f".{name}.old"):
        raise ValueError(f"{folder} is damaged, or was renamed: it holds step {state['step']}")
    if set(state["sha256"]) != FILES:
        raise ValueError(f"{file} is damaged: it names other files than a checkpoint has")
    try:
        from_dict(TrainConfig, state["config"])
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    return state


def read_checkpoint(folder: Path, training: bool = True) -> Checkpoint:
    """A checkpoint, with the weights that its run keeps frozen, checked against its sums: ValueError where a file is
    missing or damaged.

    Without `training` the optimizer's state, up to twice the size of the weights, is not read into memory.
    """
    state = read_state(folder)
    try:
        for name, digest in state["sha256"].items():
            if sha256(folder / name) != digest:
                raise ValueError(f"{folder / name} is damaged: its SHA-256 is not the one written in state.json")
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        if state["frozen"]:
            frozen = folder.parent.parent / FROZEN
            if sha256(frozen) != state["frozen"]:
                raise ValueError(f"{frozen} is damaged: its SHA-256 is not the one written in {folder.name}/state.json")
            weights = {**safetensors.torch.load_file(frozen), **weights}
        training_state = None
        if training:
            with warnings.catch_warnings(action="ignore"):  # on what is refused in any case
                training_state = torch.load(folder / "training_state.pt", map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is incomplete: {Path(error.filename or 'a file').name} is missing") from None
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError:  # PyTorch's own words advise to run the code in it
        raise ValueError(f"{folder / 'training_state.pt'} is damaged: it holds something else than tensors") from None
    except ValueError:
        raise
    except Exception as error:  # whatever a forged file makes its reader raise
        reason = str(error).splitlines()[:1] or [type(error).__name__]
        raise ValueError(f"{folder} is damaged: {reason[0]}") from None
    return Checkpoint(folder, weights, training_state, state)


def check_finite(name: str, weights: dict[str, Tensor], training_state: dict) -> None:
    """FloatingPointError unless all that is to be saved is finite: a checkpoint is to be good to go on from."""
    moments = [t for state in training_state["optimizer"]["state"].values() for t in state.values()]
    for what, tensor in [*weights.items(), *(("the optimizer's state", t) for t in moments)]:
        if not torch.as_tensor(tensor).isfinite().all():
            raise FloatingPointError(f"{what} is not finite, so {name} was not saved")
