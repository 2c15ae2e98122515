"""Training objectives: losses on the GPT's backbone, each an nn.Module that the Trainer trains without knowing it.

`gpt/objectives/objective.py` says what an objective is. A new one is a file here, a line in OBJECTIVES, and its name
and settings in `gpt.config.ObjectiveConfig`.
"""

import dataclasses
from pathlib import Path

from gpt.baselines import create_model
from gpt.checkpoint import RunFolder, load_model
from gpt.config import GPTConfig, TrainConfig
from gpt.objectives.conditional import Conditional
from gpt.objectives.distill import Distill
from gpt.objectives.next_token import NextToken
from gpt.objectives.objective import Objective
from gpt.objectives.reverse import Reverse
from gpt.places import existing_run
from gpt.prepared import PreparedData
from gpt.state import Checkpoint
from gpt.tokenizer import Tokenizer
from gpt.weights import load_weights, named_weights

OBJECTIVES: dict[str, type[Objective]] = {
    "next_token": NextToken,
    "reverse": Reverse,
    "conditional": Conditional,
    "distill": Distill,
}


def fit(config: TrainConfig, data: PreparedData) -> tuple[TrainConfig, PreparedData]:
    """A config with what the data, and the run that it starts from, decide filled in, and the data as its objective
    reads them. ValueError where they do not fit."""
    kind = OBJECTIVES[config.objective.name]
    data = kind.as_read(data)
    if config.init_from:
        config = _shaped_like(config, data.tokenizer)
    return kind.fit(config, data), data


def _shaped_like(config: TrainConfig, tokenizer: Tokenizer) -> TrainConfig:
    """A config whose model has the shape of the one that it starts from. Settings of the model that are not the
    defaults have to agree, but for those that change no weight."""
    run = RunFolder(existing_run(config.init_from))
    if tokenizer.to_dict() != run.tokenizer().to_dict():
        raise ValueError(
            f"init_from {config.init_from} has other tokens than {config.data.path}: prepare the data with "
            f"--tokenizer {run.path / 'tokenizer.json'}"
        )
    base, own, default = run.config().model, dataclasses.asdict(config.model), dataclasses.asdict(GPTConfig())
    free = {name: own[name] for name in ("drop_rate", "kernels")}
    for name, value in own.items():
        if name not in free and value not in (default[name], getattr(base, name), 0):
            raise ValueError(
                f"model.{name} is {value!r}, but {getattr(base, name)!r} in {config.init_from}, which this run starts "
                f"from: leave it out"
            )
    return dataclasses.replace(config, model=dataclasses.replace(base, **free))


def create_objective(config: TrainConfig, fresh: bool = True) -> Objective:
    """The objective that a config names, on the backbone that it describes; `fresh`, with the weights that it starts
    from."""
    model = create_model(config.model)
    if fresh and config.init_from:
        load_weights(model, named_weights(load_model(existing_run(config.init_from))[0]))
    return OBJECTIVES[config.objective.name](model, config.objective)


def load_objective(run: str | Path | RunFolder, which: str = "best") -> tuple[Objective, Tokenizer, Checkpoint]:
    """The objective of a run, its model in evaluation mode, its tokenizer, and the checkpoint it was loaded from."""
    model, tokenizer, checkpoint = load_model(run, which)
    objective = OBJECTIVES[checkpoint.config.objective.name](model, checkpoint.config.objective)
    own = {name: tensor for name, tensor in checkpoint.weights.items() if name.startswith("objective.")}
    load_weights(objective, {**named_weights(model), **own})
    return objective.eval(), tokenizer, checkpoint
