"""Training objectives: losses on the GPT's backbone, each an nn.Module that the Trainer trains without knowing it.

An objective holds the backbone as `model`, owns all parameters to be trained, and maps a batch of windows
(inputs (B, T), targets (B, T)) to (loss summed in nats, tokens counted). The Trainer divides by the count, over
micro-batches and processes, so that a token weighs the same however a batch is cut.
"""

from torch import nn

from gpt.config import ObjectiveConfig
from gpt.model import GPTModel
from gpt.objectives.next_token import NextToken

OBJECTIVES = {"next_token": NextToken}


def create_objective(config: ObjectiveConfig, model: GPTModel) -> nn.Module:
    """The objective that a config names, on the backbone `model`."""
    return OBJECTIVES[config.name](model)
