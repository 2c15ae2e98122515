"""Every setting of a run: typed, checked, frozen; read from TOML and written to it.

`GPTConfig` (the model), `DataConfig` (the token windows), `OptimConfig` (the optimizer and its schedule),
`ObjectiveConfig` (the loss) and `AdapterConfig` (what is trained of a frozen model) are parts of a `TrainConfig`, the
run. A field is one line: its default, its bounds and its meaning. The command line (`gpt/run/cli.py`), the TOML files under
`configs/` and Python all use the same names, because all three are read off these classes.
"""

import dataclasses
import hashlib
import math
import reprlib
import tomllib
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tomli_w

from gpt.system.errors import did_you_mean

# GPT-2's smallest size, under the seven keys of Raschka, "Build a Large Language Model (From Scratch)", 2024.
GPT_CONFIG_124M = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


def _setting(default: Any, meaning: str, low: float | None = None, high: float | None = None, of: str = "") -> Any:
    """A dataclass field with its meaning (shown by --help) and the closed interval that its value must lie in; `of`
    lists the names that it is a setting of, where it means nothing to the others."""
    meaning = f"{of}: {meaning}" if of else meaning
    return field(default=default, metadata={"help": meaning, "low": low, "high": high, "of": of})


# --- checking -------------------------------------------------------------------------------------------------------


def _check_fields(config: Any) -> None:
    """Check each field of a dataclass against its type, its choices and its bounds, and convert int to float.

    Raises ValueError that names the field, its value and what is allowed.
    """
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(f.type):
            if not isinstance(value, f.type):
                raise ValueError(f"{f.name} must be a {f.type.__name__}, not {value!r}")
            continue
        value = _checked(f.name, value, f.type)
        object.__setattr__(config, f.name, value)  # frozen for everyone else
        low, high = f.metadata.get("low"), f.metadata.get("high")
        if high is None and type(value) is int:
            high = 2**63 - 1  # what PyTorch and a TOML file can hold
        if low is not None and value < low:
            raise ValueError(f"{f.name} must be at least {low}, not {value}")
        if high is not None and value > high:
            raise ValueError(f"{f.name} must be at most {high}, not {_shown(value)}")
        if f.metadata["of"] and value != f.default and config.name not in f.metadata["of"].split(", "):
            raise ValueError(
                f"{f.name} is a setting of {f.metadata['of'].replace(', ', ' and ')}, not of {config.name!r}"
            )


def _checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as type `kind`; ValueError where it is of another type. bool is no int here, and NaN no float."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(kind)))}, not {value!r}")
        return value
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a string"}
        raise ValueError(f"{name} must be {words[kind]}, not {_shown(value)}")
    return value


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 200
_shown = _repr.repr  # a value in a message: of bounded depth and length


# --- the settings ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. The defaults are those of the published from-scratch figures, not of a training run."""

    vocab_size: int = _setting(50257, "tokens in the vocabulary; 0: the tokenizer's", 0, 2**24)
    context_length: int = _setting(1024, "tokens the model sees at once", 1, 2**24)
    emb_dim: int = _setting(768, "width of the residual stream; a multiple of n_heads", 1, 2**17)
    n_heads: int = _setting(12, "attention heads per block", 1)
    n_layers: int = _setting(12, "transformer blocks", 1, 10_000)
    drop_rate: float = _setting(0.1, "dropout probability: embeddings, attention weights, residual branches", 0, 0.99)
    qkv_bias: bool = _setting(False, "a bias on W_query, W_key and W_value (GPT-2 has one)")
    tie_embeddings: bool = _setting(False, "out_head shares its weight with tok_emb (GPT-2 does)")
    init: Literal["pytorch", "gpt2", "lecun"] = _setting(
        "pytorch",
        "initial weights: the layers' own defaults; GPT-2's, of standard deviation 0.02, less in residual branches; or "
        "the same with 1/sqrt(fan-in), for narrow models",
    )
    backbone: Literal["gpt", "lstm"] = _setting("gpt", "transformer blocks, or the LSTM that they have to beat")
    implementation: Literal["fused", "reference"] = _setting(
        "fused", "which formulas of gpt/ops run: fused (the fastest kernels) or reference (written out)"
    )

    def __post_init__(self):
        _check_fields(self)
        if self.backbone == "gpt" and self.emb_dim % self.n_heads:
            raise ValueError(
                f"emb_dim {self.emb_dim} is not divisible by n_heads {self.n_heads}: "
                f"each head takes emb_dim / n_heads of the width"
            )

    @property
    def head_dim(self) -> int:
        """Width of one head, K = emb_dim / n_heads."""
        return self.emb_dim // self.n_heads


