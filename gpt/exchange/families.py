"""The settings of published models: the config.json of Hugging Face's, the metadata of GGUF's, and a GPTConfig.

A model type is GPT-2's or one of Llama's family, whose members differ in few options. A file that asks for something
that GPTModel does not compute is refused by the name of the setting.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from gpt.config import GPTConfig, from_dict
from gpt.exchange.layouts import GPT2_BIASES, GPT2_SIZES, LLAMA_NAMES
from gpt.system.gguf import GGUFFile

QKV = ("W_query", "W_key", "W_value")
FEED_FORWARD = ("gate", "up", "down")
# A setting of config.json -> of GPTConfig
GPT2_KEYS = {
    "vocab_size": "vocab_size", "n_positions": "context_length", "n_embd": "emb_dim", "n_head": "n_heads",
    "n_layer": "n_layers", "n_inner": "ffn_dim", "layer_norm_epsilon": "norm_eps", "resid_pdrop": "drop_rate",
    "tie_word_embeddings": "tie_embeddings",
}  # fmt: skip
LLAMA_KEYS = {
    "vocab_size": "vocab_size", "max_position_embeddings": "context_length", "hidden_size": "emb_dim",
    "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers", "intermediate_size": "ffn_dim",
    "num_key_value_heads": "n_kv_heads", "head_dim": "head_dim", "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}  # fmt: skip
# Settings that GPTModel does not have, and the values it implements
GPT2_FIXED = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
}  # fmt: skip
GPT2_ACTIVATIONS = {  # theirs -> ours
    "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu_accurate": "gelu",
    "gelu": "gelu_exact", "gelu_python": "gelu_exact",
}  # fmt: skip
LLAMA_FIXED = {
    "hidden_act": ("silu", "swish"), "partial_rotary_factor": (1.0, None), "rope_interleaved": (False,),
    "num_local_experts": (None, 0), "num_experts": (None, 0), "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,), "quantization_config": (None,),
}  # fmt: skip
ROPE_FIXED = {
    "rope_type": ("default", "llama3"), "partial_rotary_factor": (1.0, None), "low_freq_factor": (1.0,),
    "high_freq_factor": (4.0,),
}  # fmt: skip
# What a config.json of Llama's family may omit
DEFAULTS = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
}
# A setting of GGUF's metadata -> of config.json
GGUF_KEYS = {
    "gpt2": {
        "context_length": "n_positions", "embedding_length": "n_embd", "feed_forward_length": "n_inner",
        "block_count": "n_layer", "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
    "llama": {
        "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size", "block_count": "num_hidden_layers",
        "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "attention.sliding_window": "sliding_window", "rope.freq_base": "rope_theta",
    },
}  # fmt: skip
GGUF_FIXED = {  # settings of GGUF that change nothing at these values
    "rope.scaling.type": ("none",), "rope.scaling.factor": (1.0,), "expert_count": (0,), "expert_used_count": (0,),
    "attention.causal": (True,), "attention.scale": (0.0,), "logit_scale": (0.0, 1.0),
    "tensor_data_layout": ("Meta AI original pth",),
}  # fmt: skip
GGUF_OPTIONAL = ("attention.head_count_kv", "attention.key_length", "attention.sliding_window", "rope.freq_base")
ROPE_FACTORS = "rope_freqs.weight"  # a tensor of GGUF that is no parameter


# --- config.json ------------------------------------------------------------------------------------------------------


def config_from_hf(settings: Mapping[str, Any], source: str, biases: tuple[str, ...] | None = None) -> GPTConfig:
    """Return the GPTConfig of a config.json. ValueError, beginning with `source`, for what GPTModel does not compute.

    `biases` are the linear layers of a block that have a bias; by default those that the config.json says.
    """
    model_type = settings.get("model_type", "gpt2")
    if model_type not in ("gpt2", *DEFAULTS):
        known = ", ".join(("gpt2", *DEFAULTS))
        raise ValueError(f"{source}: model_type is {model_type!r}, but only {known} are read")
    if model_type == "gpt2":
        _check_fixed(settings, GPT2_FIXED, source)
        activation = settings.get("activation_function", "gelu_new")
        if activation not in GPT2_ACTIVATIONS:
            known = ", ".join(GPT2_ACTIVATIONS)
            raise ValueError(f"{source}: activation_function is {activation!r}, but GPTModel has {known}")
        # of a config.json that omits a setting
        default = {**asdict(GPT2_SIZES["gpt2"]), "drop_rate": 0.1, "feed_forward": GPT2_ACTIVATIONS[activation]}
        return _simplest(from_dict(GPTConfig, {**default, **_renamed(settings, GPT2_KEYS)}, f"{source}: "))
    _check_fixed(settings, LLAMA_FIXED, source)
    settings = {"rms_norm_eps": 1e-6, **DEFAULTS[model_type], **settings}
    given = _renamed(settings, LLAMA_KEYS)
    for key, ours in LLAMA_KEYS.items():
        if ours in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "ffn_dim") and ours not in given:
            raise ValueError(f"{source}: its config lacks {key}")
    biases = hf_biases(settings) if biases is None else biases
    config = from_dict(GPTConfig, {
        "drop_rate": 0.0, "init": "gpt2", "position": "rope", "norm": "rms", "feed_forward": "swiglu",
        "qk_norm": model_type == "qwen3", "qkv_bias": "W_query" in biases, "bias": bool({"out_proj", "up"} & {*biases}),
        **given, **_rope(settings, source),
    }, f"{source}: ")  # fmt: skip
    return _simplest(from_dict(GPTConfig, {**asdict(config), **_window(settings, config, source)}, f"{source}: "))


def hf_biases(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the linear layers of a block that have a bias according to a config.json."""
    model_type = settings.get("model_type", "gpt2")
    if model_type == "gpt2":
        return GPT2_BIASES
    of_attention = (*QKV, "out_proj") if settings.get("attention_bias") and model_type in ("llama", "qwen3") else ()
    of_feed_forward = FEED_FORWARD if settings.get("mlp_bias") and model_type == "llama" else ()
    return QKV if model_type == "qwen2" else of_attention + of_feed_forward


