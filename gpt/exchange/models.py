"""Models by name: a run's checkpoint or published weights, and the model that a new run starts from."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gpt.checkpoint import Checkpoint, RunFolder
from gpt.config import GPTConfig, TrainConfig
from gpt.exchange.pretrained import is_pretrained, open_pretrained, with_unused
from gpt.model import GPTModel
from gpt.objectives import OBJECTIVES, NextToken, Objective
from gpt.objectives.size import fit_to_text
from gpt.objectives.weights import freeze, load_weights, named_weights
from gpt.system.deferred import DeferredInit
from gpt.system.files import sha256
from gpt.system.paths import existing_run, find_path, is_run
from gpt.token_files import PreparedData, load_data
from gpt.tokenizer import Tokenizer
from gpt.variants import adapt, create_model
from gpt.variants.lora import merge

# --- loading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedModel:
    """A model to use or to evaluate, from a run's checkpoint or from published weights."""

    name: str  # for people
    objective: Objective
    tokenizer: Tokenizer
    prepend_eot: bool  # a text starts with the end-of-text token
    checkpoint: Checkpoint | None  # None for published weights


def open_model(run: str | Path | None, checkpoint: str = "best", pretrained: str | None = None) -> LoadedModel:
    """Load a run's checkpoint ("best", "last" or "step-NNNNNN"), or published weights if `pretrained` names them."""
    if pretrained is not None:
        if is_run(pretrained):
            raise ValueError(f"{pretrained} is a run: --run {pretrained}")
        found = open_pretrained(pretrained)
        objective = NextToken(found.model()).eval()
        return LoadedModel(f"{pretrained} ({found.path})", objective, found.tokenizer(), found.prepend_eot, None)
    objective, tokenizer, loaded = load_objective(run, checkpoint)
    name = f"{run}, step {loaded.state['step']:,}"
    return LoadedModel(name, objective, tokenizer, objective.starts_with_eot(loaded.config), loaded)


def load_objective(run: str | Path | RunFolder, checkpoint: str = "best") -> tuple[Objective, Tokenizer, Checkpoint]:
    """Load the objective of a run with its model, in evaluation mode; the tokenizer; and the checkpoint it is from."""
    model, tokenizer, loaded = load_model(run, checkpoint)
    objective = OBJECTIVES[loaded.config.objective.name](model, loaded.config.objective)
    own = {name: tensor for name, tensor in loaded.weights.items() if name.startswith("objective.")}
    load_weights(objective, {**named_weights(model), **own})
    return objective.eval(), tokenizer, loaded


