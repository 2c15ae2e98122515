"""One training step, one loop: learning rate, grad_accum_steps, clip, step, log, evaluate, sample, save.

    python: Trainer.start(config, "runs/mine").train()
    shell:  python scripts/train.py --config configs/story.toml --run mine

The objective that it is handed says what a batch is, maps it to (loss summed, tokens counted), and measures itself:
gpt/objectives/objective.py.
"""

import contextlib
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from tqdm import tqdm

from gpt.checkpoint import RunFolder
from gpt.config import TrainConfig, check_resumable, differences
from gpt.data import ExampleSampler
from gpt.evaluation.baselines import Baselines, compute_baselines
from gpt.exchange.models import create_objective, resolve_config
from gpt.loss import Evaluation
from gpt.objectives import Objective
from gpt.objectives.objective import example_rng
from gpt.optim import create_optimizer, learning_rate, restore, scale_and_clip
from gpt.planning import plan
from gpt.run import logging
from gpt.state import Checkpoint
from gpt.system.device import (
    autocast,
    check_device,
    choose_device,
    choose_dtype,
    compile_module,
    environment,
    random_state,
    set_random_state,
    synchronize,
    to_device,
)
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.system.files import append_text
from gpt.system.memory import oom_hint
from gpt.system.paths import find_path
from gpt.system.signals import stop_signals
from gpt.token_files import PreparedData, load_data
from gpt.weights import frozen_names, load_weights, named_weights

PLOT_SECONDS = 20  # loss.png is drawn at an evaluation if the last drawing is older
COUNTERS = ("step", "tokens_seen", "report_due", "loss_sum", "loss_tokens", "grad_norm", "best_loss", "elapsed_s")
Say = Callable[[str], None]  # what is told a line of progress