def _renamed(settings: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    return {ours: settings[theirs] for theirs, ours in keys.items() if settings.get(theirs) is not None}


def _check_fixed(settings: Mapping[str, Any], fixed: Mapping[str, tuple], source: str) -> None:
    for key, allowed in fixed.items():
        if key in settings and settings[key] not in allowed:
            raise ValueError(f"{source}: {key} is {settings[key]!r}, but GPTModel has {allowed[0]!r}")


def _simplest(config: GPTConfig) -> GPTConfig:
    """Return the config with 0 for the sizes that follow from others."""
    return replace(
        config,
        n_kv_heads=0 if config.n_kv_heads == config.n_heads else config.n_kv_heads,
        head_dim=0 if config.n_heads * config.head_dim == config.emb_dim else config.head_dim,
        ffn_dim=0 if config.ffn_dim == 4 * config.emb_dim else config.ffn_dim,
    )


def _rope(settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the rotary settings: of rope_parameters since transformers 5, of rope_theta and rope_scaling before."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    rope = {"rope_theta": settings.get("rope_theta") or 10_000.0, "rope_type": rope.get("type", "default"), **rope}
    _check_fixed(rope, ROPE_FIXED, f"{source}: rotary embeddings")
    found = {"rope_theta": rope["rope_theta"]}
    if rope["rope_type"] == "llama3":
        found |= {"rope_scaling": rope.get("factor"),
                  "rope_original_length": rope.get("original_max_position_embeddings")}  # fmt: skip
    return found


def _window(settings: Mapping[str, Any], config: GPTConfig, source: str) -> dict[str, int]:
    """Return the sliding window: all blocks have it, or all but every n-th."""
    model_type, window = settings["model_type"], settings.get("sliding_window")
    if not window or model_type == "llama" or (model_type != "mistral" and not settings.get("use_sliding_window")):
        return {}
    first = settings.get("max_window_layers", 0)
    kinds = settings.get("layer_types") or [
        "sliding_attention" if n >= first else "full_attention" for n in range(config.n_layers)
    ]
    is_full = [kind == "full_attention" for kind in kinds]
    every = is_full.index(True) + 1 if True in is_full else 0
    regular = not every or is_full == [(n + 1) % every == 0 for n in range(config.n_layers)]
    if not regular or not {*kinds} <= {"full_attention", "sliding_attention"}:
        raise ValueError(
            f"{source}: the sliding window is not in all blocks, nor in all but every n-th: {', '.join(kinds)}"
        )
    return {} if every == 1 else {"window": window, "full_every": every}


def hf_settings(config: GPTConfig) -> dict[str, Any]:
    """Return the config.json of a model: a GPT-2's, or that of the member of Llama's family that has its options.

    ValueError if there is none.
    """
    is_gpt2 = config.position == "learned"
    needed = {"norm": "layer", "feed_forward": "gelu", "qk_norm": False, "window": 0, "n_kv_heads": 0, "head_dim": 0}
    needed = needed if is_gpt2 else {"norm": "rms", "feed_forward": "swiglu"}
    if is_gpt2 and config.feed_forward == "gelu_exact":
        del needed["feed_forward"]
    owner = "GPT-2" if is_gpt2 else "Llama's family"
    for name, value in needed.items():
        if (found := getattr(_simplest(config), name)) != value:
            raise ValueError(
                f"a model with {name} {found!r} and position {config.position!r} cannot be exported: "
                f"{owner} has {name} {value!r}"
            )
    if is_gpt2:
        dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config.drop_rate)
        fixed = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
        fixed["activation_function"] = "gelu" if config.feed_forward == "gelu_exact" else "gelu_new"
        given = {theirs: getattr(config, ours) for theirs, ours in GPT2_KEYS.items()}
        return {**fixed, **given, **dropout, "n_inner": config.ffn_width, "n_ctx": config.context_length}
    return _llama_settings(config, _member(config))


def _member(config: GPTConfig) -> str:
    """Return the model type of Llama's family that has the options of a config."""
    if config.qk_norm:
        model_type = "qwen3"
    elif config.window:
        model_type = "qwen2" if config.qkv_bias or config.full_every else "mistral"
    elif config.qkv_bias and not config.bias:
        model_type = "qwen2"
    else:
        model_type = "mistral" if config.emb_dim % config.n_heads else "llama"  # transformers' Llama wants a multiple
    if config.bias and model_type != "llama":
        option = "qk_norm" if config.qk_norm else "window" if config.window else "emb_dim"
        raise ValueError(
            f"a model with bias True and {option} {getattr(config, option)!r} cannot be exported: in Llama's family "
            f"only Llama itself has such a bias"
        )
    return model_type


def _llama_settings(config: GPTConfig, model_type: str) -> dict[str, Any]:
    ours = {
        **asdict(config), "n_kv_heads": config.kv_heads, "head_dim": config.head_width, "ffn_dim": config.ffn_width
    }  # fmt: skip
    scaling = {
        "rope_type": "llama3", "factor": config.rope_scaling, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": config.rope_original_length,
    }  # fmt: skip
    settings = {
        "architectures": [f"{model_type.capitalize()}ForCausalLM"], "model_type": model_type, "hidden_act": "silu",
        **{theirs: ours[name] for theirs, name in LLAMA_KEYS.items()},
        "rope_theta": config.rope_theta, "rope_scaling": None if config.rope_scaling == 1 else scaling,
    }  # fmt: skip
    if model_type == "llama":
        return {**settings, "attention_bias": config.bias, "mlp_bias": config.bias}
    if model_type == "mistral":
        return {**settings, "sliding_window": config.window or None}
    windows = [config.layer_window(n) for n in range(config.n_layers)]
    return {
        **settings, "use_sliding_window": config.window > 0, "sliding_window": config.window or None,
        "max_window_layers": 0 if config.window else config.n_layers,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
        **({"attention_bias": config.qkv_bias} if model_type == "qwen3" else {}),
    }  # fmt: skip


# --- GGUF -------------------------------------------------------------------------------------------------------------


def gguf_architecture(model_type: str) -> str:
    """Return llama.cpp's name of a model type: it knows Mistral as a Llama."""
    return "llama" if model_type == "mistral" else model_type


def config_from_gguf(file: GGUFFile) -> tuple[GPTConfig, str, tuple[str, ...]]:
    """Return the GPTConfig of a GGUF file, its architecture, and the linear layers of a block that have a bias.

    ValueError, which begins with the file's path, for what GPTModel does not compute.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in ("gpt2", "llama", "qwen2", "qwen3"):
        raise ValueError(
            f"{file.path}: general.architecture is {architecture!r}, but only gpt2, llama, qwen2 and qwen3 are read"
        )
    prefix, keys = f"{architecture}.", GGUF_KEYS["gpt2" if architecture == "gpt2" else "llama"]
    given = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    for name in [prefix + key for key in keys if key not in GGUF_OPTIONAL and key not in given]:
        raise ValueError(f"{file.path}: its metadata lack {name}")
    if "token_embd.weight" not in file:
        raise ValueError(f"{file.path}: the tensor token_embd.weight is missing")
    settings = {theirs: given.pop(key, None) for key, theirs in keys.items()}
    settings |= {
        "model_type": "mistral" if architecture == "llama" and settings.get("sliding_window") else architecture,
        "use_sliding_window": True,
        "max_window_layers": 0,
        "vocab_size": file.shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in file,
    }
    biases = GPT2_BIASES
    if architecture != "gpt2":
        names = {module.rpartition(".")[2]: gguf.replace("N", "0") for module, (_, gguf) in LLAMA_NAMES.items()}
        biases = tuple(module for module, name in names.items() if f"{name}.bias" in file)
    config = config_from_hf(settings, str(file.path), biases)
    fixed = {**GGUF_FIXED, "rope.dimension_count": (config.head_width,), "attention.value_length": (config.head_width,)}
    _check_fixed(given, fixed, f"{file.path}: {architecture}")
    if unknown := [key for key in given if key not in fixed and key != "vocab_size"]:
        raise ValueError(f"{file.path}: {prefix}{unknown[0]} is a setting that GPTModel does not have")
    if ROPE_FACTORS in file:
        config = replace(config, **_scaling_of(file[ROPE_FACTORS], config, f"{file.path}: {ROPE_FACTORS}"))
    return config, architecture, biases


def gguf_metadata(config: GPTConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a model's GGUF file, from its config.json. ValueError for what llama.cpp lacks."""
    architecture = gguf_architecture(settings["model_type"])
    for name, is_lacking in {
        "window": config.window > 0,
        "feed_forward": config.feed_forward == "gelu_exact",
        "qkv_bias": config.qkv_bias and architecture == "qwen3",
        "rope_scaling": config.rope_scaling != 1 and architecture != "llama",
    }.items():
        if is_lacking:
            raise ValueError(
                f"a model with {name} {getattr(config, name)!r} cannot be written as GGUF: llama.cpp has no such "
                f"option for {architecture}"
            )
    keys = GGUF_KEYS["gpt2" if architecture == "gpt2" else "llama"]
    found = {key: settings[theirs] for key, theirs in keys.items() if settings.get(theirs) is not None}
    if config.position == "rope":
        found |= dict.fromkeys(("rope.dimension_count", "attention.value_length"), config.head_width)
        found["vocab_size"] = config.vocab_size
    return {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in found.items()},
    }


