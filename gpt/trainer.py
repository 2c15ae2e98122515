"""One training step, one loop. Callbacks do the rest: progress, logs, samples, plots.

    from gpt.run.training import start_run
    start_run(config, "runs/mine").train()

The objective maps a batch to (loss summed, tokens counted); gpt/objectives/objective.py has its interface.

Notebook: 07_training.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gpt.checkpoint import Checkpoint, RunFolder
from gpt.config import TrainConfig
from gpt.data import ExampleSampler
from gpt.loss import Evaluation
from gpt.optim import create_optimizer, learning_rate, restore, scale_and_clip
from gpt.system import device, kernels
from gpt.system.distributed import SINGLE_PROCESS, DistContext
from gpt.system.errors import oom_hint
from gpt.system.memory import frozen_objects
from gpt.system.sharded_files import ShardedWriter
from gpt.system.signals import stop_signals
from gpt.token_files import PreparedData

MIN_SCALE = 1e-6  # of float16 losses: below it the gradients are not infinite because of the scale
# What a checkpoint stores of the Trainer in addition to weights, optimizer and random state.
SAVED = ("step", "tokens_seen", "report_due", "sums", "grad_norm", "best_loss", "stale", "elapsed_s")


class Callback:
    """Hooks of the Trainer. Subclasses override what they need; gpt/run/callbacks.py has the project's own.

    With several processes the hooks run in each of them: check `trainer.ctx.is_main` before writing a file.
    """

    def on_train_start(self, trainer: "Trainer") -> None:
        """Called by `train`, before the first step."""

    def on_log(self, trainer: "Trainer", evaluation: Evaluation | None) -> None:
        """Called every log_every steps and after each evaluation of the validation split, with that evaluation."""

    def on_step_end(self, trainer: "Trainer") -> None:
        """Called after each step, and once before the first one. If a checkpoint is due, it is saved next."""

    def on_save(self, trainer: "Trainer", checkpoint: str) -> None:
        """Called after a checkpoint has been saved, with its name."""

    def on_end(self, trainer: "Trainer") -> None:
        """Called when training ends, finished or stopped by a signal."""


class Trainer:
    """Train one objective on one prepared corpus, in one run folder whose lock is held.

    `gpt.run.training` makes a Trainer from a config or from a run to resume. Each process has its own.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: torch.nn.Module,
        data: PreparedData,
        run: RunFolder,
        ctx: DistContext = SINGLE_PROCESS,
        callbacks: Iterable[Callback] = (),
        log: Callable[[str], None] = print,
    ):
        self.config, self.data, self.run, self.ctx = config, data, run, ctx
        self.callbacks, self.log = list(callbacks), log
        self.device = device.choose_device(config.device)
        device.allow_tf32(self.device)
        self.dtype = device.choose_dtype(config.dtype, self.device, objective.model.num_parameters())
        self.environment = {  # decides the last digits
            **device.environment(self.device), "precision": str(self.dtype), "processes": ctx.world_size
        }  # fmt: skip
        self.objective = objective.to(self.device).train()  # this one is saved
        objective.model.recompute = config.recompute
        self.forward = ctx.wrap_ddp(self.objective, self.device)  # this one is called
        self.optimizer = create_optimizer(self.objective, config.optim, ctx)
        # gradients of summed losses are large: the scale for float16 starts at 1
        self.scaler = torch.amp.GradScaler(self.device.type, 1.0, enabled=self.dtype == torch.float16)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.examples = objective.examples(config, data, data.train)
        ends, n = getattr(self.examples, "shard_ends", ()), config.batch_size * config.grad_accum_steps
        self.sampler = ExampleSampler(len(self.examples), n, seed=config.seed, shard_ends=ends)

        self.step = self.tokens_seen = 0
        self.report_due = True  # logging, evaluation and saving of the current step are still to be done
        self.sums: list[float] = []  # since the last row of metrics: loss, tokens, the objective's step_metrics, steps
        self.grad_norm: float | None = None  # of the last step, before clipping
        self.best_loss: float | None = None
        self.stale = 0  # evaluations since the best one
        self.elapsed_s = 0.0  # over all sessions
        self.evaluation: Evaluation | None = None  # the last one of this session
        self.timed_tokens, self.timed_seconds = 0, 0.0  # of training steps alone, since the last row of metrics
        self.pending: list[tuple[int, Callable[[], list[float]]]] = []  # steps whose metrics `_read_metrics` will read
        self.read_delay = int(self.device.type == "cuda")  # steps that a GPU has been given when those are read
        self.signal = 0  # received by this process
        self.stopped_by: int | None = None  # the signal that ended training, whichever process received it
        self.saved_at: int | None = None  # step of the last checkpoint of this session
        self.writer = ShardedWriter(ctx) if ctx.is_sharded else None  # writes checkpoints while training continues

    # --- the loop -----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train until finished, or until SIGINT or SIGTERM: then finish the step, save a checkpoint, set `stopped_by`.

        A second signal ends the program at once. FloatingPointError if the loss is no longer finite, ValueError if
        memory runs out.
        """
        lock = self.run.folder_lock.held() if self.ctx.is_main else contextlib.nullcontext()
        start, before = time.perf_counter(), self.elapsed_s
        hint = oom_hint(self.config.batch_size, self.config.grad_accum_steps)
        with lock, stop_signals(self._on_signal), hint, frozen_objects():
            self._call("on_train_start")
            while not self._is_stopped():
                self._finish_save(wait=False)
                if self.report_due:
                    self.elapsed_s = before + time.perf_counter() - start
                    self._report()
                if self.finished or self._is_stopped():
                    break
                self._train_step()
            if self.stopped_by and self.saved_at != self.step:
                self._save(is_best=False)
            self._finish_save()
            self._call("on_end")
            self.ctx.unshard()  # rank 0 may now use the model alone

    def _train_step(self) -> None:
        """Do one optimizer step on batch_size x grad_accum_steps examples, shared by the processes.

        Nothing but `_read_metrics` waits for the device.
        """
        config, start = self.config, time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config.optim, config.max_steps)
        loss_sum, n_tokens = 0.0, 0
        indices = self.sampler.step(self.step // self.objective.passes)
        micro_batches = self.ctx.micro_batches(indices, config.batch_size)
        for number, micro_batch in enumerate(micro_batches, 1):  # gradients of summed losses accumulate
            batch_loss, batch_tokens = self._forward_backward(micro_batch, last=number == len(micro_batches))
            loss_sum += batch_loss
            n_tokens += batch_tokens
        signal = self.signal  # it may change at any moment
        rest = [*self.objective.step_metrics(), 1.0, signal, signal > 0]
        sums = self.ctx.all_reduce(device.stack_scalars([loss_sum, n_tokens, *rest], self.device))
        self.scaler.unscale_(self.optimizer)
        # DDP and FSDP average gradients over the processes; divided by this they become those of the mean per token
        norm = scale_and_clip(self.parameters, sums[1] / self.ctx.world_size, config.optim.grad_clip)
        self.pending.append((self.step, device.read_later(torch.cat([sums, norm.reshape(1).to(sums)]))))
        self._read_metrics(delay=self.read_delay)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step, self.report_due = self.step + 1, True
        self.timed_seconds += time.perf_counter() - start

    def _read_metrics(self, delay: int = 0) -> None:
        """Wait for the metrics of the steps done, but for the last `delay`. FloatingPointError if one is not finite."""
        while len(self.pending) > delay:
            step, read = self.pending.pop(0)
            *sums, signal_sum, n_signals, norm = read()
            loss_sum, n_tokens = sums[:2]
            # with float16 an infinite gradient only lowers the scale; the optimizer skips the step
            is_skipped = not math.isfinite(norm) and self.scaler.is_enabled() and self.scaler.get_scale() > MIN_SCALE
            if not math.isfinite(loss_sum) or not (math.isfinite(norm) or is_skipped):
                reason = f"the loss or its gradient is not finite at step {step + 1}"
                raise self._diverged(f"{reason} (loss {loss_sum / n_tokens}, gradient norm {norm})", step)
            self.grad_norm, self.tokens_seen = None if is_skipped else norm, self.tokens_seen + int(n_tokens)
            self.sums = [a + b for a, b in zip(self.sums or [0.0] * len(sums), sums, strict=True)]
            self.timed_tokens += n_tokens
            if self.ctx.world_size > 1 and n_signals:  # all stop after the same step
                self.stopped_by = round(signal_sum / n_signals)

    def _forward_backward(self, indices: list[int], last: bool) -> tuple[Tensor, Tensor]:
        """Return (loss summed, tokens counted) of some examples and accumulate gradients.

        After the last micro-batch of a step the gradients are averaged over the processes.
        """
        batch = self._batch(indices, self.step)
        batch = {name: device.to_device(tensor, self.device) for name, tensor in batch.items()}
        with self.ctx.grad_sync(self.forward, last):
            with self.ctx.autocast(self.device, self.dtype):
                loss_sum, n_tokens = self.forward(**batch)
            self.scaler.scale(loss_sum).backward()
        return loss_sum.detach(), n_tokens

    def _batch(self, indices: list[int], step: int) -> dict[str, Tensor]:
        return self.objective.batch(self.examples, indices, key=(self.config.seed, step))

    # --- reports ------------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether max_steps are done, or `patience` evaluations in a row were no better than an earlier one."""
        return self.step >= self.config.max_steps or 0 < self.config.patience <= self.stale

    def is_due(self, every: int) -> bool:
        """Return whether something done every `every` steps (0: only at the end) is due at the current step."""
        return self.finished or (every > 0 and self.step % every == 0)

    def evaluate(self) -> Evaluation:
        """Evaluate the objective on the validation split: all of it, or eval_batches. Changes no random state."""
        with self.ctx.reshard_after(), self.ctx.autocast(self.device, self.dtype):
            return self.objective.evaluate(self.config, self.data, self.device, self.ctx)

    def _report(self) -> None:
        """Evaluate, log and save what is due at the current step."""
        self.report_due = False
        if any(
            self.is_due(every) for every in (self.config.log_every, self.config.eval_every, self.config.sample_every)
        ):
            start = time.perf_counter()
            self._read_metrics()
            self.timed_seconds += time.perf_counter() - start
        evaluation = self.evaluate() if self.is_due(self.config.eval_every) else None
        is_best = False
        if evaluation:
            self.evaluation = evaluation
            if not math.isfinite(evaluation.loss):
                raise self._diverged(f"the validation loss is {evaluation.loss} after step {self.step}")
            if is_best := self.step > 0 and self.objective.is_best(evaluation.loss, self.best_loss):
                self.best_loss = evaluation.loss
            self.stale = 0 if is_best else self.stale + (self.step > 0)
        if evaluation or (self.step and self.is_due(self.config.log_every)):
            self._call("on_log", evaluation)
            self.sums, self.timed_tokens, self.timed_seconds = [], 0, 0.0
        self._call("on_step_end")
        if is_best or (self.step and self.is_due(self.config.save_every)):
            self._save(is_best)

    def _call(self, hook: str, *arguments) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)

    # --- saving, restoring, stopping ----------------------------------------------------------------------------------

    def _save(self, is_best: bool) -> None:
        """Save a checkpoint: rank 0 writes it, or each process its shards in the background."""
        self._read_metrics()
        self._finish_save()
        self.saved_at = self.step
        weights = self.objective.named_weights(self.ctx)
        training_state = {
            "optimizer": self.optimizer.state_dict(),
            "random": self.ctx.all_gather(device.random_state(self.device)),
            "scaler": self.scaler.state_dict(),  # empty but for float16
        }
        state = {
            **{name: getattr(self, name) for name in SAVED},
            "data": self.data.checksums,
            "environment": self.environment,
            "kernels": dict(kernels.choices),
            "config": dataclasses.asdict(self.config),
        }
        arguments = weights, self.objective.frozen_names(), training_state, state, is_best, self.config.keep_checkpoints
        try:
            if self.writer or self.ctx.is_main:
                self.run.save(*arguments, self.writer)
        except FloatingPointError as error:
            raise self._diverged(str(error)) from None
        if not self.writer:
            self._call("on_save", f"step-{self.step:06d}")

    def _finish_save(self, wait: bool = True) -> None:
        """Seal the checkpoint that is being written in the background; without `wait` only if nobody has to wait."""
        if self.writer and (name := self.writer.finish(wait)):
            self._call("on_save", name)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint whose weights the objective has already: optimizer, random state, counters."""
        state, saved = checkpoint.state, checkpoint.training_state
        restore(self.optimizer, saved["optimizer"])
        if saved.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(saved["scaler"])
        if state["environment"] == self.environment:
            kernels.restore(state.get("kernels", {}))  # none in older checkpoints; before the first product
        if self.ctx.world_size > 1 and state["step"]:  # DDP orders its gradient buckets in a first pass
            self._forward_backward(self.ctx.shard(self.sampler.step(0))[: self.config.batch_size], last=True)
            self.optimizer.zero_grad(set_to_none=True)
        if self.ctx.rank < len(saved["random"]):
            device.set_random_state(saved["random"][self.ctx.rank], self.device)
        for name in SAVED:
            setattr(self, name, state.get(name, 0))  # older checkpoints lack `stale` and `sums`

    def _is_stopped(self) -> bool:
        """Return whether a process has received a signal. Of several processes, all know it after the next step."""
        if self.ctx.world_size == 1:
            self.stopped_by = self.signal or None
        return self.stopped_by is not None

    def _on_signal(self, number: int) -> None:
        self.signal = number
        self.log(f"{signal.Signals(number).name}: finishing the step, then saving; a second signal ends at once")

    def _diverged(self, reason: str, step: int | None = None) -> FloatingPointError:
        """Return the error to stop with. The batch of a step is saved for inspection."""
        with contextlib.suppress(OSError):
            self._finish_save()
        steps = self.run.steps()
        advice = f"the last good checkpoint is {steps[-1]}" if steps else "there is no checkpoint yet"
        if step is not None and self.ctx.is_main:
            indices = self.sampler.step(step // self.objective.passes)
            with contextlib.suppress(OSError):  # a full disk is not the problem here
                self.run.save_batch(self._batch(indices, step), step=step + 1, examples=indices)
                advice = f"its batch is in {self.run.not_finite}, {advice}"
        return FloatingPointError(
            f"{reason}; {advice}. A lower --optim.lr helps most often, with --resume or in a new run with a longer "
            f"--optim.warmup_steps"
        )
