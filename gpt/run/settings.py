"""The settings of a run by their names: where two configs differ, and what may change when a run is resumed."""

from dataclasses import asdict, replace
from operator import attrgetter
from typing import Any

from gpt.config import GPTConfig, TrainConfig, config_fields

# Duration, learning rate, reports, the data's location and the hardware may change. A change of device, dtype, compile
# or parallel changes rounding: the run then continues, but not bit for bit.
CHANGEABLE_ON_RESUME = {
    "max_steps", "patience", "optim.lr", "optim.min_lr", "optim.warmup_steps", "optim.decay_steps", "optim.schedule",
    "optim.grad_clip", "log_every", "eval_every", "eval_batches", "save_every", "keep_checkpoints", "sample_every",
    "sample_prompt", "logger", "data.path", "device", "dtype", "compile", "recompute", "parallel",
}  # fmt: skip


def check_resumable(before: TrainConfig, after: TrainConfig) -> TrainConfig:
    """Return `after`, with what it leaves open filled in from `before`, the config of the run that is resumed.

    Raises ValueError for a setting that must not change.
    """
    model = asdict(after.model)
    for name, default in asdict(GPTConfig()).items():
        is_left_out = model[name] == default and (after.init_from or after.size_by_text)
        if is_left_out or (name == "vocab_size" and not model[name]):
            model[name] = getattr(before.model, name)
    objective = after.objective
    if objective.teacher == before.objective.teacher.rpartition(":")[0]:  # without the checkpoint, RUN:step-NNNNNN
        objective = replace(objective, teacher=before.objective.teacher)
    optim = replace(after.optim, decay_steps=after.optim.decay_steps or before.optim.decay_steps)
    after = replace(after, model=GPTConfig(**model), objective=objective, optim=optim)
    if after.size_by_text and after.max_steps == TrainConfig().max_steps:  # left out
        after = replace(after, max_steps=before.max_steps)
    changeable = CHANGEABLE_ON_RESUME
    if before.batch_size * before.grad_accum_steps == after.batch_size * after.grad_accum_steps:
        changeable = changeable | {"batch_size", "grad_accum_steps"}  # same steps, split differently
    for name, (old, new) in differences(before, after).items():
        if name not in changeable:
            raise ValueError(f"{name} is {old!r} in this run, not {new!r}: it cannot change when a run is resumed")
    return after


def flat(config: TrainConfig) -> dict[str, Any]:
    """Return all settings by dotted names: "max_steps", "model.n_layers", ..."""
    return {name: attrgetter(name)(config) for name, _ in config_fields(TrainConfig)}


def differences(before: TrainConfig, after: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by dotted name: (before, after)."""
    new = flat(after)
    return {name: (old, new[name]) for name, old in flat(before).items() if old != new[name]}
