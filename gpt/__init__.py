"""A GPT from scratch. `import gpt` is quick: a name imports its module, and PyTorch, when it is first used."""

import importlib

_HOME = {
    "GPT_CONFIG_124M": "config",
    "GPT2_SIZES": "exchange.layouts",
    "GPTConfig": "config",
    "TrainConfig": "config",
    "GPTModel": "model",
    "MultiHeadAttention": "model",
    "GELU": "layers",
    "FeedForward": "layers",
    "LayerNorm": "layers",
    "RMSNorm": "layers",
    "SwiGLU": "layers",
    "TransformerBlock": "model",
    "generate_text_simple": "generation",
    "generate": "generation",
    "text_to_token_ids": "generation",
    "token_ids_to_text": "generation",
    "get_tokenizer": "text.tokenizers",
    "create_dataloader": "data",
    "calc_loss_batch": "loss",
    "calc_loss_loader": "loss",
    "perplexity": "loss",
    "load_model": "exchange.models",
    "load_pretrained": "exchange.pretrained",
    "Trainer": "trainer",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'gpt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gpt.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
