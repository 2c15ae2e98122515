"""Training objectives: losses on the GPT's backbone, each an nn.Module that the Trainer trains without knowing it.

`gpt/objectives/objective.py` says what an objective is. A new one is a file here, a line in OBJECTIVES, and its name
and settings in `gpt.config.ObjectiveConfig`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gpt.adapters import adapt
from gpt.baselines import create_model
from gpt.checkpoint import RunFolder, load_model
from gpt.config import GPTConfig, TrainConfig
from gpt.model import GPTModel
from gpt.objectives.conditional import Conditional
from gpt.objectives.distill import Distill
from gpt.objectives.infilling import Infilling
from gpt.objectives.masked import Masked
from gpt.objectives.next_token import NextToken
from gpt.objectives.objective import Objective
from gpt.objectives.reverse import Reverse
from gpt.places import existing_run, is_run
from gpt.prepared import PreparedData
from gpt.pretrained import is_pretrained, open_pretrained
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


@dataclass(frozen=True)
class _Base:
    """What a run starts from: its model's shape, where its tokenizer is kept; tokenizer and weights when asked for."""

    config: GPTConfig
    tokenizer: Callable[[], Tokenizer]
    tokenizer_path: str | Path
    load: Callable[[], GPTModel]


def _base(config: TrainConfig) -> _Base:
    """What init_from names: a run, or published weights, of which it may take the first positions only."""
    name = config.init_from
    if not is_run(name) and is_pretrained(name):
        found = open_pretrained(name)
        few = config.model.context_length
        few = few if few < found.config.context_length else 0
        where = found.folder if found.has_tokenizer else "gpt2"
        shape = replace(found.config, context_length=few or found.config.context_length)
        return _Base(shape, found.tokenizer, where, lambda: found.model(few))
    run = RunFolder(existing_run(name))
    before = run.config()
    if before.adapter.name == "prefix":
        raise ValueError(
            f"init_from {name} has a prefix, which is no part of a model's own weights: start from "
            f"{before.init_from}, as it did"
        )
    return _Base(before.model, run.tokenizer, run.path / "tokenizer.json", lambda: load_model(run)[0])


def _shaped_like(config: TrainConfig, prepared: Tokenizer, tokenizer: Tokenizer) -> TrainConfig:
    """A config whose model has the shape of the one that it starts from; `prepared` and `tokenizer`: that of the data,
    and with the objective's special tokens. Settings of the model that are not the defaults have to agree, but for
    those that change no weight, drop_rate and kernels."""
    base = _base(config)
    known = base.tokenizer().to_dict()
    if tokenizer.to_dict() != known:
        reason = f"other tokens than {config.data.path}: prepare the data with --tokenizer {base.tokenizer_path}"
        if prepared.to_dict() == known:
            names = " ".join(tokenizer.special_ids)
            reason = f"no token {names}, which objective.name {config.objective.name!r} adds: name a run that has"
        raise ValueError(f"init_from {config.init_from} has {reason}")
    model, default = asdict(base.config), GPTConfig()
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
        load_weights(model, named_weights(_base(config).load()))
    return OBJECTIVES[config.objective.name](adapt(model, config.adapter), config.objective)


def load_objective(run: str | Path | RunFolder, which: str = "best") -> tuple[Objective, Tokenizer, Checkpoint]:
    """The objective of a run, its model in evaluation mode, its tokenizer, and the checkpoint it was loaded from."""
    model, tokenizer, checkpoint = load_model(run, which)
    objective = OBJECTIVES[checkpoint.config.objective.name](model, checkpoint.config.objective)
    own = {name: tensor for name, tensor in checkpoint.weights.items() if name.startswith("objective.")}
    load_weights(objective, {**named_weights(model), **own})
    return objective.eval(), tokenizer, checkpoint


@dataclass(frozen=True)
class Subject:
    """A model to be used or measured: of a run's checkpoint, or published weights, which have none."""

    name: str  # what it is, in words
    objective: Objective
    tokenizer: Tokenizer
    in_documents: bool  # a text begins with the end-of-text token
    checkpoint: Checkpoint | None


def load_subject(run: str | Path | None, which: str, pretrained: str | None) -> Subject:
    """The model of a run's checkpoint or, where no run is named, published weights."""
    if pretrained is not None:
        if is_run(pretrained):
            raise ValueError(f"{pretrained} is a run: --run {pretrained}")
        found = open_pretrained(pretrained)
        objective = NextToken(found.model()).eval()
        return Subject(f"{pretrained} ({found.path})", objective, found.tokenizer(), found.in_documents, None)
    objective, tokenizer, checkpoint = load_objective(run, which)
    name = f"{run}, step {checkpoint.state['step']:,}"
    return Subject(name, objective, tokenizer, checkpoint.config.data.windows == "document", checkpoint)
