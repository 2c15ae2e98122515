"""One line for each thing that a run will do and that its config does not make obvious."""

from collections.abc import Iterable, Sequence, Sized
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from gpt.config import GPTConfig, TrainConfig
from gpt.exchange.models import init_source
from gpt.objectives import Objective
from gpt.objectives.examples import PackedRows
from gpt.optim import learning_rate
from gpt.planning.plan import padded_length
from gpt.token_files import PreparedData

MAX_CONTEXT = 2**24  # the bound of model.context_length
REPORTS = ("log_every", "eval_every", "save_every", "keep_checkpoints", "sample_every", "sample_prompt")


def data_notices(data: PreparedData) -> list[str]:
    """Return how many token files will be verified only when they are first read."""
    shards = [shard for split in (data.train, data.val) for shard in getattr(split.tokens, "shards", ())]
    later = [shard for shard in shards if shard.sha256]
    size = sum(shard.path.stat().st_size for shard in later) / 1e9
    line = f"{data.folder}: {len(later):,} token files, {size:,.1f} GB, are verified when they are first read"
    return [line] if later else []


def length_notices(objective: Objective, config: TrainConfig, data: PreparedData) -> list[str]:
    """Return how many documents or pairs exceed the model's context, and the context_length that holds them."""
    needed = np.concatenate([objective.context_needed(config, data, split) for split in (data.train, data.val)])
    context_length = config.model.context_length
    share = (needed > context_length).mean() if len(needed) else 0
    if not share:
        return []
    longest, limit = int(needed.max()), MAX_CONTEXT
    if config.init_from:
        source = init_source(replace(config, model=GPTConfig(context_length=MAX_CONTEXT))).config
        grows = source.position == "learned" and config.adapter.name == "none"
        limit = MAX_CONTEXT if grows else source.context_length
    most = int(np.quantile(needed, 0.99, method="higher"))
    if longest <= limit:
        way_out = f"--model.context_length {longest} holds all of them"
        if context_length < most < longest:
            way_out = f"--model.context_length {most} holds 99% of them, {longest} all"
    elif context_length < limit:
        held = min(limit, max(most, context_length + 1))
        way_out = f"--model.context_length {held} holds {(needed <= held).mean():.1%} of them; {config.init_from} has "
        way_out += f"no more than {limit}"
    else:
        way_out = f"{config.init_from} has no longer context, so shorten them or leave them out"
    kind, effect = objective.overlong(data)
    n = f"{round(share * len(needed)):,} of {len(needed):,} {kind} ({share:.1%})"
    return [f"{n} exceed model.context_length {context_length}, so {effect}: {way_out}"]


def packing_notices(config: TrainConfig, examples: Sized, kind: str) -> list[str]:
    """Return how many rows hold the training examples, of this kind, and the share of padding that this saves."""
    if not isinstance(examples, PackedRows):
        return []
    context_length, n = config.model.context_length, len(examples.examples)
    alone = np.minimum(examples.examples.lengths, context_length)
    shares = [f"{1 - each.mean() / padded_length(each, config.batch_size):.0%}" for each in (alone, examples.lengths)]
    return [f"packing: {len(examples):,} rows of {context_length} hold {n:,} {kind}; padding {' → '.join(shares)}"]


def stride_notices(config: TrainConfig) -> list[str]:
    """Return how many tokens no example holds, because the stride is longer than the context."""
    stride, context_length = config.data.stride, config.model.context_length
    if stride <= context_length:
        return []
    skipped = f"the {stride - context_length:,} tokens between two examples are skipped"
    return [f"data.stride {stride} exceeds model.context_length {context_length}: {skipped}"]


def new_row_notices(config: TrainConfig, data: PreparedData) -> list[str]:
    """Return which tokens of the data, with the objective's, and which positions the model that a run starts from does
    not have."""
    if not config.init_from:
        return []
    source = init_source(replace(config, model=GPTConfig(context_length=MAX_CONTEXT))).config
    new = " ".join(name for name, i in data.tokenizer.special_tokens.items() if i >= source.vocab_size)
    lines = [f"init_from {config.init_from} has no token {new}: a new row starts as the mean of the others"] * bool(new)
    if config.model.context_length > source.context_length:
        lines.append(
            f"init_from {config.init_from} has no position beyond {source.context_length}: a new one starts as a copy "
            f"of the last"
        )
    return lines


