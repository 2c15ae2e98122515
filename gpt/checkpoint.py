"""A run folder: config, tokenizer, metrics, samples, and checkpoints that are written whole or not at all.

runs/NAME/
  config.toml  tokenizer.json  metrics.csv  loss.png  samples.txt  learnt.png
  checkpoints/step-000500/   model.safetensors  training_state.pt  state.json (with the SHA-256 of all three)
  checkpoints/last, best     text files that name the newest checkpoint, and the one with the lowest validation loss
"""

import hashlib
import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gpt.baselines import create_model
from gpt.config import TrainConfig, from_dict, read_toml, to_toml
from gpt.corpus import find_path
from gpt.data import PreparedData, load_data
from gpt.files import sha256
from gpt.model import GPTModel
from gpt.tokenizer import Tokenizer, load_tokenizer

FORMAT = 1  # of a checkpoint


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


class RunFolder:
    """The files of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One row per report."""
        return self.path / "metrics.csv"

    @property
    def samples(self) -> Path:
        """What the model wrote, by step."""
        return self.path / "samples.txt"

    @property
    def plot(self) -> Path:
        """Loss and perplexity over tokens seen."""
        return self.path / "loss.png"

    @property
    def learnt(self) -> Path:
        """What each checkpoint's tales are worth, where they have been judged."""
        return self.path / "learnt.png"

    def create(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        """Make the folder and write down everything the run is started with. A run without a checkpoint starts anew."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_config(config)  # first: it tells a run from another folder
        self.checkpoints.mkdir(exist_ok=True)
        for old in (self.metrics, self.samples, self.plot, self.learnt):
            old.unlink(missing_ok=True)
        tokenizer.save(self.path / "tokenizer.json")

    def write_config(self, config: TrainConfig) -> None:
        """Write config.toml, whole or not at all."""
        _replace(self.path / "config.toml", to_toml(config))

    def config(self) -> TrainConfig:
        """The run's config. ValueError where the folder is not a run."""
        if not (self.path / "config.toml").is_file():
            raise ValueError(f"no run in {self.path}: a run folder holds a config.toml")
        try:
            return from_dict(TrainConfig, read_toml(self.path / "config.toml"))
        except ValueError as error:
            raise ValueError(f"{self.path / 'config.toml'}: {error}") from None

    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return load_tokenizer(self.path / "tokenizer.json")

    # --- writing ------------------------------------------------------------------------------------------------------

    def save(self, objective: nn.Module, training_state: dict, state: dict, is_best: bool, keep: int) -> Path:
        """Write the checkpoint step-NNNNNN: into a temporary folder, flushed to disk, then renamed.

        `last`, and `best` where `is_best`, name it only after that; then older checkpoints go, but for the newest
        `keep` and the best. Interrupted anywhere, the folder still holds the checkpoints it held before.
        """
        name = f"step-{state['step']:06d}"
        state = {**state, "best": name if is_best else self._pointed("best")}
        temporary = self.checkpoints / f".{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            safetensors.torch.save_file(named_weights(objective), temporary / "model.safetensors")
            torch.save(training_state, temporary / "training_state.pt")
            digests = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
            whole = sealed({"format": FORMAT, **state, "sha256": digests})
            (temporary / "state.json").write_text(whole, encoding="utf-8", newline="\n")
            for file in (*temporary.iterdir(), self.metrics, self.samples):
                _flush(file)
            _flush(temporary)
            final, aside = self.checkpoints / name, self.checkpoints / f".{name}.old"
            if final.exists():  # the same step again, after a resume from an older checkpoint
                shutil.rmtree(aside, ignore_errors=True)
                final.rename(aside)
            temporary.rename(final)
            _flush(self.checkpoints)
            shutil.rmtree(aside, ignore_errors=True)
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # each writer has its own for a full disk
            reason = str(error).splitlines()[0]
            raise OSError(
                f"the checkpoint {name} could not be written to {self.checkpoints} ({reason}): is the disk full? "
                f"With room, --resume goes on from the checkpoint before"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _replace(self.checkpoints / "last", name + "\n")
        if is_best:
            _replace(self.checkpoints / "best", name + "\n")
        kept = {*self.steps()[-keep:], self._pointed("best"), name}
        for old in self.steps():
            if old not in kept:
                shutil.rmtree(self.checkpoints / old)
        return final

    def point(self, checkpoint: Checkpoint) -> None:
        """Have `last` and `best` name what they were to name beside this checkpoint: its save may have been killed
        before it came to that."""
        for pointer, name in (("last", checkpoint.path.name), ("best", checkpoint.state["best"])):
            if name in self.steps() and self._pointed(pointer) != name:
                _replace(self.checkpoints / pointer, name + "\n")

    # --- reading ------------------------------------------------------------------------------------------------------

    def steps(self) -> list[str]:
        """The names of the checkpoints, oldest first."""
        for aside in self.checkpoints.glob(".step-*.old"):  # a save was killed between its two renames
            if not (final := self.checkpoints / aside.name[1:-4]).exists():
                aside.rename(final)
        names = (p.name for p in self.checkpoints.glob("step-*") if p.name[5:].isdecimal() and p.is_dir())
        return sorted(names, key=lambda name: int(name[5:]))

    def _pointed(self, pointer: str) -> str | None:
        path = self.checkpoints / pointer
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None

    def find(self, which: str = "last") -> Path:
        """The folder of the checkpoint "last", "best", or of one by its name. ValueError where there is none."""
        name = which
        steps = self.steps()
        if which in ("last", "best"):
            pointed = self._pointed(which)
            name = pointed if pointed in steps or not steps else steps[-1]
        if name not in steps:
            raise ValueError(f"no checkpoint {which!r} in {self.path}; there are: {', '.join(self.steps()) or 'none'}")
        return self.checkpoints / name

    def load(self, which: str = "last", training: bool = True) -> Checkpoint:
        """The checkpoint that `find` finds, checked against its sums: ValueError where a file is missing or damaged.

        Without `training` the optimizer's state, twice the size of the weights, is not read into memory.
        """
        return _read(self.find(which), training)

    def state(self, which: str = "last") -> dict[str, Any]:
        """The counters of a checkpoint alone: step, tokens_seen, best_loss, ..."""
        return _read_state(self.find(which))

    def load_newest_whole(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole (None where there is none), and what was wrong with newer ones."""
        complaints = []
        for name in reversed(self.steps()):
            try:
                return _read(self.checkpoints / name), complaints
            except ValueError as error:
                complaints.append(str(error))
        return None, complaints


def sealed(state: dict[str, Any]) -> str:
    """The text of a state.json: JSON that ends with the SHA-256 of everything before it."""
    state = {name: value for name, value in state.items() if name != "seal"}
    text = json.dumps(state, indent=2, allow_nan=False)
    return json.dumps({**state, "seal": hashlib.sha256(text.encode()).hexdigest()}, indent=2) + "\n"


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / "state.json").read_bytes()
        state = json.loads(text)
        if text != sealed(state).encode():
            raise ValueError(f"{folder / 'state.json'} is damaged: its seal is not the SHA-256 of the rest")
        if state["format"] != FORMAT:
            raise ValueError(f"{folder} has checkpoint format {state['format']}, this version reads {FORMAT}")
        return state
    except FileNotFoundError:
        raise ValueError(f"{folder} is incomplete: state.json is missing") from None
    except OSError as error:
        raise ValueError(f"{folder / 'state.json'} is damaged: {error.strerror}") from None
    except (KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / 'state.json'} is damaged ({type(error).__name__})") from None


def _read(folder: Path, training: bool = True) -> Checkpoint:
    state = _read_state(folder)
    try:
        for name, digest in state["sha256"].items():
            if sha256(folder / name) != digest:
                raise ValueError(f"{folder / name} is damaged: its SHA-256 is not the one written in state.json")
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        training_state = None
        if training:
            training_state = torch.load(folder / "training_state.pt", map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is incomplete: {Path(error.filename).name} is missing") from None
    except OSError as error:
        raise ValueError(f"{error.filename} is damaged: {error.strerror}") from None
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{folder} is damaged: {str(error).splitlines()[0]}") from None
    return Checkpoint(folder, weights, training_state, state)


def load_model(run: str | Path | RunFolder, which: str = "best") -> tuple[GPTModel, Tokenizer, Checkpoint]:
    """The model of a run, in evaluation mode, its tokenizer, and the checkpoint it was loaded from."""
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    folder.config()  # is it a run at all? The model's own settings are those of the checkpoint
    tokenizer, checkpoint = folder.tokenizer(), folder.load(which, training=False)
    model = create_model(checkpoint.config.model)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"{folder.path / 'tokenizer.json'} has {tokenizer.vocab_size} tokens, but the model was trained with "
            f"{model.config.vocab_size}: it is another run's"
        )
    weights = {name: w for name, w in checkpoint.weights.items() if not name.startswith("objective.")}
    load_weights(model, weights)
    return model.eval(), tokenizer, checkpoint


def run_data(run: str | Path | RunFolder, checkpoint: Checkpoint) -> PreparedData:
    """The prepared data that a run was trained on; ValueError where the folder has been prepared anew since."""
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    data = load_data(find_path(folder.config().data.path), verify=True)
    if data.checksums != checkpoint.state["data"]:
        raise ValueError(f"{data.folder} was prepared anew since this run began: name a text with --text FILE")
    return data


# --- tensors by name --------------------------------------------------------------------------------------------------


def named_weights(objective: nn.Module) -> dict[str, Tensor]:
    """An objective's tensors: the backbone's under GPTModel's own names, the objective's own under `objective.`.

    A tensor that goes by two names (a tied head) is listed once, under the first.
    """
    named, seen = {}, set()
    for name, tensor in objective.state_dict().items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        named[_saved_name(objective, name)] = tensor.contiguous()
    return named


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load tensors that `named_weights` named into an objective or a GPTModel; ValueError unless all fit exactly."""
    own = module.state_dict()
    first_name = {}  # data pointer -> the first name of that tensor
    for name, tensor in own.items():
        first_name.setdefault(tensor.data_ptr(), _saved_name(module, name))
    expected = {first_name[t.data_ptr()]: t.shape for t in own.values()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    if found != expected:
        wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        name = wrong[0]
        raise ValueError(
            f"the weights do not fit the model in {len(wrong)} tensors, the first {name}: "
            f"expected {_shape(expected.get(name))}, found {_shape(found.get(name))}"
        )
    module.load_state_dict({name: weights[first_name[t.data_ptr()]] for name, t in own.items()})


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(tuple(shape))


def _saved_name(module: nn.Module, name: str) -> str:
    if isinstance(module, GPTModel):
        return name
    return name.removeprefix("model.") if name.startswith("model.") else f"objective.{name}"


# --- files ------------------------------------------------------------------------------------------------------------


def _replace(path: Path, text: str) -> None:
    """Have a small text file hold `text`: at each moment it is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder's names, to the disk itself. Windows cannot flush folders."""
    if not path.exists() or (path.is_dir() and os.name == "nt"):
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