class Trainer:
    """Trains one objective on one prepared corpus and writes one run folder.

    `Trainer.start` and `Trainer.resume` make one from a config or a run folder; the constructor takes the pieces.
    `say` is told each line of progress. Of several processes each has a Trainer; that of rank 0 writes and speaks.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        data: PreparedData,
        run: RunFolder,
        say: Say = print,
        ctx: DistContext = SINGLE_PROCESS,
    ):
        self.config, self.data, self.run, self.ctx = config, data, run, ctx
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        self.say = say if ctx.is_main else lambda line: None
        self.objective = ctx.wrap_fsdp(objective.to(self.device).train(), config.parallel)
        # self.objective keeps the plain names, and is what is saved
        compiled = compile_module(self.objective, self.device, self.say) if config.compile else self.objective
        self.compiled = ctx.wrap_ddp(compiled, self.device)
        self.optimizer = create_optimizer(self.objective, config.optim)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.examples = objective.examples(config, data, data.train)
        self.sampler = ExampleSampler(len(self.examples), config.batch_size * config.grad_accum_steps, seed=config.seed)
        if self.device.type == "mps":
            check_device(self.objective.model, torch.arange(config.model.context_length)[None] % 2)

        # COUNTERS, which a checkpoint carries, besides weights, optimizer and random state
        self.step = 0
        self.tokens_seen = 0
        self.report_due = True  # the report of the current step has not been made yet; a run begins with one
        self.loss_sum, self.loss_tokens = 0.0, 0  # training loss since the last row
        self.grad_norm: float | None = None  # of the last step, before clipping
        self.best_loss: float | None = None
        self.elapsed_s = 0.0  # all sittings together

        self.evaluation: Evaluation | None = None  # the last one of this sitting
        self.timed_tokens, self.timed_seconds = 0, 0.0  # of training steps alone, since the last row
        self.signal = 0  # the one that this process has got
        self.stopped_by: int | None = None  # the signal that ended the loop, whichever process got it
        self.saved_at: int | None = None  # the step of the last checkpoint of this sitting
        self.drawn_at = -math.inf
        self.bar: tqdm | None = None

    @cached_property
    def baselines(self) -> Baselines:
        """The losses that the validation loss is compared with."""
        return compute_baselines(self.objective, self.config, self.data)

    # --- beginning ----------------------------------------------------------------------------------------------------

    @classmethod
    def start(
        cls, config: TrainConfig, run: str | Path, say: Say = print, ctx: DistContext = SINGLE_PROCESS
    ) -> "Trainer":
        """A Trainer at step 0, its run folder made. ValueError where the config does not fit the data, or where the
        run has a checkpoint already."""
        ctx.init_process_group(choose_device(config.device))
        folder = RunFolder(run)
        with folder.lock_or_fail(ctx):
            if folder.steps():
                raise ValueError(
                    f"the run {folder.path} has a checkpoint, {folder.steps()[-1]}: "
                    f"--resume goes on with it, another --run starts anew"
                )
            return cls._start(config, folder, say, ctx)

    @classmethod
    def _start(cls, config: TrainConfig, folder: RunFolder, say: Say, ctx: DistContext) -> "Trainer":
        trainer = cls._create(config, folder, say, ctx)
        if ctx.is_main:
            folder.create(trainer.config, trainer.data.tokenizer)
            logging.begin(folder.metrics, trainer.objective.metrics)
            folder.samples.touch()
        return trainer

    @classmethod
    def resume(
        cls, run: str | Path, config: TrainConfig | None = None, say: Say = print, ctx: DistContext = SINGLE_PROCESS
    ) -> "Trainer":
        """A Trainer that goes on from the newest whole checkpoint of a run, as if it had never stopped.

        `config` may differ from the run's own in how long it trains, what it reports and where it computes: ValueError
        names a field that must stay. A run without a checkpoint starts anew.
        """
        folder = RunFolder(run)
        config = config or folder.config()
        ctx.init_process_group(choose_device(config.device))
        say = say if ctx.is_main else lambda line: None
        with folder.lock_or_fail(ctx):
            checkpoint, complaints = folder.load_newest_valid()
            for complaint in complaints:
                say(f"passed over: {complaint}")
            if checkpoint is None:
                if complaints:
                    raise ValueError(f"no checkpoint of {folder.path} is whole: {complaints[0]}")
                say(f"{folder.path} has no checkpoint yet: starting at step 0")
                return cls._start(config, folder, say, ctx)
            if not folder.config_is_whole:
                file, step = folder.path / "config.toml", checkpoint.path.name
                say(f"{file} was edited, damaged or deleted: going on with the settings of {step}")
            before, config = checkpoint.config, check_resumable(checkpoint.config, config)
            for name, (old, new) in differences(before.flat(), config.flat()).items():
                say(f"{name} is {new!r} from here on, before {old!r}")
            if checkpoint.state["step"] > config.max_steps:
                raise ValueError(
                    f"the run {folder.path} is at step {checkpoint.state['step']} already: max_steps "
                    f"{config.max_steps} lies behind it"
                )
            trainer = cls._create(config, folder, say, ctx, checkpoint)
            trainer._restore(checkpoint)
            if not ctx.is_main:
                return trainer
            folder.point(checkpoint)
            try:
                folder.load("best", training=False)
            except ValueError as error:  # what the run goes on from does not need it
                say(f"the best checkpoint is lost: {error}")
            folder.write_tokenizer(trainer.data.tokenizer)
            folder.write_config(trainer.config)  # the next --resume goes on as this one
            return trainer

    @classmethod
    def _create(
        cls,
        config: TrainConfig,
        folder: RunFolder,
        say: Say,
        ctx: DistContext,
        checkpoint: Checkpoint | None = None,
    ) -> "Trainer":
        data = load_data(find_path(config.data.path), verify=True)
        if checkpoint and checkpoint.state["data"] != data.checksums:
            raise ValueError(
                f"the data in {data.folder} is not what the run {folder.path} was trained on: "
                f"prepare it again as it was, or start a new run"
            )
        config, data = resolve_config(config, data, fresh=checkpoint is None)
        saved_as = checkpoint.path.name if checkpoint else "none"
        sums = {f"{split} tokens of SHA-256": digest for split, digest in data.checksums.items()}
        ctx.assert_same_on_all_ranks({**config.flat(), **sums, "checkpoint": saved_as, "PyTorch": torch.__version__})
        plan.plan_or_raise(config, data, folder.path, ctx)
        torch.manual_seed(config.seed)  # before the model: the seed fixes its initial weights, then dropout
        with oom_hint(1, 1):  # while the model is built, its size alone matters
            objective = create_objective(config, fresh=checkpoint is None)
            if checkpoint:
                load_weights(objective, checkpoint.weights)
            if not ctx.is_main:  # each has the same weights, and drops others
                torch.manual_seed(example_rng((config.seed,), ctx.rank).integers(2**63))
            return cls(config, objective, data, folder, say, ctx)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to max_steps, or until SIGINT or SIGTERM: then the step at hand is finished, a checkpoint saved, and
        `stopped_by` holds the signal. A second signal ends the program at once.

        Raises FloatingPointError where the loss is no longer finite, ValueError where memory does not suffice.
        """
        config = self.config
        lock = self.run.lock.held() if self.ctx.is_main else contextlib.nullcontext()
        if self.step >= config.max_steps and not self.report_due:  # finished before: nothing is touched
            with lock:
                if not self.run.plot_is_new:  # but for a picture that a kill has prevented
                    self.draw()
                self.evaluation = self.evaluate()
                self.ctx.unshard()
            return
        sitting, before = time.perf_counter(), self.elapsed_s
        silent = self.say is not print or not sys.stderr.isatty()
        self.bar = tqdm(total=config.max_steps, initial=self.step, unit="step", disable=silent, dynamic_ncols=True)
        advice = oom_hint(config.batch_size, config.grad_accum_steps)
        with lock, stop_signals(self._stop), self.bar, advice:
            while not self._is_stopped():
                self.elapsed_s = before + time.perf_counter() - sitting
                if self.report_due:
                    self._report()
                if self.step >= config.max_steps or self._is_stopped():
                    break
                self._train_step()
            if self.stopped_by and self.saved_at != self.step:
                self._save(is_best=False)
            self.draw()
            self.ctx.unshard()  # what is asked of the model now, rank 0 does alone

    def _is_stopped(self) -> bool:
        """Whether any of the processes has got a signal: all stop at the same step."""
        self.stopped_by = self.ctx.all_reduce_max(self.signal) or None
        return self.stopped_by is not None

    def _train_step(self) -> None:
        """One optimizer step on batch_size x grad_accum_steps windows, shared out over the processes."""
        config, start = self.config, time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config.optim, config.decay_steps)

        loss_sum, counted = 0.0, 0
        examples = self.sampler.step(self.step)
        passes = self.ctx.micro_batches(examples, config.batch_size)
        for number, portion in enumerate(passes, 1):  # gradients of sums add up over passes, and over processes ...
            batch_loss, batch_tokens = self._pass(portion, last=number == len(passes))
            loss_sum += batch_loss
            counted += batch_tokens
        loss_sum, counted = self.ctx.all_reduce_sum([float(loss_sum), float(counted)]).tolist()
        counted = int(counted)
        # ... which leave the sum's mean over processes; here it becomes the mean over tokens
        norm = scale_and_clip(self.parameters, counted / self.ctx.world_size, config.optim.grad_clip)
        if not math.isfinite(loss_sum) or not math.isfinite(norm):
            figures = f"at step {self.step + 1} (loss {loss_sum / counted}, gradient norm {norm})"
            what = f"the loss or its gradient is not finite {figures}"
            raise logging.diverged(self, what, self._batch(examples), examples)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        synchronize(self.device)

        self.step += 1
        self.report_due = True
        self.grad_norm = norm
        self.tokens_seen += counted
        self.loss_sum, self.loss_tokens = self.loss_sum + loss_sum, self.loss_tokens + counted
        self.timed_tokens += counted
        self.timed_seconds += time.perf_counter() - start
        self.bar.update()
        if self.bar.n % 5 == 0:
            self.bar.set_postfix_str(logging.progress_postfix(self))

    def _pass(self, examples: list[int], last: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward over windows: (loss summed, tokens counted). After the last pass of a step the
        gradients of all processes are added up."""
        batch = {name: to_device(tensor, self.device) for name, tensor in self._batch(examples).items()}
        with self.ctx.grad_sync(self.compiled, last):
            with autocast(self.device, self.dtype):
                loss_sum, counted = self.compiled(**batch)
            loss_sum.backward()
        return loss_sum.detach(), counted

    def _batch(self, examples: list[int]) -> dict[str, torch.Tensor]:
        return self.objective.batch(self.examples, examples, key=(self.config.seed, self.step))

    # --- reporting ----------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        """What is due at the current step: a row, an evaluation, a sample, a checkpoint."""
        config = self.config
        self.report_due = False

        def due(every: int) -> bool:
            return self.step == config.max_steps or (every > 0 and self.step % every == 0)

        evaluation = self.evaluate() if due(config.eval_every) else None
        self.evaluation = evaluation or self.evaluation
        if evaluation and not math.isfinite(evaluation.loss):
            raise logging.diverged(self, f"the validation loss is {evaluation.loss} after step {self.step}")
        if evaluation or (due(config.log_every) and self.step):
            self._write_row(evaluation)
        if due(config.sample_every):
            self._write_sample()
        is_best = bool(evaluation and self.step and (self.best_loss is None or evaluation.loss < self.best_loss))
        if is_best:
            self.best_loss = evaluation.loss
        if is_best or (self.step and due(config.save_every)):
            self._save(is_best)
        if evaluation and time.perf_counter() - self.drawn_at > PLOT_SECONDS:
            self.draw()

    def evaluate(self) -> Evaluation:
        """The objective's loss on the validation split: all of it, or eval_batches. Touches no random state."""
        with self.ctx.unsharded(), autocast(self.device, self.dtype):
            return self.objective.evaluate(self.config, self.data, self.device, self.ctx)

    def _write_row(self, evaluation: Evaluation | None) -> None:
        row = logging.row(self, evaluation)
        if self.ctx.is_main:
            logging.append(self.run.metrics, row, self.objective.metrics)
        self.loss_sum, self.loss_tokens = 0.0, 0
        self.timed_tokens, self.timed_seconds = 0, 0.0
        if evaluation or self.bar.disable:  # on a terminal the bar shows the rest
            self.tell(logging.line(row, self.config.max_steps))

    def _write_sample(self) -> None:
        with self.ctx.unsharded(), autocast(self.device, self.dtype):
            if self.ctx.is_main:
                text = self.objective.sample(self.config, self.data, self.config.seed + self.step)
                append_text(self.run.samples, f"--- step {self.step} ---\n{text}\n\n")

    def draw(self) -> None:
        """Draw loss.png from metrics.csv."""
        if self.ctx.is_main:
            logging.draw(self)
        self.drawn_at = time.perf_counter()

    def tell(self, line: str) -> None:
        """Say a line without breaking the progress bar."""
        if self.bar is not None and not self.bar.disable:
            self.bar.write(line)
            return
        try:
            self.say(line)
        except OSError:  # the reader has left, as tee does at Ctrl-C, or its disk is full: the run goes on
            self.say = lambda line: None

    # --- saving and restoring -----------------------------------------------------------------------------------------

    def _save(self, is_best: bool) -> None:
        self.saved_at = self.step
        weights = named_weights(self.objective, self.ctx)
        training_state = {
            "optimizer": self.ctx.full_state_dict(self.optimizer.state_dict()),
            "random": self.ctx.all_gather(random_state(self.device)),
        }
        if not self.ctx.is_main:
            return
        state = {
            **{name: getattr(self, name) for name in COUNTERS},
            "data": self.data.checksums,
            "machine": self._machine,
            "config": dataclasses.asdict(self.config),
        }
        try:
            self.run.save(
                weights, frozen_names(self.objective), training_state, state, is_best, self.config.keep_checkpoints
            )
        except FloatingPointError as error:
            raise logging.diverged(self, str(error)) from None

    @property
    def _machine(self) -> dict[str, str | int]:
        return {**environment(self.device), "processes": self.ctx.world_size}

    def _restore(self, checkpoint: Checkpoint) -> None:
        """All but the weights as they were at a checkpoint."""
        state = checkpoint.state
        try:
            restore(self.optimizer, checkpoint.training_state["optimizer"], state["step"])
            if self.ctx.world_size > 1 and state["step"]:  # DDP packs gradients in the order of the first pass
                self._pass(self.ctx.shard(self.sampler.step(0))[: self.config.batch_size], last=True)
                self.optimizer.zero_grad(set_to_none=True)
            random = checkpoint.training_state["random"]
            random = random if isinstance(random, list) else [random]  # as one process wrote it before there were many
            if self.ctx.rank < max(1, len(random)):
                set_random_state(random[self.ctx.rank], self.device)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # it is forged
            raise ValueError(f"{checkpoint.path / 'training_state.pt'} does not fit the run: {error!r}") from None
        for name in COUNTERS:
            setattr(self, name, state[name])
        for record in self.run.truncate_logs(checkpoint) if self.ctx.is_main else ():
            self.tell(f"{record} was damaged: it is again what it was at step {self.step}")
        for name, (before, now) in differences(state["machine"], self._machine).items():
            self.tell(f"{name} {now} in place of {before}: the last digits of what follows may differ")

    def _stop(self, number: int) -> None:
        self.signal = number
        if signal.Signals(number).name == "SIGHUP":  # there is no terminal any more
            self.bar.disable, self.say = True, lambda line: None
        name = signal.Signals(number).name
        self.tell(f"{name}: finishing the work at hand, then saving; a second one ends at once")