def _gpt2_size(emb_dim: int, n_heads: int, n_layers: int) -> GPTConfig:
    return GPTConfig(
        emb_dim=emb_dim, n_heads=n_heads, n_layers=n_layers, qkv_bias=True, tie_embeddings=True, init="gpt2"
    )


# GPT-2's four published sizes (Radford et al. 2019, table 2), with the biases and the tied head of its checkpoints.
GPT2_SIZES = {
    "gpt2": _gpt2_size(768, 12, 12),
    "gpt2-medium": _gpt2_size(1024, 16, 24),
    "gpt2-large": _gpt2_size(1280, 20, 36),
    "gpt2-xl": _gpt2_size(1600, 25, 48),
}


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens are, and how windows are cut out of them."""

    path: str = _setting("data/story", "a folder that scripts/prepare_data.py wrote")
    packing: Literal["packed", "document"] = _setting(
        "packed", "examples are cut every `stride` tokens (packed), or begin where a document begins and hold no other"
    )
    stride: int = _setting(0, "tokens from one training window's start to the next; 0: context_length", 0)

    def __post_init__(self):
        _check_fields(self)
        if self.packing == "document" and self.stride:
            raise ValueError(f"stride is {self.stride}, but windows of documents begin where documents do: set it to 0")


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, and the learning rate as a function of the step."""

    name: Literal["adamw", "muon"] = _setting(
        "adamw", "the optimizer; muon: Muon for the matrices between embeddings and head, AdamW for the rest"
    )
    lr: float = _setting(1e-3, "peak learning rate, reached after the warm-up", 0)
    min_lr: float = _setting(1e-4, "learning rate at the end of the decay", 0)
    warmup_steps: int = _setting(100, "steps over which the learning rate rises linearly to its peak", 0)
    decay_steps: int = _setting(0, "step at which min_lr is reached; 0: max_steps", 0)
    schedule: Literal["cosine", "linear", "constant"] = _setting("cosine", "shape of the decay after the warm-up")
    weight_decay: float = _setting(0.1, "decoupled weight decay, on matrices only", 0)
    beta1: float = _setting(0.9, "AdamW, Muon: decay of the mean of gradients", 0, 0.9999999)
    beta2: float = _setting(0.95, "AdamW: decay of the mean of squared gradients", 0, 0.9999999)
    grad_clip: float = _setting(1.0, "gradients are scaled down to this global norm; 0: never", 0)

    def __post_init__(self):
        _check_fields(self)
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}: the schedule falls from lr to min_lr")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the model is trained to do: the name of one of gpt/objectives/, and the settings of some of them."""

    name: Literal["next_token", "reverse", "masked", "infilling", "sft", "distill"] = _setting(
        "next_token", "the training objective, one of gpt/objectives/"
    )
    label_smoothing: float = _setting(0.0, "probability that a label shares out over all tokens, in training", 0, 0.99)
    mask_rate: float = _setting(0.15, "share of the tokens to be found", 0.001, 0.999, of="masked, infilling")
    next_sentence: bool = _setting(True, "is the second half the first one's, or another text's?", of="masked")
    span_length: float = _setting(3.0, "mean length of a blank, in tokens", 1, of="infilling")
    teacher: str = _setting("", "the run whose model is the teacher", of="distill")
    temperature: float = _setting(2.0, "teacher and student are compared at this temperature", 1e-3, of="distill")
    label_weight: float = _setting(0.1, "weight of the labels' own loss beside the teacher's", 0, 1, of="distill")

    def __post_init__(self):
        _check_fields(self)


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained in place of the model, whose own weights stay as they are."""

    name: Literal["none", "lora", "prefix"] = _setting(
        "none", "low-rank updates of matrices; keys and values before the text's own; or none: all weights are trained"
    )
    rank: int = _setting(8, "rank of an update", 1, of="lora")
    alpha: float = _setting(16.0, "an update is scaled by alpha / rank", 0, of="lora")
    targets: str = _setting("W_query, W_value", "the layers to be updated, by the ends of their names", of="lora")
    length: int = _setting(16, "keys and values per head and layer", 1, of="prefix")

    def __post_init__(self):
        _check_fields(self)


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run."""

    seed: int = _setting(1337, "fixes the initial weights, the order of the windows, dropout and samples", 0, 2**63 - 1)
    max_steps: int = _setting(1000, "optimizer steps", 1)
    batch_size: int = _setting(16, "windows per forward and backward pass", 1)
    grad_accum_steps: int = _setting(
        1, "passes per optimizer step; batch_size x grad_accum_steps windows make a step", 1
    )
    log_every: int = _setting(10, "steps between rows of metrics.csv", 1)
    eval_every: int = _setting(100, "steps between evaluations on the validation split; 0: only at the end", 0)
    eval_batches: int = _setting(0, "batches an evaluation reads; 0: the whole validation split", 0)
    save_every: int = _setting(500, "steps between checkpoints; 0: only at the end", 0)
    keep_checkpoints: int = _setting(2, "checkpoints kept besides the best one", 1)
    sample_every: int = _setting(100, "steps between samples of what the model writes; 0: only at the end", 0)
    sample_prompt: str = _setting("", "text that samples begin with; empty: the first token of the training split")
    device: str = _setting("auto", "auto (the first of cuda, mps, cpu that is there), cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = _setting(
        "auto", "precision of the matrix products; auto: bfloat16 where the device has it in hardware"
    )
    compile: bool = _setting(False, "compile the model with torch.compile (needs a C++ compiler, or triton on CUDA)")
    parallel: Literal["ddp", "fsdp"] = _setting(
        "ddp", "how processes of torchrun share the model: each holds all of it (ddp), or a part of it (fsdp)"
    )
    init_from: str = _setting(
        "", "a run, or published weights, whose shape its model has and whose weights it starts from: NAME, gpt2, PATH"
    )
    model: GPTConfig = field(default_factory=GPTConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)

    def __post_init__(self):
        _check_fields(self)

    @property
    def decay_steps(self) -> int:
        """The step at which the learning rate has come down to min_lr."""
        return self.optim.decay_steps or self.max_steps

    def flat(self) -> dict[str, Any]:
        """All settings by dotted names: "max_steps", "model.n_layers", ..."""
        return {name: attrgetter(name)(self) for name, _ in config_fields(TrainConfig)}


