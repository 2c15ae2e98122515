"""What a run's page shows, as numbers and texts: settings, results, curves, samples, and a look inside the model.

Every section stands alone. Where something is missing, such as a checkpoint, the prepared data or another run's
evaluation, a sentence takes its place.
"""

import contextlib
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpt.checkpoint import Checkpoint, RunFolder, read_state
from gpt.config import TrainConfig, config_fields
from gpt.evaluation.baselines import Baselines, compute_baselines
from gpt.exchange.models import load_objective, run_data
from gpt.loss import perplexity
from gpt.objectives import OBJECTIVES, Objective
from gpt.planning.plan import format_duration
from gpt.run import compare
from gpt.run.compare import count_parameters
from gpt.run.logging import COLUMNS, describe_shape, read_metrics
from gpt.run.settings import flat
from gpt.system.paths import existing_run
from gpt.text.tales import first_broken_rule
from gpt.token_files import PreparedData
from gpt.tokenizer import Tokenizer

MAX_ROWS = 1500  # of metrics.csv, shared by the runs on a page
MAX_SAMPLES, MAX_SAMPLE_CHARACTERS = 40, 4000

Chart = dict[str, Any]


@dataclass
class Source:
    """What can be read of a run: `note` says what cannot, in a sentence."""

    name: str
    folder: RunFolder
    config: TrainConfig
    state: dict[str, Any] | None = None  # of the newest checkpoint; None before it
    checkpoint: Checkpoint | None = None  # the one that is looked into
    objective: Objective | None = None  # from it
    tokenizer: Tokenizer | None = None
    data: PreparedData | None = None  # as the objective reads them
    baselines: Baselines | None = None
    note: str = ""


def open_source(
    name: str,
    folder: RunFolder,
    checkpoint: str = "best",
    data: PreparedData | None = None,
    baselines: Baselines | None = None,
    max_parameters: float = math.inf,
) -> Source:
    """Read a run without changing it. `data`, as the objective reads them, and `baselines` are given if known.

    A model of more than `max_parameters` is not loaded. ValueError if there is no such run, or no such checkpoint
    where one is named as "step-NNNNNN".
    """
    source = Source(name, folder, folder.config(), data=data, baselines=baselines)
    if checkpoint not in ("best", "last"):
        folder.find(checkpoint)  # ValueError
    if not folder.steps():
        source.note = "There is no checkpoint yet, so nothing of the model is shown."
        return source
    try:
        source.state = read_state(folder.find("last"))
        n_parameters = count_parameters(source.config)
        if n_parameters > max_parameters:
            raise ValueError(f"the model has {n_parameters:,} parameters: scripts/report.py looks inside")
        source.objective, source.tokenizer, source.checkpoint = load_objective(folder, checkpoint)
        source.config = source.checkpoint.config
        if data is None:
            source.data = source.objective.transform(run_data(folder, source.checkpoint))
        if baselines is None:
            source.baselines = compute_baselines(source.objective, source.config, source.data)
    except (ValueError, OSError) as error:
        source.note = str(error)
    return source


def open_compared(names: Sequence[str], source: Source) -> list[Source]:
    """Return the runs to compare a run with, each once, without their models. ValueError if one is no run.

    They have the baselines of `source` if they are evaluated on the same text.
    """
    found = {source.folder.path.resolve(): source}
    for name in names:
        folder = RunFolder(existing_run(name))
        if (key := folder.path.resolve()) not in found:
            other = found[key] = Source(name, folder, folder.config())
            with contextlib.suppress(ValueError, OSError):
                other.state = read_state(folder.find("last"))
            if source.state and other.state and source.state["data"]["val"] == other.state["data"]["val"]:
                other.baselines = source.baselines
    others = [*found.values()][1:]
    short = [other.folder.path.name for other in [source, *others]]
    for other, name in zip(others, short[1:], strict=True):
        other.name = name if short.count(name) == 1 else other.name
    return others


# --- settings and results ---------------------------------------------------------------------------------------------


