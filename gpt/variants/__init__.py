"""The model, changed: another backbone, or parameters added to a frozen one."""

from gpt.config import AdapterConfig, GPTConfig
from gpt.model import GPTModel
from gpt.variants.lora import add_lora
from gpt.variants.lstm import LSTMModel
from gpt.variants.prefix import add_prefix


def create_model(config: GPTConfig) -> GPTModel:
    """The backbone that a config names."""
    return {"gpt": GPTModel, "lstm": LSTMModel}[config.backbone](config)


def adapt(model: GPTModel, config: AdapterConfig) -> GPTModel:
    """The model itself, frozen but for what the config adds to it; with "none" all of it is trained, as before.

    ValueError for targets that no layer goes by, for a rank or a length that the model has no room for, and for a model
    that is no transformer.
    """
    if config.name == "none":
        return model
    if model.config.backbone != "gpt":
        raise ValueError(f"adapter {config.name!r} belongs to the backbone 'gpt', not to {model.config.backbone!r}")
    model.requires_grad_(False)
    {"lora": add_lora, "prefix": add_prefix}[config.name](model, config)
    return model
