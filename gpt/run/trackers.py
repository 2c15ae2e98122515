"""Experiment trackers: TensorBoard by `logger = "tensorboard"`. docs/training.md attaches any other in ten lines."""

import re
import time

from gpt.config import to_toml
from gpt.loss import Evaluation
from gpt.run.logging import metrics_row, read_metrics
from gpt.run.settings import flat
from gpt.system.errors import import_extra
from gpt.trainer import Callback, Trainer


def trackers(logger: str) -> list[Callback]:
    """Return the callbacks of the setting `logger`. ValueError where the library of a tracker is not installed."""
    return {"csv": list, "tensorboard": lambda: [TensorBoard()]}[logger]()


class TensorBoard(Callback):
    """runs/NAME/tensorboard/: metrics.csv as scalars, samples.txt and config.toml as text, the settings as hparams.

    metrics.csv is the truth. When a run is resumed, or gets this logger later, the events are written again from there:
    those after the checkpoint are gone, and none is missing.
    """

    def __init__(self):
        import_extra("tensorboard", 'logger = "tensorboard" needs TensorBoard', "tensorboard")
        self.writer = None  # in the first process only
        self.start = 0.0  # when the run would have started if it had never paused, in seconds since 1970

    def on_train_start(self, trainer: Trainer) -> None:
        """Write what the run folder holds so far."""
        if not trainer.ctx.is_main:
            return
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import
        from torch.utils.tensorboard.summary import hparams

        run, folder = trainer.run, trainer.run.path / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer = SummaryWriter(folder, purge_step=0)  # a TensorBoard that is open drops what it has read
        self.start = time.time() - trainer.elapsed_s
        self.writer.add_text("config", f"```toml\n{to_toml(trainer.config)}\n```", 0)
        for summary in hparams(flat(trainer.config), {"val/loss": 0}):
            self.writer.file_writer.add_summary(summary)
        try:
            columns = read_metrics(run.metrics)
        except (ValueError, TypeError) as error:
            trainer.log(f"TensorBoard starts at step {trainer.step}, since {run.metrics} is damaged ({error})")
            return
        for row in zip(*columns.values(), strict=True):
            self._add(dict(zip(columns, row, strict=True)))
        samples = re.split(r"^--- step (\d+) ---\n", run.samples.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for step, text in zip(samples[1::2], samples[2::2], strict=True):
            self._add_sample(text, int(step))

    def on_log(self, trainer: Trainer, evaluation: Evaluation | None) -> None:
        """Add a row of metrics, and bring it to the file: the run may diverge next."""
        if self.writer:
            self._add(metrics_row(trainer, evaluation))
            self.writer.flush()

    def on_step_end(self, trainer: Trainer) -> None:
        """Add the sample that was just written to samples.txt."""
        if self.writer and trainer.is_due(trainer.config.sample_every):
            text = trainer.run.samples.read_text(encoding="utf-8")
            self._add_sample(text.rpartition(" ---\n")[2], trainer.step)

    def on_end(self, trainer: Trainer) -> None:
        """Close the file."""
        if self.writer:
            self.writer.close()

    def _add(self, row: dict[str, float]) -> None:
        """Add a row of metrics.csv: train_loss as train/loss, lr as run/lr."""
        for name, value in row.items():
            if name != "step" and value == value:  # an empty cell is NaN
                split, _, rest = name.partition("_")
                tag = f"{split}/{rest}" if split in ("train", "val") else f"run/{name}"
                self.writer.add_scalar(tag, value, int(row["step"]), self.start + row["elapsed_s"])

    def _add_sample(self, text: str, step: int) -> None:
        """Add a sample as it is, not as Markdown."""
        indented = "\n".join(f"    {line}" for line in text.strip().splitlines())
        self.writer.add_text("sample", indented, step)