def settings(config: TrainConfig) -> dict[str, list[tuple[str, str, str, str]]]:
    """Return the settings as rows of name, value, default and meaning: those that differ from the defaults, others."""
    values, defaults = flat(config), flat(TrainConfig())
    found = {"changed": [], "others": []}
    for name, field in config_fields(TrainConfig):
        row = (name, _shown(values[name]), _shown(defaults[name]), field.metadata["help"])
        found["others" if values[name] == defaults[name] else "changed"].append(row)
    return found


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value) or "–"


def lead(source: Source) -> str:
    """Return what the run is and how far it has come, in a sentence."""
    size = f"{count_parameters(source.config):,} parameters"
    if source.state is None:
        return f"{size}; no checkpoint yet."
    config, state = source.folder.config(), source.state
    step, seconds = state["step"], format_duration(state["elapsed_s"])
    if step < config.max_steps and not 0 < config.patience <= state["stale"]:
        return f"{size}, at step {step:,} of {config.max_steps:,} after {seconds}."
    early = f", early: {state['stale']} evaluations without a better loss" if step < config.max_steps else ""
    return f"{size}, trained for {step:,} steps in {seconds}{early}."


def facts(source: Source) -> list[tuple[str, str]]:
    """Return what was trained and on what, as names and values."""
    config, data, state = source.config, source.data, source.state
    rows = [
        ("model", f"{count_parameters(config):,} parameters: {describe_shape(config.model)}"),
        ("objective", config.objective.name),
        ("start", f"the weights of {config.init_from}" if config.init_from else "random weights"),
    ]
    if data:
        n_train, n_val = (f"{len(split.tokens):,}" for split in (data.train, data.val))
        rows.append(("data", f"{data.source}: {n_train} training and {n_val} validation tokens"))
    else:
        rows.append(("data", config.data.path))
    if tokenizer := source.tokenizer or (data and data.tokenizer):
        rows.append(("tokenizer", f"{tokenizer.name}, {tokenizer.vocab_size:,} tokens"))
    if state:
        unit, seconds = OBJECTIVES[config.objective.name].unit, state["elapsed_s"]
        rows.append(
            ("trained", f"{state['step']:,} steps, {state['tokens_seen']:,} {unit}s, {format_duration(seconds)}")
        )
        rows.append(("computed", ", ".join(f"{name} {value}" for name, value in state["environment"].items())))
    if source.checkpoint:
        rows.append(("shown here", f"the checkpoint {source.checkpoint.path.name}"))
    return rows


def command(source: Source) -> str:
    """Return the command that trains the same again, in the next free run folder."""
    return f"python scripts/train.py --config {shlex.quote(str(source.folder.config_file))}"


def figures(source: Source, metrics: dict[str, list[float]]) -> list[tuple[str, str, str]]:
    """Return the most important results as name, value and remark: those of the checkpoint that is shown."""
    row = _best_row(source, metrics)
    unit = OBJECTIVES[source.config.objective.name].unit
    found = []
    if row is not None:
        value = {name: column[row] for name, column in metrics.items() if not math.isnan(column[row])}
        error = f"± {value['val_loss_se']:.4f} " if "val_loss_se" in value else ""
        at = f"at step {value['step']:,.0f}"
        found = [("validation loss", f"{value['val_loss']:.4f}", f"{error}nats per {unit}, {at}")]
        if source.baselines and source.baselines.entropy_floor is not None:
            excess = value["val_loss"] - source.baselines.entropy_floor_loss
            closed = source.baselines.gap_closed(excess)
            share = f"; closes {closed:.1%} of the gap between trigram and floor" if closed > 0 else ""
            found.append(("above the entropy floor", f"{excess:.4f}", f"nats per token{share}"))
        if "val_perplexity" in value:
            found.append(("perplexity", f"{value['val_perplexity']:,.2f}", "as uncertain as among so many tokens"))
        if "val_bits_per_byte" in value:
            found.append(("bits per byte", f"{value['val_bits_per_byte']:.4f}", "comparable between tokenizers"))
        own = [name for name in value if name not in COLUMNS and name.startswith("val_")]
        found += [(_words(name), f"{value[name]:.4g}", at) for name in own]
    speed = [x for x in metrics.get("tokens_per_second", ()) if not math.isnan(x)]
    if speed:
        found.append(("speed", f"{np.median(speed):,.0f}", f"{unit}s per second, the median"))
    return found