# --- dictionaries and TOML --------------------------------------------------------------------------------------------


def config_fields(kind: type, prefix: str = "") -> list[tuple[str, dataclasses.Field]]:
    """All fields of a config class, those of nested tables by dotted names: 'max_steps', 'model.n_layers', ..."""
    found = []
    for f in dataclasses.fields(kind):
        nested = dataclasses.is_dataclass(f.type)
        found += config_fields(f.type, f"{prefix}{f.name}.") if nested else [(prefix + f.name, f)]
    return found


def from_dict(kind: type, values: dict[str, Any], prefix: str = "") -> Any:
    """An instance of the config class `kind` from nested dictionaries; what is left out keeps its default.

    Raises ValueError for an unknown key (naming the nearest known one) and for a value out of bounds.
    """
    if not isinstance(values, dict):
        raise ValueError(f"settings are a dictionary, not {_shown(values)}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            known = [key for key, _ in config_fields(TrainConfig if prefix else kind)]
            raise ValueError(f"unknown setting {prefix}{name}: {did_you_mean(f'{prefix}{name}', known)}")
        if dataclasses.is_dataclass(fields[name].type) and not dataclasses.is_dataclass(value):
            if not isinstance(value, dict):
                table = prefix + name
                raise ValueError(f"{table} is a table of settings, [{table}], not a value: {_shown(value)}")
            value = from_dict(fields[name].type, value, f"{prefix}{name}.")
        arguments[name] = value
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}" if prefix else str(error)) from None