def load_model(run: str | Path | RunFolder, checkpoint: str = "best") -> tuple[GPTModel, Tokenizer, Checkpoint]:
    """Load the model of a run, in evaluation mode; the tokenizer; and the checkpoint it is from.

    Low-rank updates are merged into the weights; a prefix is kept as it is.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    folder.config()  # ValueError if it is not a run; the model's own settings are those of the checkpoint
    tokenizer, loaded = folder.tokenizer(), folder.load(checkpoint, training=False)
    model = adapt(create_model(loaded.config.model), loaded.config.adapter)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"{folder.tokenizer_file} has {tokenizer.vocab_size} tokens, but the model was trained with "
            f"{model.config.vocab_size}: it belongs to another run"
        )
    if loaded.state["tokenizer"] != sha256(folder.tokenizer_file):
        raise ValueError(f"{folder.tokenizer_file} is damaged: its SHA-256 differs from the one in state.json")
    load_weights(model, {name: w for name, w in loaded.weights.items() if not name.startswith("objective.")})
    merge(model)
    return model.eval(), tokenizer, loaded


def run_data(run: str | Path | RunFolder, checkpoint: Checkpoint) -> PreparedData:
    """Return the prepared data of a run. ValueError if they are gone, or prepared from another text since."""
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    path = find_path(folder.config().data.path)
    other = ", or name another one with --text FILE"
    ways = prepare_again(folder, path) + other
    check_data_exist(folder, path, other)
    data = load_data(path, verify=True)
    if data.checksums != checkpoint.state["data"]:
        raise ValueError(f"{data.folder} has changed since this run started: {ways}")
    return data


def prepare_again(folder: RunFolder, path: Path) -> str:
    """Return how the data of a run are prepared again in the folder `path`."""
    again = f"python scripts/prepare_data.py --input TEXT --tokenizer {folder.tokenizer_file} --out {path}"
    return f"prepare its text again ({again})"


def check_data_exist(folder: RunFolder, path: Path, other: str = "") -> None:
    """Raise ValueError if the data of a run are gone; `other` ends the message: another way out."""
    if not (path / "meta.json").is_file():
        ways = prepare_again(folder, path) + other
        raise ValueError(f"no prepared data in {path}, on which this run was trained: {ways}")


# --- what a new run starts from ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InitSource:
    """The model that init_from names: its config now, its tokenizer and weights when asked for."""

    config: GPTConfig
    tokenizer: Callable[[], Tokenizer]
    tokenizer_path: str | Path
    load: Callable[[], GPTModel]


def init_source(config: TrainConfig) -> InitSource:
    """Return what init_from names: a run, or published weights, which may be cut to fewer positions."""
    name = config.init_from
    if not is_run(name) and is_pretrained(name):
        found = open_pretrained(name)
        length = min(config.model.context_length, found.config.context_length)
        tokenizer_path = found.tokenizer_path or "gpt2"
        shape = replace(found.config, context_length=length)
        return InitSource(shape, found.tokenizer, tokenizer_path, lambda: found.model(length))
    run = RunFolder(existing_run(name))
    source = run.config()
    if source.adapter.name == "prefix":
        raise ValueError(
            f"init_from {name} has a prefix, which is not part of the model's weights: start from "
            f"{source.init_from}, as it did"
        )
    return InitSource(source.model, run.tokenizer, run.tokenizer_file, lambda: load_model(run)[0])


def resolve_config(config: TrainConfig, data: PreparedData, fresh: bool = True) -> tuple[TrainConfig, PreparedData]:
    """Fill in what the data and, for a `fresh` run, init_from determine; return the config, and the data as the
    objective reads them. ValueError if they do not fit each other."""
    kind = OBJECTIVES[config.objective.name]
    transformed = kind.transform(data)
    if config.init_from:
        config = _with_shape_of_source(config, transformed.tokenizer) if fresh else config
        tokenizer = with_unused(transformed.tokenizer, config.model.vocab_size)  # the source may have more rows
        transformed = replace(transformed, tokenizer=tokenizer)
    elif fresh and config.adapter.name != "none":
        raise ValueError(f"adapter {config.adapter.name!r} needs a model to adapt: name a run as init_from")
    if fresh and config.size_by_text:
        config = fit_to_text(config, transformed)
    return kind.resolve_config(config, transformed), transformed


def _with_shape_of_source(config: TrainConfig, tokenizer: Tokenizer) -> TrainConfig:
    """Give the model the shape of the one it starts from, with rows for the tokens that the data's `tokenizer`, with
    the objective's special tokens, has in addition. A setting that is given must agree, unless it changes no weight or
    adds learned positions."""
    source = init_source(config)
    known = source.tokenizer()
    new = " ".join(name for name, i in tokenizer.special_tokens.items() if i >= known.vocab_size)
    if not _fits(tokenizer, known):
        raise ValueError(
            f"init_from {config.init_from} has other tokens than {config.data.path}: prepare the data with --tokenizer "
            f"{source.tokenizer_path}"
        )
    context_length, known_length = config.model.context_length, source.config.context_length
    given = context_length != GPTConfig().context_length
    grows = given and context_length > known_length and source.config.position == "learned"
    if (new or grows) and config.adapter.name != "none":
        missing = f"token {new}" if new else f"position beyond {known_length}"
        raise ValueError(
            f"init_from {config.init_from} has no {missing}, and adapter {config.adapter.name!r} trains no embedding "
            f"for it: train all weights (adapter.name 'none'), or start from a run that has it"
        )
    model, default = {**asdict(source.config), "vocab_size": max(known.vocab_size, tokenizer.vocab_size)}, GPTConfig()
    for name, given in asdict(config.model).items():
        if given == getattr(default, name) or (name == "vocab_size" and not given):
            continue  # left out
        free = ("drop_rate", "implementation", *["context_length"] * grows)
        if name not in free and given != model[name]:
            raise ValueError(
                f"model.{name} is {given!r}, but {model[name]!r} in {config.init_from}, which this run starts from: "
                f"leave it out"
            )
        model[name] = given
    return replace(config, model=GPTConfig(**model))


def _fits(tokenizer: Tokenizer, source: Tokenizer) -> bool:
    """Return whether a tokenizer has the tokens of a source. Special tokens may stand in the source's unused rows."""
    free = ("special_tokens", "end_of_text", "eot", "chat_template")  # what data may add
    ours, theirs = (
        {key: value for key, value in each.to_dict().items() if key not in free} for each in (tokenizer, source)
    )
    unused = {i for name, i in source.special_tokens.items() if name == f"<|unused {i}|>"}
    used = [i for i in range(source.vocab_size) if i not in unused]
    same = ours == theirs and used[-1] < tokenizer.vocab_size
    return same and all(tokenizer.decode_bytes([i]) == source.decode_bytes([i]) for i in used)


def _with_rows(weights: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Give the token embedding and the head a row for each token, and the position embedding one for each position.

    A new token is the mean of the others: its logit is their mean logit, so that it takes next to no probability from
    the known ones. A new position is a copy of the last one.
    """
    sizes = dict.fromkeys(("tok_emb.weight", "out_head.weight"), config.vocab_size)
    sizes["pos_emb.weight"] = config.context_length
    for name in sizes.keys() & weights.keys():
        rows = weights[name]
        new = rows[-1:] if name == "pos_emb.weight" else rows.mean(0, keepdim=True)
        weights[name] = torch.cat([rows, new.expand(sizes[name] - len(rows), -1)])
    return weights


def initial_model(config: TrainConfig) -> GPTModel:
    """Return the model of init_from in the shape that the config says."""
    model = create_model(config.model)
    load_weights(model, _with_rows(named_weights(init_source(config).load()), config.model))
    return model


def create_objective(config: TrainConfig, fresh: bool = True, deferred: DeferredInit | None = None) -> Objective:
    """Build the objective with its model and adapter, and freeze what the config names; for a `fresh` run with the
    weights that it starts from. If initialization is `deferred`, the weights have neither memory nor values yet."""
    kind, arguments = OBJECTIVES[config.objective.name], {}
    recording = deferred.recording if deferred else contextlib.nullcontext
    with recording():
        starts_from = fresh and config.init_from and not deferred
        model = initial_model(config) if starts_from else create_model(config.model)
    if config.objective.teacher:
        run, _, step = config.objective.teacher.rpartition(":")
        with torch.random.fork_rng(devices=[]):  # the teacher's initial weights must not move the run's random state
            arguments["teacher"] = load_model(existing_run(run), step)[0].requires_grad_(False)
    if kind.needs_reference:
        with torch.random.fork_rng(devices=[]):
            arguments["reference"] = initial_model(config).eval().requires_grad_(False)
    with recording():
        objective = kind(adapt(model, config.adapter), config.objective, **arguments)
    freeze(objective, config.freeze)
    return objective