def _best_row(source: Source, metrics: dict[str, list[float]]) -> int | None:
    """Return the row of the shown checkpoint's evaluation or, without one, of the lowest validation loss."""
    losses = metrics.get("val_loss", [])
    rows = [row for row, loss in enumerate(losses) if not math.isnan(loss)]
    if source.checkpoint:
        shown = [row for row in rows if metrics["step"][row] == source.checkpoint.state["step"]]
        rows = shown[-1:] or rows
    return min(rows, key=losses.__getitem__, default=None)


def ladder(source: Source, metrics: dict[str, list[float]]) -> list[tuple[str, float, float, float | None, bool]]:
    """Return the loss of the run between its baselines and the floor, highest first, as name, nats, perplexity, bits
    per byte, and whether it is the run's own."""
    row, baselines, data = _best_row(source, metrics), source.baselines, source.data
    if baselines is None:
        return []
    losses = [(name, nats, False) for name, nats in levels(baselines).items()]
    losses += [("this run", metrics["val_loss"][row], True)] if row is not None else []
    n_bytes = data.bytes_per_token if data and "val_bits_per_byte" in metrics else None
    return [
        (name, nats, perplexity(nats), nats / math.log(2) / n_bytes if n_bytes else None, own)
        for name, nats, own in sorted(losses, key=lambda loss: -loss[1])
    ]


def levels(baselines: Baselines | None) -> dict[str, float]:
    """Return the losses to compare with, in nats per unit: the baselines and, where it is known, the entropy floor."""
    if baselines is None:
        return {}
    floor = {"entropy floor": baselines.entropy_floor_loss} if baselines.entropy_floor is not None else {}
    return {**baselines.losses, **floor}


# --- curves -----------------------------------------------------------------------------------------------------------


def read_columns(source: Source) -> tuple[dict[str, list[float]], str]:
    """Return the columns of metrics.csv, empty if it cannot be read, and a sentence about what is missing."""
    try:
        metrics = read_metrics(source.folder.metrics)
        return metrics, "" if metrics else "metrics.csv has no row yet."
    except (OSError, ValueError, TypeError) as error:
        return {}, f"metrics.csv is missing or damaged ({error}): --resume restores it."


