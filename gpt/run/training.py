"""Start or resume a run: check config, data and resources, build the objective, attach the callbacks."""

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gpt.checkpoint import Checkpoint, RunFolder, check_checkpoint
from gpt.config import TrainConfig, to_toml
from gpt.exchange.models import check_data_exist, resolve_config
from gpt.planning.plan import plan_or_raise
from gpt.planning.utilisation import seconds_per_token
from gpt.run.building import build_objective
from gpt.run.callbacks import CSVLog, Page, Plot, Progress, SampleLog
from gpt.run.notices import (
    data_notices,
    finished_notices,
    freeze_notices,
    length_notices,
    new_row_notices,
    packing_notices,
    schedule_notices,
    stride_notices,
)
from gpt.run.settings import check_resumable, differences, flat
from gpt.run.trackers import trackers
from gpt.system.attention import fastest_attention, use_attention
from gpt.system.device import choose_device, choose_dtype, has_fast_bfloat16
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.system.errors import oom_hint
from gpt.system.files import atomic_file, atomic_folder, flush, write_text
from gpt.system.paths import find_path
from gpt.token_files import load_data
from gpt.trainer import Trainer

Log = Callable[[str], None]


def start_run(config: TrainConfig, run: str | Path, log: Log = print, ctx: DistContext = SINGLE_PROCESS) -> Trainer:
    """Return a Trainer at step 0 and make its run folder.

    `log` receives each line of progress. ValueError if the config does not fit the data or the machine, or if the run
    has a checkpoint already.
    """
    ctx.init_process_group(choose_device(config.device))
    folder = RunFolder(run)
    with _lock(folder, ctx):
        if folder.steps():
            raise ValueError(
                f"the run {folder.path} has a checkpoint, {folder.steps()[-1]}: "
                f"--resume continues it, another --run starts a new one"
            )
        return _start(config, folder, _progress(log, ctx), ctx)


def resume_run(
    run: str | Path,
    config: TrainConfig | None = None,
    log: Log = print,
    ctx: DistContext = SINGLE_PROCESS,
    checkpoint: str | None = None,
) -> Trainer:
    """Return a Trainer that continues from the newest valid checkpoint, bit for bit as if the run had never stopped.

    `checkpoint` ("best" or "step-NNNNNN") names an earlier one: the run then continues as if it had been stopped there,
    and what it wrote later is set aside. ValueError if that checkpoint is missing or damaged.

    `config`, by default the run's config.toml, may change how long the run trains, what it reports and where it
    computes; each change is logged. ValueError names a setting that must not change. Without a checkpoint the run
    starts at step 0.
    """
    folder = RunFolder(run)
    config = config or folder.config()
    ctx.init_process_group(choose_device(config.device))
    progress = _progress(log, ctx)
    with _lock(folder, ctx):
        found, errors = (folder.load(checkpoint, ctx=ctx), []) if checkpoint else folder.load_newest_valid(ctx)
        for error in errors:
            progress.log(f"skipped: {error}")
        if found is None:
            if errors:
                raise ValueError(f"no checkpoint of {folder.path} is valid: {errors[0]}")
            progress.log(f"{folder.path} has no checkpoint yet: starting at step 0")
            return _start(config, folder, progress, ctx)
        before, config = found.config, check_resumable(found.config, config)
        changes = differences(before, config)
        for name, (old, new) in changes.items():
            progress.log(f"{name} {old} → {new}")
        if found.state["step"] > config.max_steps:
            raise ValueError(
                f"the run {folder.path} is at step {found.state['step']}, beyond max_steps {config.max_steps}: "
                f"raise max_steps"
            )
        trainer = _create(config, folder, progress, ctx, found)
        saved = found.state["environment"]
        if "precision" not in saved:  # an older checkpoint; "auto" was float32 on every CPU
            was_float32 = saved["device"].startswith("cpu") and before.dtype == "auto"
            saved["precision"] = "torch.float32" if was_float32 else trainer.environment["precision"]
        trainer.restore(found)
        for name, now in trainer.environment.items():
            if saved.get(name, now) != now:
                change = "results differ" if name == "precision" else "the last digits of the results may differ"
                progress.log(f"{name}: {saved[name]} → {now}; {change}")
        notices = schedule_notices(trainer.config, trainer.step, before)
        if trainer.finished and not trainer.report_due:
            notices = finished_notices(trainer.config, trainer.step, changes)
        for notice in notices:
            progress.log(notice)
        if ctx.is_main:
            if line := set_aside(folder, found):
                progress.log(line)
            _recover_files(trainer, found)
        return trainer


@contextlib.contextmanager
def _lock(folder: RunFolder, ctx: DistContext) -> Iterator[None]:
    """Rank 0 holds the lock of the run; the other processes start after it has cleaned up."""
    with folder.lock() if ctx.is_main else contextlib.nullcontext():
        ctx.barrier()
        yield


def _progress(log: Log, ctx: DistContext) -> Progress:
    return Progress(log if ctx.is_main else lambda line: None)


