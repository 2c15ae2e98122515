"""All settings of a run: typed, checked, frozen; read from TOML and written to it.

The command line (gpt/run/cli.py), the TOML files in configs/ and Python use the same names. A value of 0 or "" may mean
"decide later": `gpt.exchange.models.resolve_config` fills it in from the data, `init_from` and the objective.

Notebook: 13_todays_block.
"""

import math
import tomllib
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
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


def _setting(default: Any, meaning: str, low: Any = None, high: Any = None, applies_to: str = "", **more) -> Any:
    """Return a dataclass field with its meaning, shown by --help, the closed interval of its values, and the objectives
    or adapters that have this setting: an error for others. text=True: an option for it reads \\n as a line end."""
    meaning = f"{applies_to}: {meaning}" if applies_to else meaning
    return field(default=default, metadata={"help": meaning, "low": low, "high": high, "applies_to": applies_to} | more)


class _Config:
    """Base of all config classes."""

    def __post_init__(self):
        """Check type, choices and bounds of each field; convert an int to a float field's type. Raises ValueError."""
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type is float and type(value) is int:
                object.__setattr__(self, f.name, value := float(value))  # frozen otherwise
            if get_origin(f.type) is Literal:
                if value not in get_args(f.type):
                    raise ValueError(f"{f.name} must be one of {', '.join(map(repr, get_args(f.type)))}, not {value!r}")
            elif type(value) is not f.type or (f.type is float and not math.isfinite(value)):  # bool is not an int here
                names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a string"}
                raise ValueError(f"{f.name} must be {names.get(f.type, f'a {f.type.__name__}')}, not {value!r}")
            low, high, owners = (f.metadata.get(key) for key in ("low", "high", "applies_to"))
            if low is not None and value < low:
                raise ValueError(f"{f.name} must be at least {low}, not {value}")
            if high is not None and value > high:
                raise ValueError(f"{f.name} must be at most {high}, not {value}")
            if owners and value != f.default and self.name not in owners.split(", "):
                raise ValueError(f"{f.name} is a setting of {owners.replace(', ', ' and ')}, not of {self.name!r}")


@dataclass(frozen=True)
class GPTConfig(_Config):
    """The shape of a model. The defaults are those of the published figures, not of a training run."""

    vocab_size: int = _setting(50257, "tokens in the vocabulary; 0: as many as the tokenizer has", 0, 2**24)
    context_length: int = _setting(1024, "tokens that the model sees at once", 1, 2**24)
    emb_dim: int = _setting(768, "width of the residual stream; a multiple of n_heads", 1, 2**17)
    n_heads: int = _setting(12, "attention heads per block", 1)
    n_layers: int = _setting(12, "transformer blocks", 1, 10_000)
    drop_rate: float = _setting(0.1, "dropout probability: embeddings, attention weights, residual branches", 0, 0.99)
    qkv_bias: bool = _setting(False, "bias on W_query, W_key and W_value (as in GPT-2)")
    tie_embeddings: bool = _setting(False, "share one weight between out_head and tok_emb (as in GPT-2)")
    init: Literal["pytorch", "gpt2", "lecun"] = _setting("pytorch", "gpt2: standard deviation 0.02; lecun: 1/√(fan-in)")
    bias: bool = _setting(True, "bias on the other linear layers of a block (as in GPT-2; not in Llama)")
    position: Literal["learned", "rope"] = _setting("learned", "learned vectors, or rotary embeddings (as in Llama)")
    rope_theta: float = _setting(10_000.0, "base of the rotary wavelengths", 1)
    rope_scaling: float = _setting(1.0, "factor that stretches long rotary wavelengths, as in Llama 3.1; 1: none", 1)
    rope_original_length: int = _setting(8192, "context length before that stretching", 1)
    norm: Literal["layer", "rms"] = _setting("layer", "LayerNorm, or RMSNorm (as in Llama)")
    norm_eps: float = _setting(1e-5, "number added to the variance by a norm", 0)
    feed_forward: Literal["gelu", "gelu_exact", "relu2", "swiglu"] = _setting("gelu", "GELU, exact GELU, ReLU², SwiGLU")
    ffn_dim: int = _setting(0, "width of the feed-forward layer; 0: 4 x emb_dim", 0, 2**20)
    n_kv_heads: int = _setting(0, "heads of keys and values, each shared by several query heads; 0: n_heads", 0)
    head_dim: int = _setting(0, "width of an attention head; 0: emb_dim / n_heads", 0, 2**14)
    qk_norm: bool = _setting(False, "normalize each head's queries and keys (as in Qwen3)")
    window: int = _setting(0, "tokens that each token sees, itself included (sliding window); 0: all earlier ones", 0)
    full_every: int = _setting(0, "with a window: every n-th block sees all earlier tokens; 0: none does", 0)
    backbone: Literal["gpt", "lstm"] = _setting("gpt", "transformer blocks, or an LSTM as a baseline")
    implementation: Literal["fused", "reference"] = _setting("fused", "gpt/ops: fast kernels, or plain formulas")

    def __post_init__(self):
        super().__post_init__()
        if self.backbone == "gpt" and not self.head_dim and self.emb_dim % self.n_heads:
            raise ValueError(f"emb_dim {self.emb_dim} is not divisible by n_heads {self.n_heads}: choose a multiple")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.n_kv_heads}: change one")
        if self.position == "rope" and self.head_width % 2:
            raise ValueError(f"rotary embeddings rotate pairs of numbers: head_dim must be even, not {self.head_width}")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, G = n_kv_heads or n_heads."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        """Width of one head, K = head_dim or emb_dim / n_heads."""
        return self.head_dim or self.emb_dim // self.n_heads

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward layer, F = ffn_dim or 4 · emb_dim."""
        return self.ffn_dim or 4 * self.emb_dim

    def layer_window(self, layer: int) -> int:
        """Return how many tokens a token sees in a layer, itself included; 0: all earlier ones."""
        return 0 if self.full_every and (layer + 1) % self.full_every == 0 else self.window