def model_config(config: "GPTConfig | dict[str, Any]") -> GPTConfig:
    """The checked form of a model's configuration, given as a GPTConfig or as a plain dict such as GPT_CONFIG_124M."""
    return config if isinstance(config, GPTConfig) else from_dict(GPTConfig, config)


LONGEST_TOML = 1_000_000  # bytes


def read_toml(path: str | Path) -> dict[str, Any]:
    """The nested dictionaries of a TOML file. ValueError says where a corrupt one is wrong."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a config is a .toml file")
    if not path.exists():
        raise ValueError(f"no config file {path}")
    with path.open("rb") as file:
        data = file.read(LONGEST_TOML + 1)
    if len(data) > LONGEST_TOML:
        raise ValueError(f"{path} is longer than {LONGEST_TOML:,} bytes: it is no config file")
    try:
        return tomllib.loads(data.decode("utf-8-sig").replace("\r\n", "\n"))
    except (ValueError, RecursionError) as error:  # TOML's, Unicode's, and that of a number of 5,000 digits
        raise ValueError(f"{path} is not valid TOML: {error}") from None


_SEAL = "# To change a setting, resume with it as an option. SHA-256 of the lines above: "


def to_toml(config: TrainConfig) -> str:
    """Everything that a run was started with, defaults included, as TOML text that ends with its own SHA-256."""
    text = tomli_w.dumps(dataclasses.asdict(config))
    return f"{text}\n{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def is_sealed(text: str) -> bool:
    """Whether a text is what `to_toml` wrote, neither edited nor damaged."""
    text, _, seal = text.rpartition(f"\n{_SEAL}")
    return seal == hashlib.sha256(text.encode()).hexdigest() + "\n"


# --- resuming ---------------------------------------------------------------------------------------------------------

# What may change when a run is resumed: how long it goes on and how fast it learns, what it reports, where its data
# are, and on which hardware in which precision. The last three change the rounding: bit for bit, a run is resumed only
# where they stay.
CHANGEABLE_ON_RESUME = {
    "max_steps", "optim.lr", "optim.min_lr", "optim.warmup_steps", "optim.decay_steps", "optim.schedule",
    "optim.grad_clip", "log_every", "eval_every", "eval_batches", "save_every", "keep_checkpoints", "sample_every", "sample_prompt",
    "data.path", "device", "dtype", "compile", "parallel",
}  # fmt: skip


def check_resumable(before: TrainConfig, after: TrainConfig) -> TrainConfig:
    """`after`, with what `before` had filled in. ValueError names a setting that a resumed run must keep."""
    teacher = before.objective.teacher  # which says the teacher's checkpoint as well
    if teacher.rpartition(":")[0] != after.objective.teacher:
        teacher = after.objective.teacher
    model = after.model
    if after.init_from:  # what is left out is as in the run that it starts from
        given = {
            name: value for name, value in dataclasses.asdict(model).items() if value != getattr(GPTConfig(), name)
        }
        model = dataclasses.replace(before.model, **given)
    filled = dataclasses.replace(
        after,
        objective=dataclasses.replace(after.objective, teacher=teacher),
        model=dataclasses.replace(model, vocab_size=model.vocab_size or before.model.vocab_size),
        optim=dataclasses.replace(after.optim, decay_steps=after.optim.decay_steps or before.optim.decay_steps),
    )
    free = CHANGEABLE_ON_RESUME
    if before.batch_size * before.grad_accum_steps == filled.batch_size * filled.grad_accum_steps:
        free = CHANGEABLE_ON_RESUME | {"batch_size", "grad_accum_steps"}  # the same steps in other portions
    for name, (old, new) in differences(before.flat(), filled.flat()).items():
        if name not in free:
            raise ValueError(f"{name} is {old!r} in this run, not {new!r}: it cannot change when a run is resumed")
    return filled


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What `after` says otherwise, by name: (before, after)."""
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}
