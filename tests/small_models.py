"""Small models of Llama's family, made by transformers with random weights, and the comparison of ours with them."""

import json

import pytest
import torch
from numerics import tolerance
from torch import nn

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e3, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
FAMILIES = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 2, "rms_norm_eps": 2.0**-7}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama attention biases": ("Llama", {"attention_bias": True}),
    "llama feed-forward biases": ("Llama", {"mlp_bias": True, "num_key_value_heads": 1}),
    "llama head_dim": ("Llama", {"head_dim": 16}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3_ROPE, "head_dim": 32}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral window": ("Mistral", {"sliding_window": 5, "head_dim": 12}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e2}}),
    "qwen2 window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "qwen2 every other": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "qwen2 unused window": ("Qwen2", {"use_sliding_window": False, "sliding_window": 4}),
    "qwen3": ("Qwen3", {"head_dim": 16, "num_key_value_heads": 2}),
    "qwen3 tied": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
    "qwen3 biases": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
}


def small_family(name):
    """Return transformers' model of a family, with random weights, biases and norms included."""
    kind, settings = FAMILIES[name]
    shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 24}
    shape["rms_norm_eps"] = 2.0**-20  # GGUF has it in float32
    config = getattr(transformers, f"{kind}Config")(**{**shape, "bos_token_id": 0, "eos_token_id": 0, **settings})
    return randomized(getattr(transformers, f"{kind}ForCausalLM")(config))


def randomized(model):
    """Give all parameters random values, in evaluation mode."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model.eval()


def in_float64(theirs):
    """Return transformers' model in float64. Its RMSNorm computes in float32: PyTorch's takes its place."""
    theirs = theirs.double()
    for name, module in list(theirs.named_modules()):
        if type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm):
            exact = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon).double()
            exact.weight = module.weight
            theirs.set_submodule(name, exact)
    return theirs


def assert_same(ours, theirs):
    """Compare logits in float64."""
    torch.manual_seed(0)
    ids = torch.randint(0, ours.config.vocab_size, (3, ours.config.context_length))
    with torch.no_grad():
        logits = in_float64(theirs)(ids).logits
        # sums of at most 64 products in each of about ten layers, and in attention over 24 tokens
        atol = tolerance(1000, logits)
        if ours.config.rope_scaling != 1:  # a frequency in float32 is scaled in another order of operations
            atol = ids.size(1) * 4 * torch.finfo(torch.float32).eps * float(logits.abs().max())
        torch.testing.assert_close(ours.double()(ids), logits, rtol=0, atol=atol)


def edit_config(folder, **settings):
    """Change settings of a folder's config.json; None deletes one."""
    config = {**json.loads((folder / "config.json").read_text()), **settings}
    (folder / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
    return folder