@dataclass(frozen=True)
class DataConfig(_Config):
    """Where the tokens are, and how examples are cut from them."""

    path: str = _setting("data/story", "folder written by scripts/prepare_data.py")
    packing: Literal["packed", "document"] = _setting("packed", "cut examples across documents, or within each one")
    stride: int = _setting(0, "tokens from the start of one training example to the next; 0: context_length", 0)


@dataclass(frozen=True)
class OptimConfig(_Config):
    """The optimizer, and the learning rate as a function of the step."""

    name: Literal["adamw", "muon"] = _setting("adamw", "muon: Muon for the blocks' matrices, AdamW for the rest")
    lr: float = _setting(1e-3, "peak learning rate, reached after warm-up", 0)
    min_lr: float = _setting(1e-4, "learning rate at the end of the decay", 0)
    warmup_steps: int = _setting(100, "steps of linear warm-up from 0 to the peak learning rate", 0)
    decay_steps: int = _setting(0, "step at which min_lr is reached; 0: max_steps", 0)
    schedule: Literal["cosine", "linear", "constant"] = _setting("cosine", "shape of the decay after warm-up")
    weight_decay: float = _setting(0.1, "decoupled weight decay, on matrices only", 0)
    beta1: float = _setting(0.9, "AdamW, Muon: decay of the running mean of gradients", 0, 0.9999999)
    beta2: float = _setting(0.95, "AdamW: decay of the running mean of squared gradients", 0, 0.9999999)
    grad_clip: float = _setting(1.0, "maximum global norm of the gradients; 0: no clipping", 0)

    def __post_init__(self):
        super().__post_init__()
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}: lower min_lr, to which the schedule falls")


@dataclass(frozen=True)
class ObjectiveConfig(_Config):
    """The training objective, by the name of one in gpt/objectives/, and its settings."""

    name: Literal["next_token", "reverse", "masked", "infilling", "sft", "dpo", "grpo", "distill"] = _setting(
        "next_token", "training objective, one of gpt/objectives/"
    )
    label_smoothing: float = _setting(0.0, "probability spread evenly over all tokens in the training loss", 0, 0.99)
    mask_rate: float = _setting(0.15, "share of the tokens to mask and predict", 0.001, 0.999, "masked, infilling")
    next_sentence: bool = _setting(True, "also predict whether the second half follows the first", applies_to="masked")
    span_length: float = _setting(3.0, "mean length of a masked span, in tokens", 1, applies_to="infilling")
    beta: float = _setting(0.1, "weight of staying close to the model of init_from", 0, applies_to="dpo, grpo")
    reward: str = _setting("", "tales, requests, countdown, forms, exact_match or 'module:function'", applies_to="grpo")
    group_size: int = _setting(16, "completions of a prompt", 2, applies_to="grpo")
    passes: int = _setting(1, "steps that train on the same completions", 1, applies_to="grpo")
    clip: float = _setting(0.0, "limit to how far a token's probability ratio counts; 0: none", 0, 1, "grpo")
    baseline: Literal["group", "kind"] = _setting("group", "compare with the group, or its kind", applies_to="grpo")
    credit: Literal["answer", "error"] = _setting("answer", "reward all tokens, or up to an error", applies_to="grpo")
    normalize: bool = _setting(False, "divide advantages by the group's standard deviation", applies_to="grpo")
    length_norm: bool = _setting(False, "the same weight for each completion, not token", applies_to="grpo")
    teacher: str = _setting("", "run to learn from", applies_to="distill")
    temperature: float = _setting(2.0, "temperature of the teacher's and student's softmax", 1e-3, applies_to="distill")
    label_weight: float = _setting(0.1, "weight of the loss on labels; the teacher's gets the rest", 0, 1, "distill")


