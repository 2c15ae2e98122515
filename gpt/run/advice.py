"""The last words of a run: whether it beat counting, overfitted or ended too early, and what to do about it."""

import math

from gpt.config import TrainConfig
from gpt.evaluation.baselines import Baselines

RISEN = 1.01  # validation loss over its minimum from which a run has overfitted
FALLEN = 1.01  # validation loss at four fifths of a run over that at its end from which it ended too early
CLOSE = 1.05  # validation loss over training loss up to which more steps help: the text is not yet memorised


def advise(metrics: dict[str, list[float]], baselines: Baselines, config: TrainConfig) -> list[str]:
    """Return a line for each problem that the metrics of a finished run show, by column as in metrics.csv."""
    rows = list(zip(*(metrics[name] for name in ("step", "train_loss", "val_loss")), strict=True))
    evaluations = [(int(step), loss) for step, _, loss in rows if step and not math.isnan(loss)]
    train_losses = [loss for _, loss, _ in rows if not math.isnan(loss)]
    if not evaluations or not train_losses:
        return []
    (best_step, best), (last_step, last) = min(evaluations, key=lambda row: row[1]), evaluations[-1]
    earlier = [loss for step, loss in evaluations if step <= 0.8 * last_step]
    lines = []
    counting = min(((loss, name) for name, loss in baselines.losses.items() if "gram" in name), default=None)
    has_risen = last > RISEN * best
    if counting and best > counting[0]:
        source = "more text" if config.size_by_text else "the settings of configs/mine.toml"
        way_out = f"Use {source}" if has_risen else f"Train for longer, or use {source}"
        lines.append(
            f"worse than counting: the {counting[1]} table has {counting[0]:.3f} nats per token, the best checkpoint "
            f"{best:.3f}. {way_out}"
        )
    if has_risen:
        lines.append(
            f"overfitting: the validation loss rose from {best:.3f} at step {best_step:,} to {last:.3f}, while the "
            f"training loss fell to {train_losses[-1]:.3f}. The best checkpoint is kept. A longer text helps most; a "
            f"higher --model.drop_rate or a smaller model helps too"
        )
    elif earlier and earlier[-1] > FALLEN * last and last < CLOSE * train_losses[-1]:
        lines.append(
            f"still falling: the validation loss was {earlier[-1]:.3f} after four fifths of the run, {last:.3f} at its "
            f"end, close to the training loss. A run of --max_steps {2 * config.max_steps} would end lower"
        )
    return lines
