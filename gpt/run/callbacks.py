"""What happens around training: progress, metrics.csv, samples.txt, loss.png, the run's page, the summary."""

import contextlib
import sys
import time
from functools import lru_cache
from pathlib import Path

import torch
from tqdm import tqdm

from gpt.evaluation.baselines import Baselines, compute_baselines
from gpt.loss import Evaluation
from gpt.run import logging
from gpt.run.lines import Lines
from gpt.system.files import append_text
from gpt.trainer import Callback, Trainer

PLOT_SECONDS = 20  # loss.png is redrawn at an evaluation if it is older than this
MAX_PAGE_PARAMETERS = 2e7  # a larger model is not loaded when a run ends: it could be what the memory has no room for


class Progress(Lines, Callback):
    """Lines of progress and, on a terminal, a bar. `log` prints a line without breaking the bar."""

    def on_train_start(self, trainer: Trainer) -> None:
        """Open the bar."""
        hidden = self.print is not print or not sys.stderr.isatty()
        total = trainer.config.max_steps
        self.bar = tqdm(total=total, initial=trainer.step, unit="step", disable=hidden, dynamic_ncols=True)

    def on_log(self, trainer: Trainer, evaluation: Evaluation | None) -> None:
        """Print a row of metrics; on a terminal, where the bar shows the rest, only those with an evaluation."""
        if evaluation or self.bar.disable:
            row, unit = logging.metrics_row(trainer, evaluation), trainer.objective.unit
            self.log(logging.progress_line(row, trainer.config.max_steps, unit))

    def on_step_end(self, trainer: Trainer) -> None:
        """Move the bar."""
        with contextlib.suppress(OSError):  # the terminal may be gone
            self.bar.update(trainer.step - self.bar.n)
            if self.bar.n % 5 == 0 and trainer.sums and trainer.timed_seconds:
                self.bar.set_postfix_str(logging.progress_postfix(trainer))

    def on_end(self, trainer: Trainer) -> None:
        """Close the bar."""
        with contextlib.suppress(OSError):
            self.bar.close()
        self.bar = tqdm(disable=True)


class CSVLog(Callback):
    """metrics.csv: one row per log, columns as in logging.COLUMNS and the objective's own metrics."""

    @staticmethod
    def create(path: Path, metrics: tuple[str, ...] = (), has_mfu: bool = False) -> None:
        """Write the header into a new file. The column mfu is there where it is known."""
        columns = [name for name in logging.COLUMNS if name != "mfu" or has_mfu]
        append_text(path, ",".join([*columns, *metrics]) + "\n")

    @staticmethod
    def append(path: Path, row: dict[str, float]) -> None:
        """Append a row in the columns of the header; one that the row lacks stays empty."""
        with path.open(encoding="utf-8", errors="replace") as file:
            columns = file.readline().rstrip("\n").split(",")
        append_text(path, ",".join(_cell(name, row.get(name)) for name in columns) + "\n")

    def on_log(self, trainer: Trainer, evaluation: Evaluation | None) -> None:
        """Append a row."""
        if trainer.ctx.is_main:
            metrics = trainer.run.metrics
            if not metrics.exists() or not metrics.stat().st_size:  # deleted during the run; saving then makes it empty
                self.create(metrics, trainer.objective.columns)
            self.append(metrics, logging.metrics_row(trainer, evaluation))


def _cell(name: str, value: float | None) -> str:
    """Format a number; nine digits distinguish any two float32 losses."""
    return "" if value is None else f"{value:.1f}" if name in ("elapsed_s", "tokens_per_second") else f"{value:.9g}"


class SampleLog(Callback):
    """samples.txt: a text that the model writes, every sample_every steps."""

    def on_step_end(self, trainer: Trainer) -> None:
        """Append a sample if one is due."""
        config = trainer.config
        if trainer.is_due(config.sample_every):
            with trainer.ctx.unsharded(), trainer.ctx.autocast(trainer.device, trainer.dtype):
                if trainer.ctx.is_main:
                    text = trainer.objective.sample(config, trainer.data, config.seed + trainer.step)
                    append_text(trainer.run.samples, f"--- step {trainer.step} ---\n{text}\n\n")


@lru_cache(maxsize=1)
def baselines_of(trainer: Trainer) -> Baselines:
    """Return the baselines of a run's validation split, computed once."""
    return compute_baselines(trainer.objective, trainer.config, trainer.data)


class Plot(Callback):
    """loss.png, drawn from metrics.csv: losses and perplexities with their baselines, or rewards and entropy."""

    def __init__(self):
        self.drawn_at = float("-inf")

    def draw(self, trainer: Trainer) -> None:
        """Draw loss.png. A damaged metrics.csv or a full disk does not stop the run."""
        from gpt.run import plots  # matplotlib takes half a second to import

        run = trainer.run
        plot = plots.plot_rewards if "reward" in trainer.objective.columns else plots.plot_losses
        try:
            plot(run.metrics, run.plot, baselines_of(trainer))
        except (ValueError, KeyError, TypeError) as error:
            trainer.log(f"{run.plot} was not drawn, since {run.metrics} is damaged ({error})")
        except OSError as error:
            trainer.log(f"{run.plot} was not drawn ({error.strerror})")
        self.drawn_at = time.perf_counter()

    def on_log(self, trainer: Trainer, evaluation: Evaluation | None) -> None:
        """Redraw after an evaluation if the last drawing is old."""
        if evaluation and trainer.ctx.is_main and time.perf_counter() - self.drawn_at > PLOT_SECONDS:
            self.draw(trainer)

    def on_end(self, trainer: Trainer) -> None:
        """Draw, unless the run was finished before and its plot is newer than its metrics."""
        if trainer.ctx.is_main and not is_newer(trainer.run.plot, trainer.run.metrics):
            self.draw(trainer)


class Page(Callback):
    """index.html, the run as a page, written when training ends. scripts/report.py writes it at any time."""

    def write(self, trainer: Trainer) -> None:
        """Write the page. A damaged file of the run or a full disk does not stop the run."""
        from gpt.run.page import write_page  # the template engine takes a tenth of a second to import

        try:
            with torch.random.fork_rng(devices=[]):  # loading a model draws its initial weights
                write_page(
                    trainer.run.path,
                    data=trainer.data,
                    baselines=baselines_of(trainer),
                    max_parameters=MAX_PAGE_PARAMETERS,
                )
        except OSError as error:
            trainer.log(f"{trainer.run.page} was not written ({error.strerror})")
        except Exception as error:  # a damaged file may raise any, and so may memory that runs out
            trainer.log(f"{trainer.run.page} was not written ({error})")

    def on_end(self, trainer: Trainer) -> None:
        """Write, unless the run was finished before and its page is newer than its metrics."""
        if trainer.ctx.is_main and not is_newer(trainer.run.page, trainer.run.metrics):
            self.write(trainer)


def is_newer(path: Path, other: Path) -> bool:
    """Return whether a file exists and was not written before another one."""
    return path.exists() and path.stat().st_mtime >= other.stat().st_mtime


class Summary(Callback):
    """What a run will train, printed before it starts, and its results, printed after it ends."""

    def on_train_start(self, trainer: Trainer) -> None:
        """Print model, data, schedule and the expected memory, disk and time."""
        trainer.log(logging.describe(trainer))

    def on_end(self, trainer: Trainer) -> None:
        """Print results next to baselines, samples, and the commands to type next."""
        evaluation = trainer.evaluation or trainer.evaluate()  # all processes take part
        trainer.ctx.unshard()
        if trainer.ctx.is_main:
            trainer.log(logging.summary(trainer, evaluation, baselines_of(trainer)))