def freeze_notices(config: TrainConfig) -> list[str]:
    """Return that two layers are frozen where only one of them is named, because they share a weight."""
    frozen = {name.strip().split(".")[0] for name in config.freeze.split(",")} & {"tok_emb", "out_head"}
    if not config.model.tie_embeddings or len(frozen) != 1:
        return []
    return ["freeze: tok_emb and out_head share one weight (model.tie_embeddings), so both are frozen"]


def schedule_notices(config: TrainConfig, step: int = 0, before: TrainConfig | None = None) -> list[str]:
    """Return what is unexpected about the learning rate from `step` to the end of a run.

    `before` is the config of the run that is resumed: without a change of the schedule or of the length there is no
    notice. A changed setting that has no effect is named, with the reason and the option that has one.
    """
    optim, end = config.optim, config.max_steps
    changed = [name for name in vars(optim) if before and getattr(before.optim, name) != getattr(optim, name)]
    if before and not changed and before.max_steps == end:
        return []
    idle = [f"optim.{name}" for name in changed if not _has_effect(name, config, before, step)]
    subject = f"{_no_effect(idle)}: " if idle else ""
    decay_end = optim.decay_steps or end
    last_rate = f"{learning_rate(end - 1, optim, end):.3g}"
    if optim.warmup_steps > end:
        return [
            f"{subject}optim.warmup_steps {optim.warmup_steps} is longer than the run of {end} steps: the learning "
            f"rate ends at {last_rate} and never reaches optim.lr {optim.lr:g}"
        ]
    if optim.schedule == "constant":
        return [f"{subject}the learning rate is optim.lr {optim.lr:g} after the warm-up"] if idle else []
    if decay_end <= optim.warmup_steps < end:
        return [
            f"{subject}optim.decay_steps {decay_end} lies within the warm-up of {optim.warmup_steps} steps: after it "
            f"the learning rate is optim.min_lr {optim.min_lr:g} at once; --optim.decay_steps {end} makes it decay"
        ]
    if before and decay_end < end:
        return [
            f"{subject}the decay {'ended' if decay_end <= step else 'ends'} at step {decay_end}, and from there on the "
            f"learning rate stays at optim.min_lr {optim.min_lr:g}; --optim.decay_steps {end} extends the decay, "
            f"--optim.min_lr sets that rate"
        ]
    if before and decay_end > end:
        return [
            f"the run ends at step {end}, before the decay does at step {decay_end}: the learning rate ends at "
            f"{last_rate}; --optim.decay_steps {end} lets it reach optim.min_lr"
        ]
    return [f"{subject}the learning rate is {last_rate} from here on"] if idle else []


def finished_notices(config: TrainConfig, step: int, changes: Iterable[str]) -> list[str]:
    """Return which changed settings have no effect on a run that is finished at `step`, and what trains it on."""
    idle = [name for name in changes if name.startswith("optim.") or name in REPORTS]
    way_out = f"--max_steps above {step}" if step >= config.max_steps else "--patience 0"
    return [f"{_no_effect(idle)}: the run is finished; {way_out} trains it on"] if idle else []


def _no_effect(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} no effect"


def _has_effect(name: str, config: TrainConfig, before: TrainConfig, step: int) -> bool:
    """Return whether a changed setting of [optim] changes a step from `step` on."""
    if name not in ("lr", "min_lr", "warmup_steps", "decay_steps", "schedule"):
        return True
    end = config.max_steps
    unchanged = SimpleNamespace(**{**vars(config.optim), name: getattr(before.optim, name)})  # min_lr may exceed lr
    steps = {*range(step, min(step + 1000, end)), *np.linspace(step, end - 1, 1000, dtype=int).tolist()}
    return any(learning_rate(k, config.optim, end) != learning_rate(k, unchanged, end) for k in steps)
