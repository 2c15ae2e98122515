"""A model by name: that of a run's checkpoint, or published weights; and what a new run starts from."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from gpt.checkpoint import RunFolder
from gpt.config import GPTConfig, TrainConfig
from gpt.exchange.pretrained import is_pretrained, open_pretrained
from gpt.model import GPTModel
from gpt.objectives import OBJECTIVES, NextToken, Objective
from gpt.state import Checkpoint
from gpt.system.files import sha256
from gpt.system.paths import existing_run, find_path, is_run
from gpt.token_files import PreparedData, load_data
from gpt.tokenizer import Tokenizer
from gpt.variants import adapt, create_model
from gpt.variants.lora import merge
from gpt.weights import load_weights, named_weights


def resolve_config(config: TrainConfig, data: PreparedData, fresh: bool = True) -> tuple[TrainConfig, PreparedData]:
    """A config with what the data decide filled in, and, `fresh`, the run that it starts from; and the data as its
    objective reads them. ValueError where they do not fit."""
    kind = OBJECTIVES[config.objective.name]
    read = kind.transform(data)
    if fresh and config.init_from:
        config = _shaped_like(config, data.tokenizer, read.tokenizer)
    elif fresh and config.adapter.name != "none":
        raise ValueError(
            f"adapter {config.adapter.name!r} is trained beside the weights of another run: name that one as init_from"
        )
    return kind.resolve_config(config, read), read


@dataclass(frozen=True)
class InitSource:
    """What a run starts from: its model's shape, where its tokenizer is kept; tokenizer and weights when asked for."""

    config: GPTConfig
    tokenizer: Callable[[], Tokenizer]
    tokenizer_path: str | Path
    load: Callable[[], GPTModel]


def init_source(config: TrainConfig) -> InitSource:
    """What init_from names: a run, or published weights, of which it may take the first positions only."""
    name = config.init_from
    if not is_run(name) and is_pretrained(name):
        found = open_pretrained(name)
        few = config.model.context_length
        few = few if few < found.config.context_length else 0
        where = found.folder if found.has_tokenizer else "gpt2"
        shape = replace(found.config, context_length=few or found.config.context_length)
        return InitSource(shape, found.tokenizer, where, lambda: found.model(few))
    run = RunFolder(existing_run(name))
    before = run.config()
    if before.adapter.name == "prefix":
        raise ValueError(
            f"init_from {name} has a prefix, which is no part of a model's own weights: start from "
            f"{before.init_from}, as it did"
        )
    return InitSource(before.model, run.tokenizer, run.path / "tokenizer.json", lambda: load_model(run)[0])


def _shaped_like(config: TrainConfig, prepared: Tokenizer, tokenizer: Tokenizer) -> TrainConfig:
    """A config whose model has the shape of the one that it starts from; `prepared` and `tokenizer`: that of the data,
    and with the objective's special tokens. Settings of the model that are not the defaults have to agree, but for
    those that change no weight, drop_rate and kernels."""
    base = init_source(config)
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
        if name not in ("drop_rate", "implementation") and given != model[name]:
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
        load_weights(model, named_weights(init_source(config).load()))
    arguments = {}
    if config.objective.teacher:
        run, _, step = config.objective.teacher.rpartition(":")
        with torch.random.fork_rng(devices=[]):  # its initial weights must not move the run's random state
            arguments["teacher"] = load_model(existing_run(run), step)[0].requires_grad_(False)
    return OBJECTIVES[config.objective.name](adapt(model, config.adapter), config.objective, **arguments)


def load_model(run: str | Path | RunFolder, which: str = "best") -> tuple[GPTModel, Tokenizer, Checkpoint]:
    """The model of a run, in evaluation mode, its tokenizer, and the checkpoint it was loaded from. Low-rank updates
    are merged into it; a prefix stays what it is."""
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    folder.config()  # is it a run at all? The model's own settings are those of the checkpoint
    tokenizer, checkpoint = folder.tokenizer(), folder.load(which, training=False)
    model = adapt(create_model(checkpoint.config.model), checkpoint.config.adapter)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"{folder.path / 'tokenizer.json'} has {tokenizer.vocab_size} tokens, but the model was trained with "
            f"{model.config.vocab_size}: it is another run's"
        )
    if checkpoint.state["tokenizer"] != sha256(folder.path / "tokenizer.json"):
        raise ValueError(f"{folder.path / 'tokenizer.json'} is damaged: its SHA-256 is not the one that was written")
    weights = {name: w for name, w in checkpoint.weights.items() if not name.startswith("objective.")}
    load_weights(model, weights)
    merge(model)
    return model.eval(), tokenizer, checkpoint


def run_data(run: str | Path | RunFolder, checkpoint: Checkpoint) -> PreparedData:
    """The prepared data that a run was trained on; ValueError where the folder has been prepared anew since."""
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    data = load_data(find_path(folder.config().data.path), verify=True)
    if data.checksums != checkpoint.state["data"]:
        raise ValueError(f"{data.folder} was prepared anew since this run began: name a text with --text FILE")
    return data


def load_objective(run: str | Path | RunFolder, which: str = "best") -> tuple[Objective, Tokenizer, Checkpoint]:
    """The objective of a run, its model in evaluation mode, its tokenizer, and the checkpoint it was loaded from."""
    model, tokenizer, checkpoint = load_model(run, which)
    objective = OBJECTIVES[checkpoint.config.objective.name](model, checkpoint.config.objective)
    own = {name: tensor for name, tensor in checkpoint.weights.items() if name.startswith("objective.")}
    load_weights(objective, {**named_weights(model), **own})
    return objective.eval(), tokenizer, checkpoint


@dataclass(frozen=True)
class LoadedModel:
    """A model to be used or measured: of a run's checkpoint, or published weights, which have none."""

    name: str  # what it is, in words
    objective: Objective
    tokenizer: Tokenizer
    prepend_eot: bool  # a text begins with the end-of-text token
    checkpoint: Checkpoint | None


def open_model(run: str | Path | None, which: str, pretrained: str | None) -> LoadedModel:
    """The model of a run's checkpoint or, where no run is named, published weights."""
    if pretrained is not None:
        if is_run(pretrained):
            raise ValueError(f"{pretrained} is a run: --run {pretrained}")
        found = open_pretrained(pretrained)
        objective = NextToken(found.model()).eval()
        return LoadedModel(f"{pretrained} ({found.path})", objective, found.tokenizer(), found.prepend_eot, None)
    objective, tokenizer, checkpoint = load_objective(run, which)
    name = f"{run}, step {checkpoint.state['step']:,}"
    return LoadedModel(name, objective, tokenizer, checkpoint.config.data.packing == "document", checkpoint)