def rope_factors(config: GPTConfig) -> Tensor:
    """Return the number that divides each rotary frequency, (K/2,): GGUF's form of Llama 3.1's scaling."""
    exponents = torch.arange(0, config.head_width, 2) / config.head_width
    turns = config.rope_original_length / (2 * math.pi * config.rope_theta**exponents)
    kept = ((turns - 1) / 3).clamp(0, 1)
    return 1 / (kept + (1 - kept) / config.rope_scaling)


def _scaling_of(factors: Tensor, config: GPTConfig, source: str) -> dict[str, Any]:
    """Return the scaling whose `rope_factors` these are, which GGUF does not name."""
    scaling = float(factors.max())
    kept = (1 / factors - 1 / scaling) / (1 - 1 / scaling) if scaling > 1 else torch.ones(len(factors))
    pair = int((kept - 0.5).abs().argmin())  # the pair of numbers that is scaled about half
    turns = 1 + 3 * float(kept[pair])
    wavelength = 2 * math.pi * config.rope_theta ** (2 * pair / config.head_width)
    for length in (8192, round(turns * wavelength)):
        found = {"rope_scaling": scaling, "rope_original_length": max(length, 1)}
        same = rope_factors(replace(config, **found))
        if same.shape == factors.shape and torch.allclose(same, factors, rtol=1e-4):
            return found
    raise ValueError(f"{source} is not the scaling of Llama 3.1, the only one that GPTModel has")
