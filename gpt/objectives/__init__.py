"""Training objectives: losses on the GPT's backbone, each an nn.Module that the Trainer trains without knowing it.

`gpt/objectives/objective.py` says what an objective is. A new one is a file here, a line in OBJECTIVES, and its name
and settings in `gpt.config.ObjectiveConfig`.
"""

from dataclasses import asdict, replace
from pathlib import Path

from gpt.adapters import adapt
from gpt.baselines import create_model
from gpt.checkpoint import RunFolder, load_model
from gpt.config import GPTConfig, TrainConfig
from gpt.objectives.conditional import Conditional
from gpt.objectives.distill import Distill
from gpt.objectives.infilling import Infilling
from gpt.objectives.masked import Masked
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
    "masked": Masked,
    "infilling": Infilling,
    "conditional": Conditional,
    "distill": Distill,
}


def fit(config: TrainConfig, data: PreparedData, fresh: bool = True) -> tuple[TrainConfig, PreparedData]:
    """A config with what the data decide filled in, and, `fresh`, the run that it starts from; and the data as its
    objective reads them. ValueError where they do not fit."""
    kind = OBJECTIVES[config.objective.name]
    read = kind.as_read(data)
    if fresh and config.init_from:
        config = _shaped_like(config, data.tokenizer, read.tokenizer)
    elif fresh and config.adapter.name != "none":
        raise ValueError(
            f"adapter {config.adapter.name!r} is trained beside the weights of another run: name that one as init_from"
        )
    return kind.fit(config, read), read


def _shaped_like(config: TrainConfig, prepared: Tokenizer, tokenizer: Tokenizer) -> TrainConfig:
    """A config whose model has the shape of the one that it starts from; `prepared` and `tokenizer`: that of the data,
    and with the objective's special tokens. Settings of the model that are not the defaults have to agree, but for
    those that change no weight, drop_rate and kernels."""
    run = RunFolder(existing_run(config.init_from))
    before = run.config()
    if before.adapter.name == "prefix":
        raise ValueError(
            f"init_from {config.init_from} has a prefix, which is no part of a model's own weights: start from "
            f"{before.init_from}, as it did"
        )
    known = run.tokenizer().to_dict()
    if tokenizer.to_dict() != known:
        file = run.path / "tokenizer.json"
        reason = f"other tokens than {config.data.path}: prepare the data with --tokenizer {file}"
        if prepared.to_dict() == known:
            names = " ".join(tokenizer.special_ids)
            reason = f"no token {names}, which objective.name {config.objective.name!r} adds: name a run that has"
        raise ValueError(f"init_from {config.init_from} has {reason}")
    model, default = asdict(before.model), GPTConfig()
    for name, given in asdict(config.model).items():
        if given == getattr(default, name) or (name == "vocab_size" and not given):
            continue  # it has been left out
        if name not in ("drop_rate", "kernels") and given != model[name]:
            raise ValueError(
                f"model.{name} is {given!r}, but {model[name]!r} in {config.init_from}, which this run starts from: "
                f"leave it out"
            )
        model[name] = given
    return replace(config, model=GPTConfig(**model))


def create_objective(config: TrainConfig, fresh: bool = True) -> Objective:
    """The objective that a config names, on the backbone that it describes, with its adapter; `fresh`, with the weights
    that it starts from."""
    model = create_model(config.model)
    if fresh and config.init_from:
        load_weights(model, named_weights(load_model(existing_run(config.init_from))[0]))
    return OBJECTIVES[config.objective.name](adapt(model, config.adapter), config.objective)


def load_objective(run: str | Path | RunFolder, which: str = "best") -> tuple[Objective, Tokenizer, Checkpoint]:
    """The objective of a run, its model in evaluation mode, its tokenizer, and the checkpoint it was loaded from."""
    model, tokenizer, checkpoint = load_model(run, which)
    objective = OBJECTIVES[checkpoint.config.objective.name](model, checkpoint.config.objective)
    own = {name: tensor for name, tensor in checkpoint.weights.items() if name.startswith("objective.")}
    load_weights(objective, {**named_weights(model), **own})
    return objective.eval(), tokenizer, checkpoint