def _start(config: TrainConfig, folder: RunFolder, progress: Progress, ctx: DistContext) -> Trainer:
    trainer = _create(config, folder, progress, ctx)
    config = trainer.config
    if trainer.objective.prepare_passes:
        progress.log(f"the model reads all {trainer.objective.overlong(trainer.data)[0]} once before the first step")
    with ctx.reshard_after(), ctx.autocast(trainer.device, trainer.dtype):
        trainer.objective.prepare(config, trainer.data, trainer.device, ctx)
    lengths = length_notices(trainer.objective, config, trainer.data)
    new_rows = new_row_notices(config, trainer.data)
    lengths += stride_notices(config)
    lengths += packing_notices(config, trainer.examples, trainer.objective.overlong(trainer.data)[0])
    for notice in [*schedule_notices(config), *new_rows, *lengths, *freeze_notices(config)]:
        progress.log(notice)
    if ctx.is_main:
        folder.create(trainer.config, trainer.data.tokenizer)
        CSVLog.create(folder.metrics, trainer.objective.columns, has_mfu=seconds_per_token(trainer) is not None)
    return trainer


def _create(
    config: TrainConfig,
    folder: RunFolder,
    progress: Progress,
    ctx: DistContext,
    checkpoint: Checkpoint | None = None,
) -> Trainer:
    """Check config, data and resources, and build objective and Trainer."""
    if config.patience and not config.eval_every:
        raise ValueError(f"patience is {config.patience}, but eval_every 0 evaluates only at the end: set eval_every")
    path = find_path(config.data.path)
    if checkpoint:
        check_data_exist(folder, path)
    data = load_data(path, verify=True)
    for line in data_notices(data):
        progress.log(line)
    if checkpoint and checkpoint.state["data"] != data.checksums:
        raise ValueError(
            f"the data in {data.folder} is not what the run {folder.path} was trained on: "
            f"prepare it again as it was, or start a new run"
        )
    config, data = resolve_config(config, data, fresh=checkpoint is None)
    facts = {f"SHA-256 of the {split} tokens": digest for split, digest in data.checksums.items()}
    facts |= {"checkpoint": checkpoint.path.name if checkpoint else "none", "PyTorch": torch.__version__}
    facts["bfloat16 in hardware"] = str(has_fast_bfloat16())  # which decides what dtype "auto" is
    ctx.assert_same_on_all_ranks({**flat(config), **facts})
    plan_or_raise(config, data, folder.path, ctx)
    device = choose_device(config.device)
    if config.parallel != "ddp" and ctx.world_size > 1 and choose_dtype(config.dtype, device, 0) == torch.float16:
        raise ValueError(f"dtype float16 is not for parallel = {config.parallel!r}: set dtype to bfloat16 or float32")
    with oom_hint(1, 1):
        objective = build_objective(config, ctx, checkpoint, progress.log)
        callbacks = [progress, CSVLog(), SampleLog(), Plot(), Page(), *trackers(config.logger)]
        trainer = Trainer(config, objective, data, folder, ctx, callbacks, progress.log)
    model = config.model
    if model.backbone == "gpt":
        shape = (config.batch_size, model.n_heads, model.context_length, model.head_width)
        kernel = fastest_attention(shape, model.kv_heads, model.drop_rate, trainer.dtype, trainer.device)
        use_attention(kernel := ctx.all_gather(kernel)[0])
        trainer.environment |= {"attention": kernel} if kernel else {}
    return trainer


def _recover_files(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Bring everything in the run folder to the state of a checkpoint."""
    folder = trainer.run
    for log in truncate_logs(folder, checkpoint):
        trainer.log(f"{log} was damaged: restored as of step {trainer.step}")
    folder.update_pointers(checkpoint)
    try:
        if (best := folder.find("best")) != checkpoint.path:  # which has been read
            check_checkpoint(best)
    except ValueError as error:
        trainer.log(f"the best checkpoint is lost, which does not affect the run: {error}")
    folder.write_tokenizer(trainer.data.tokenizer)
    write_text(folder.config_file, to_toml(trainer.config))  # the next --resume starts from these settings


def set_aside(folder: RunFolder, checkpoint: Checkpoint) -> str:
    """Move the checkpoints after this one, with copies of the logs, to checkpoints/aside-001, or the next free number.

    Return a line that says so; "" if there is none. A kill leaves each checkpoint in one of the two places, and whole
    logs in at least one.
    """
    steps = folder.steps()
    later = steps[steps.index(checkpoint.path.name) + 1 :]
    if not later:
        return ""
    numbered = (folder.checkpoints / f"aside-{number:03d}" for number in itertools.count(1))
    aside = next(path for path in numbered if not path.exists())
    with atomic_folder(aside) as temporary:
        for file in (folder.metrics, folder.samples, folder.plot, folder.page, folder.config_file):
            if file.is_file():
                shutil.copy(file, temporary)
    best = folder.checkpoints / "best"
    if checkpoint.state["best"]:  # later checkpoints record it, even if it has been deleted
        write_text(best, f"{checkpoint.state['best']}\n")
    else:
        best.unlink(missing_ok=True)
    for step in reversed(later):  # the newest first: --resume alone then continues where the earlier ones end
        (folder.checkpoints / step).rename(aside / step)
    for changed in (aside, folder.checkpoints):
        flush(changed)
    names = later[0] if len(later) == 1 else f"{later[0]} to {later[-1]}"
    return f"set aside in {aside}: {names}, with metrics.csv and samples.txt up to there"


def truncate_logs(run: RunFolder, checkpoint: Checkpoint) -> list[str]:
    """Restore metrics.csv and samples.txt as of a checkpoint; return the names of those that were damaged."""
    damaged = []
    for log in (run.metrics, run.samples):
        saved = (checkpoint.path / log.name).read_bytes()
        found = log.read_bytes() if log.is_file() else b""
        if found != saved:
            with atomic_file(log) as temporary:
                temporary.write_bytes(saved)
        if not found.startswith(saved):
            damaged.append(log.name)
    return damaged