def thin(metrics: dict[str, list[float]], n: int) -> dict[str, list[float]]:
    """Return about n rows, spread evenly; all rows with an evaluation if they are not too many, first and last."""
    if not metrics or len(metrics["step"]) <= n:
        return metrics
    length = len(metrics["step"])
    evaluated = [row for row, loss in enumerate(metrics["val_loss"]) if not math.isnan(loss)]
    rows = {*np.linspace(0, length - 1, n // 2).astype(int).tolist()}
    rows |= {evaluated[i] for i in np.linspace(0, len(evaluated) - 1, min(len(evaluated), n // 2)).astype(int)}
    return {name: [column[row] for row in sorted(rows)] for name, column in metrics.items()}


def with_excess(metrics: dict[str, list[float]], baselines: Baselines | None) -> dict[str, list[float]]:
    """Add the losses minus the entropy floor, if it is known."""
    if baselines is None or baselines.entropy_floor is None:
        return metrics
    floor = baselines.entropy_floor_loss
    more = {f"{split}_excess": [x - floor for x in metrics[f"{split}_loss"]] for split in ("train", "val")}
    return metrics | more if metrics else metrics


def charts(
    columns: Sequence[dict[str, list[float]]],
    baselines: Baselines | None,
    bytes_per_token: float | None,
    unit: str = "token",
) -> list[Chart]:
    """Return the charts of one run or several: title, unit, the columns that each draws, and lines to compare with."""
    there = {name for run in columns for name, column in run.items() if not all(map(math.isnan, column))}
    nats, bits = levels(baselines), {}
    if bytes_per_token:
        bits = {name: loss / math.log(2) / bytes_per_token for name, loss in nats.items()}
    known = [
        ("loss", f"nats per {unit}", ("train_loss", "val_loss"), nats, False),
        ("loss above the entropy floor", "nats per token", ("train_excess", "val_excess"), {}, True),
        ("perplexity", "", ("train_perplexity", "val_perplexity"), {n: perplexity(x) for n, x in nats.items()}, True),
        ("bits per byte", "", ("val_bits_per_byte",), bits, False),
    ]
    own = sorted(name.removeprefix("val_") for name in there - {*COLUMNS, "train_excess", "val_excess"})
    for name in sorted(dict.fromkeys(own), key=lambda name: -own.count(name)):  # in both splits first
        title, of = (f"time, {name[:-2]}", "seconds per step") if name.endswith("_s") else (_words(name), "")
        known.insert(0 if name == "reward" else len(known), (title, of, (name, f"val_{name}"), {}, False))
    known += [
        ("learning rate", "", ("lr",), {}, False),
        ("gradient norm", "before clipping", ("grad_norm",), {}, True),
        (f"{unit}s per second", "", ("tokens_per_second",), {}, False),
        ("model FLOPs utilisation", "", ("mfu",), {}, False),
    ]
    found = []
    for title, of, names, lines, log in known:
        shown = [name for name in names if name in there]
        if shown:
            found.append({"title": title, "unit": of, "columns": shown, "levels": [*lines.items()], "log": log})
    return found


def _words(name: str) -> str:
    return name.removeprefix("val_").replace("_", " ")


def rounded(values: Sequence[float]) -> list[float | None]:
    """Return numbers to six digits, None for those that JSON does not know."""
    return [float(f"{x:.6g}") if math.isfinite(x) else None for x in values]


# --- runs compared ----------------------------------------------------------------------------------------------------


def comparison(sources: Sequence[Source]) -> dict[str, Any]:
    """Return the settings and results of runs side by side, or a "note" if one of them has no evaluation yet."""
    try:
        runs = [replace(compare.read_run(str(each.folder.path)), name=each.name) for each in sources]
    except ValueError as error:
        return {"note": f"The results are not compared: {error}."}
    return {
        "settings": compare.differing_settings(runs),
        "results": compare.results(runs),
        "verdict": compare.verdict(runs),
        "column": compare.compared_column(runs)[0],
    }


# --- texts ------------------------------------------------------------------------------------------------------------


def samples(source: Source) -> list[dict[str, Any]]:
    """Return samples.txt as steps and texts, at most MAX_SAMPLES; for tales with the grammar's verdict."""
    try:
        text = source.folder.samples.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    parts = re.split(r"^--- step (\d+) ---\n", text, flags=re.MULTILINE)[1:]
    found = [
        {"step": int(step), "text": part.removesuffix("\n\n")} for step, part in zip(*[iter(parts)] * 2, strict=True)
    ]
    if len(found) > MAX_SAMPLES:
        found = [found[i] for i in np.linspace(0, len(found) - 1, MAX_SAMPLES).astype(int)]
    is_tales = source.data is not None and source.data.source.startswith("tales:")
    for sample in found:
        if is_tales and OBJECTIVES[source.config.objective.name].left_to_right:
            sample["verdict"] = first_broken_rule(sample["text"]) or ""
        cut = sample["text"][:MAX_SAMPLE_CHARACTERS]
        sample["text"] = visible(cut) + "…" * (len(cut) < len(sample["text"]))
    return found


def visible(text: str) -> str:
    """Return a text whose control characters, line ends and tabs apart, are replaced by their pictures, as ␀."""
    return re.sub(r"[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match[0])), text).replace("\x7f", "␡")
