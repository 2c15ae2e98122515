"""All that is about several processes: who they are, what is whose work, what they tell one another, how they end.

    torchrun --nproc-per-node 4 scripts/train.py --config configs/tales.toml

    with processes() as group:          # one process without torchrun: a group of one, for which all of this is nothing
        Trainer.start(config, "mine", processes=group).train()

Each process holds the model, or its share of it, and trains on its share of a step's windows; gradients are added up
by PyTorch's DistributedDataParallel (Li et al. 2020, arXiv:2006.15704) or FSDP2 (Zhao et al. 2023, arXiv:2304.11277).
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# FSDP2 and sharded tensors, half a second of imports, are imported where there are several processes.

T = TypeVar("T")

HEARTBEAT_INTERVAL = 0.5  # seconds between two signs of life
HEARTBEAT_TIMEOUT = 15  # seconds without one, after which a process counts as gone
GRACE_PERIOD = 3  # seconds that a process has to end by itself after another has failed


class DistContext:
    """The processes that train one model together, as one of them sees them; by itself, a group of one.

    What several of them do together (`join`, `wait`, `total`, `agree`, ...) each has to call, in the same order.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, store: dist.Store | None = None):
        self.rank, self.world_size = rank, world_size
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size)) if world_size > 1 else 1
        self._store = store
        self._sharded: list[nn.Module] = []  # what FSDP2 puts together, part by part; the whole comes last
        self._watch = None if store is None else _Watch(store, rank, world_size)

    @property
    def is_main(self) -> bool:
        """Whether this one is rank 0, which alone writes and speaks."""
        return self.rank == 0

    def init_process_group(self, device: torch.device) -> None:
        """Begin to talk: through gloo about what lies on CPUs, through NCCL about what lies on GPUs, one GPU each.

        ValueError for a device that several processes cannot share.
        """
        if self.world_size == 1 or dist.is_initialized():
            return
        if device.type == "mps" or device.index is not None:
            raise ValueError(f"device {device} trains in one process: {self.world_size} take device cpu or cuda")
        if device.type == "cuda":
            local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
            if local_rank >= torch.cuda.device_count():
                raise ValueError(
                    f"{self.local_world_size} processes on this machine, and {torch.cuda.device_count()} GPUs: "
                    f"--nproc-per-node is at most the number of GPUs"
                )
            torch.cuda.set_device(local_rank)  # "cuda" means this one from here on
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.world_size)

    # --- whose work is what -------------------------------------------------------------------------------------------

    def shard(self, work: Sequence[T]) -> Sequence[T]:
        """This process's share of what there is to do: every world_size-th piece."""
        return work[self.rank :: self.world_size]

    def n_micro_batches(self, n_windows: int, batch_size: int) -> int:
        """How many passes forward and backward each process makes of a step's windows: as many as the largest share
        needs. ValueError where another's share is too small for that."""
        least, most = n_windows // self.world_size, -(-n_windows // self.world_size)
        n_micro_batches = -(-most // batch_size)
        if least < n_micro_batches:
            raise ValueError(
                f"a step has {n_windows} windows (batch_size x grad_accum_steps), which {self.world_size} processes cannot "
                f"share: take a multiple of {self.world_size}"
            )
        return n_micro_batches

    def micro_batches(self, windows: Sequence[T], batch_size: int) -> list[Sequence[T]]:
        """This process's share of a step's windows, in passes of at most batch_size."""
        n_micro_batches, own = self.n_micro_batches(len(windows), batch_size), self.shard(windows)
        return [
            own[i * len(own) // n_micro_batches : (i + 1) * len(own) // n_micro_batches] for i in range(n_micro_batches)
        ]

    # --- what they tell one another -----------------------------------------------------------------------------------

    def barrier(self) -> None:
        """Go on when all have come here."""
        if self.world_size > 1:
            self.all_reduce_sum(0)

    def all_reduce_sum(self, numbers: Any) -> np.ndarray:
        """Numbers of any shape, added up over all processes, in float64."""
        tensor = torch.as_tensor(numbers, dtype=torch.float64).clone()
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor.numpy()

    def all_reduce_max(self, number: int) -> int:
        """The largest of all processes' numbers."""
        tensor = torch.tensor(number)
        if self.world_size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def broadcast(self, text: str) -> str:
        """The text that rank 0 has. Before `join`, too."""
        if self._store is None:
            return text
        if self.is_main:
            self._store.set("said", text)
        return self._store.get("said").decode()

    def all_gather(self, thing: T) -> list[T]:
        """What each process has, by rank."""
        things = [thing] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(things, thing)
        return things

    def assert_same_on_all_ranks(self, facts: dict[str, Any]) -> None:
        """ValueError, in all processes, unless each has the facts that rank 0 has."""
        expected, *others = self.all_gather(facts)
        for rank, found in enumerate(others, 1):
            for name in [name for name in expected | found if expected.get(name) != found.get(name)][:1]:
                raise ValueError(
                    f"rank {rank} has {name} {found.get(name)!r}, and rank 0 {expected.get(name)!r}: "
                    f"all processes need the same config and the same data"
                )

    def all_reduce_seconds(self, n: int, device: torch.device) -> float:
        """The time in which n float32 numbers of each process are added up, at the speed of the first few million."""
        if self.world_size == 1:
            return 0.0
        numbers, times = torch.zeros(min(n, 2**22), device=device), []
        for _ in range(3):
            start = time.perf_counter()
            dist.all_reduce(numbers)
            float(numbers[0])  # which waits for it
            times.append(time.perf_counter() - start)
        return min(times) * n / len(numbers)

    # --- the model and its gradients ----------------------------------------------------------------------------------

    def wrap_fsdp(self, objective: nn.Module, kind: str) -> nn.Module:
        """An objective as each process is to hold it: whole for "ddp"; for "fsdp" a share of every block's tensors, and
        of those around the blocks, which are put together for the time in which they compute."""
        self._sharded = []
        if self.world_size > 1 and kind == "fsdp":
            from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

            self._sharded = [fully_shard(part) for part in (*getattr(objective.model, "trf_blocks", ()), objective)]
            for method in ("evaluate", "sample"):  # they compute as forward does
                register_fsdp_forward_method(objective, method)
        return objective

    def wrap_ddp(self, module: nn.Module, device: torch.device) -> nn.Module:
        """A module whose backward pass adds up gradients over all processes, where they have not been sharded."""
        if self.world_size == 1 or self._sharded:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,  # the sums lie where the gradients do
        )

    @contextlib.contextmanager
    def grad_sync(self, module: nn.Module, last: bool) -> Iterator[None]:
        """A context for a pass forward and backward: after the last one of a step, gradients are added up over all
        processes, and divided by their number."""
        for part in self._sharded:
            part.set_requires_gradient_sync(last, recurse=False)
        holds_back = isinstance(module, DistributedDataParallel) and not last
        with module.no_sync() if holds_back else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def unsharded(self) -> Iterator[None]:
        """A context in which each process has all of the weights, and computes with them without the others."""
        self.unshard()
        try:
            yield
        finally:
            for part in self._sharded:
                part.set_reshard_after_forward(part is not self._sharded[-1], recurse=False)  # PyTorch's own default
                part.reshard()

    def unshard(self) -> None:
        """Have each process hold all of the weights from here on."""
        for part in self._sharded:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()

    def full_state_dict(self, tree: Any) -> Any:
        """Dictionaries and lists of tensors with each tensor whole, on rank 0; elsewhere nothing is kept of them."""
        if isinstance(tree, dict):
            return {name: self.full_state_dict(value) for name, value in tree.items()}
        if isinstance(tree, list):
            return [self.full_state_dict(value) for value in tree]
        found = full_tensor(tree)
        if found is not tree:
            found = found.cpu()  # a device may not have room for all of it
        return found if self.is_main else None

    # --- the end ------------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """End this process's part: all is done."""
        if self._watch is not None:
            self._watch.end()
        if dist.is_initialized():
            dist.destroy_process_group()

    def fail(self, error: BaseException) -> NoReturn:
        """End this process's part with an error, and with it the others'. Only the first one's is told."""
        if self._watch is None:
            raise error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, to all that a gone one leaves behind
        # an error of talking comes of one that has ended: it, or who misses it, says so; a mistake of all rank 0 tells
        talking = isinstance(error, dist.DistError) or "gloo" in str(error)
        told = self._watch.wait(
            HEARTBEAT_TIMEOUT + GRACE_PERIOD
            if talking
            else GRACE_PERIOD * (self.rank > 0 or isinstance(error, SystemExit))
        )
        if not told:
            name = f"rank {self.rank}: " if self.rank else ""
            told = not self._watch.report(f"{name}{error}")
        self._watch.end()
        if told:
            os._exit(1)  # at once: the others are no longer there to end it in order
        if self.rank and isinstance(error, (ValueError, OSError)):
            raise ValueError(f"rank {self.rank}: {error}") from error
        raise error


SINGLE_PROCESS = DistContext()


@contextlib.contextmanager
def ctx() -> Iterator[DistContext]:
    """The processes that torchrun has started, this one among them; without torchrun a group of one.

    When one of them fails, or is gone, the others end.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return
    from torch.distributed.rendezvous import rendezvous

    store, rank, world_size = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # of torchrun --max-restarts
    group = DistContext(rank, world_size, dist.PrefixStore(f"gpt/{attempt}", store))
    try:
        yield group
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:  # --help
            group.shutdown()
            raise
        group.fail(error)
    group.shutdown()


class _Watch:
    """A thread that gives signs of life, and looks for those of the process one rank below.

    The first that misses one, or fails by itself, says so to all, and all end: a collective operation would wait for
    the missing one, on a GPU for ten minutes.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int):
        self.store, self.rank, self.watched = store, rank, (rank - 1) % world_size
        self.failed, self.ended = threading.Event(), threading.Event()
        self.own = self.store.clone()  # a connection for this thread
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def report(self, sentence: str) -> bool:
        """Tell all processes that one has failed, and why; False where another was told of first."""
        told = self.store.compare_set("failure", "", sentence).decode() == sentence
        self.failed.set()
        return told

    def wait(self, seconds: float) -> bool:
        """Whether a failure is told within so many seconds."""
        return self.failed.wait(seconds)

    def end(self) -> None:
        """Give no more signs of life, and be missed by nobody."""
        self.ended.set()
        self.thread.join(GRACE_PERIOD)
        with contextlib.suppress(RuntimeError):
            self.store.set(f"beat/{self.rank}", "ended")

    def _run(self) -> None:
        try:
            self._look()
        except RuntimeError:  # a store that answers no more: its machine is gone
            self._tell("the process that all others meet at is gone")
        if self.failed.is_set() and not self.ended.wait(GRACE_PERIOD):
            os._exit(1)

    def _look(self) -> None:
        host, sign, heard, n = socket.gethostname(), "", time.monotonic(), 0
        while not self.ended.wait(HEARTBEAT_INTERVAL):
            n += 1
            self.own.set(f"beat/{self.rank}", f"{host} {os.getpid()} {n}")
            if self.own.check(["failure"]):
                self.failed.set()
                return
            if sign == "ended" or not self.own.check([f"beat/{self.watched}"]):
                continue  # before its first sign of life the rendezvous waits for it
            before, sign = sign, self.own.get(f"beat/{self.watched}").decode()
            if sign != before:
                heard = time.monotonic()
            if sign == "ended":
                continue
            where, number, _ = sign.split(" ")
            killed = where == host and not psutil.pid_exists(int(number))
            if killed or time.monotonic() - heard > HEARTBEAT_TIMEOUT:
                how = "is gone" if killed else f"has given no sign of life for {HEARTBEAT_TIMEOUT} seconds"
                self._tell(f"rank {self.watched} (process {number} on {where}) {how}")
                return

    def _tell(self, what: str) -> None:
        with contextlib.suppress(RuntimeError):
            if self.own.compare_set("failure", "", what).decode() != what:
                self.failed.set()
                return
        self.failed.set()
        print(f"{what}: all end. With --resume the run goes on from its last checkpoint", file=sys.stderr, flush=True)


# --- tensors ----------------------------------------------------------------------------------------------------------


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor, put together where each process holds a share of it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's share of a whole tensor, cut as `other` is, of the same shape; all of it where that is whole."""
    if not hasattr(other, "full_tensor") or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
