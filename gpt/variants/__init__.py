"""Variants of the model: another backbone; an adapter, which adds parameters to a frozen model; weights of fewer bits
and compiled code, for decoding on a CPU."""

from gpt.config import AdapterConfig, GPTConfig
from gpt.model import GPTModel
from gpt.variants.lora import add_lora
from gpt.variants.lstm import LSTMModel
from gpt.variants.prefix import add_prefix


def create_model(config: GPTConfig) -> GPTModel:
    """Return a new model with the backbone that the config names."""
    return {"gpt": GPTModel, "lstm": LSTMModel}[config.backbone](config)


def adapt(model: GPTModel, config: AdapterConfig) -> GPTModel:
    """Freeze the model and add the adapter that the config names, in place; return the model. "none" changes nothing.

    Raises ValueError for a target that names no layer, a rank or a length that is too large, and another backbone.
    """
    if config.name == "none":
        return model
    if model.config.backbone != "gpt":
        raise ValueError(f"adapter {config.name!r} needs the backbone 'gpt', not {model.config.backbone!r}")
    model.requires_grad_(False)
    {"lora": add_lora, "prefix": add_prefix}[config.name](model, config)
    return model