@dataclass(frozen=True)
class AdapterConfig(_Config):
    """A few new parameters, trained while the model's own stay frozen."""

    name: Literal["none", "lora", "prefix"] = _setting(
        "none", "none: train all weights; lora: low-rank updates of matrices; prefix: keys and values before the text's"
    )
    rank: int = _setting(8, "rank of an update", 1, applies_to="lora")
    alpha: float = _setting(16.0, "scale: an update is multiplied by alpha / rank", 0, applies_to="lora")
    targets: str = _setting("W_query, W_value", "layers to update, by the ends of their names", applies_to="lora")
    length: int = _setting(16, "keys and values per head and layer", 1, applies_to="prefix")


@dataclass(frozen=True)
class TrainConfig(_Config):
    """All settings of a run."""

    seed: int = _setting(1337, "seed of initial weights, order of examples, dropout and samples", 0, 2**63 - 1)
    max_steps: int = _setting(1000, "optimizer steps", 1)
    batch_size: int = _setting(16, "examples per forward and backward pass", 1)
    grad_accum_steps: int = _setting(1, "passes per step; a step has batch_size x grad_accum_steps examples", 1)
    log_every: int = _setting(10, "steps between rows of metrics.csv", 1)
    eval_every: int = _setting(100, "steps between evaluations on the validation split; 0: only at the end", 0)
    eval_batches: int = _setting(0, "batches per evaluation; 0: the whole validation split", 0)
    patience: int = _setting(0, "evaluations in a row without a better loss that end the run early; 0: none do", 0)
    save_every: int = _setting(500, "steps between checkpoints; 0: only at the end", 0)
    keep_checkpoints: int = _setting(2, "number of latest checkpoints to keep; the best one is kept as well", 1)
    sample_every: int = _setting(100, "steps between generated samples; 0: only at the end", 0)
    sample_prompt: str = _setting("", "prompt of the samples; empty: the first token of the training split", text=True)
    logger: Literal["csv", "tensorboard"] = _setting("csv", "metrics.csv alone, or TensorBoard's event files as well")
    device: str = _setting("auto", "auto (the first available of cuda, mps, cpu), cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _setting(
        "auto", "of matrix products; auto: bfloat16 where it is faster"
    )
    compile: bool = _setting(False, "use torch.compile (needs a C++ compiler, or triton on CUDA)")
    recompute: bool = _setting(False, "recompute blocks in the backward pass: less memory, a third more time")
    parallel: Literal["ddp", "fsdp", "hsdp"] = _setting("ddp", "processes hold the model, or shards; hsdp: by node")
    freeze: str = _setting("", "parameters not to train: beginnings of names, such as 'tok_emb, trf_blocks.0'")
    size_by_text: bool = _setting(False, "choose size, context, dropout, steps by the amount of text, where left out")
    init_from: str = _setting("", "weights to start from, with their shape: a run, gpt2, hub:OWNER/NAME or a path")
    model: GPTConfig = field(default_factory=GPTConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)


def config_fields(kind: type, prefix: str = "") -> list[tuple[str, Field]]:
    """Return all fields of a config class with dotted names: 'max_steps', 'model.n_layers', ..."""
    found = []
    for f in fields(kind):
        nested = is_dataclass(f.type)
        found += config_fields(f.type, f"{prefix}{f.name}.") if nested else [(prefix + f.name, f)]
    return found


def from_dict(kind: type, values: Any, prefix: str = "") -> Any:
    """Return a config of class `kind` from nested dictionaries, or itself. Settings left out keep their defaults.

    Raises ValueError for an unknown key, with the nearest known one, and for a value that is not allowed.
    """
    if isinstance(values, kind):
        return values
    if not isinstance(values, dict):
        table = prefix.rstrip(".")
        raise ValueError(f"{table} is a table of settings, [{table}], not a value: {values!r}")
    types = {f.name: f.type for f in fields(kind)}
    arguments = {}
    for name, value in values.items():
        if name not in types:
            what, known = f"setting {prefix}{name}", [key for key, _ in config_fields(TrainConfig if prefix else kind)]
            if isinstance(value, dict):
                what, known = f"table [{prefix}{name}]", {f"[{key.partition('.')[0]}]" for key in known if "." in key}
            raise ValueError(f"unknown {what}: {did_you_mean(what.partition(' ')[2], sorted(known))}")
        is_table = is_dataclass(types[name])
        arguments[name] = from_dict(types[name], value, f"{prefix}{name}.") if is_table else value
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the nested dictionaries of a TOML file. Raises ValueError if it is missing or not valid TOML."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no config file {path}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # of TOML, or of UTF-8
        raise ValueError(f"{path} is not valid TOML: {error}") from None


def load_config(path: str | Path) -> TrainConfig:
    """Return the config in a TOML file. Raises ValueError, with the path, for a missing file or a mistake in it."""
    values = read_toml(path)
    try:
        return from_dict(TrainConfig, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def to_toml(config: TrainConfig) -> str:
    """Return all settings as TOML text, defaults included."""
    return f"# Edit a setting and resume: --resume uses this file.\n\n{tomli_w.dumps(asdict(config))}"
