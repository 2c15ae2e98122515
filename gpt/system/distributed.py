"""Training in several processes: the process group, each one's share of the work, DDP and FSDP2, collectives.

    torchrun --nproc-per-node 4 -- scripts/train.py --config configs/tales.toml

    with distributed_context() as ctx:  # without torchrun: SINGLE_PROCESS, whose methods do nothing
        Trainer.start(config, "mine", ctx=ctx).train()

Each process holds the model, or a shard of it, and trains on its share of a step's examples. PyTorch's
DistributedDataParallel (Li et al. 2020, arXiv:2006.15704) or FSDP2 (Zhao et al. 2023, arXiv:2304.11277) sums gradients.
`parallel` chooses: "ddp" (each process holds the model), "fsdp" (a shard), "hsdp" (a shard within each node, which the
nodes replicate).
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt.system.device import autocast

# FSDP2 and DTensor take half a second to import: only where they are used.

T = TypeVar("T")

GRACE_PERIOD = 3  # seconds in which torchrun ends a process after another has failed


class DistContext:
    """One process's view of the processes that train a model together. By default there is one, and nothing to do.

    All processes have to call the collective methods (barrier, all_*, broadcast, ...) in the same order.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, store: dist.Store | None = None):
        self.rank, self.world_size = rank, world_size
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size)) if world_size > 1 else 1
        self.store = store
        self._n_broadcasts = 0
        self._sharded: list[nn.Module] = []  # the modules that FSDP2 shards: the blocks, then the whole objective

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a shard of the parameters."""
        return bool(self._sharded)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one process that writes files and prints."""
        return self.rank == 0

    def init_process_group(self, device: torch.device) -> None:
        """Connect the processes: gloo for tensors on CPUs, NCCL for tensors on GPUs, one GPU per process.

        ValueError for a device that several processes cannot share.
        """
        if self.world_size == 1 or dist.is_initialized():
            return
        if device.type == "mps" or device.index is not None:
            raise ValueError(f"device {device} trains in one process: {self.world_size} need device cpu or cuda")
        if device.type == "cuda":
            local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
            if local_rank >= torch.cuda.device_count():
                raise ValueError(
                    f"this machine has {torch.cuda.device_count()} GPUs for {self.local_world_size} processes: "
                    f"--nproc-per-node is at most the number of GPUs"
                )
            torch.cuda.set_device(local_rank)  # from here on "cuda" means this GPU
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.world_size)

    def shutdown(self) -> None:
        """Disconnect."""
        if dist.is_initialized():
            dist.destroy_process_group()

    # --- the share of each process ------------------------------------------------------------------------------------

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share: every world_size-th item."""
        return items[self.rank :: self.world_size]

    def shard_evenly(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """This process's share, with whether each item counts: the last one is repeated until all have equally many.

        Sharded weights need all processes in each forward pass, those that have no batch left as well.
        """
        n_rounds = -(-len(items) // self.world_size)
        numbers = range(self.rank, n_rounds * self.world_size, self.world_size)
        return [(items[min(number, len(items) - 1)], number < len(items)) for number in numbers]

    def n_micro_batches(self, n_examples: int, batch_size: int) -> int:
        """The number of micro-batches per step, the same in all processes.

        ValueError if some process would have fewer examples than micro-batches.
        """
        smallest, largest = n_examples // self.world_size, -(-n_examples // self.world_size)
        n_micro_batches = -(-largest // batch_size)
        if smallest < n_micro_batches:
            raise ValueError(
                f"{n_examples} examples per step (batch_size x grad_accum_steps) cannot be divided among "
                f"{self.world_size} processes: use a multiple of {self.world_size}"
            )
        return n_micro_batches

    def micro_batches(self, examples: Sequence[T], batch_size: int) -> list[Sequence[T]]:
        """This process's share of a step's examples, in micro-batches of at most batch_size and nearly equal size."""
        n, own = self.n_micro_batches(len(examples), batch_size), self.shard(examples)
        return [own[i * len(own) // n : (i + 1) * len(own) // n] for i in range(n)]

    # --- collectives --------------------------------------------------------------------------------------------------

    def barrier(self) -> None:
        """Wait until all processes have reached this point."""
        if self.world_size > 1:
            self.all_reduce_sum(0)

    def all_reduce_sum(self, numbers: Any) -> np.ndarray:
        """The sum over processes of an array of numbers, float64."""
        return self.all_reduce(torch.as_tensor(numbers, dtype=torch.float64).clone()).numpy()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over processes of a tensor, in its place. On a GPU the host does not wait for it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, text: str) -> str:
        """Rank 0's text. Works before `init_process_group`."""
        if self.store is None:
            return text
        key, self._n_broadcasts = f"broadcast/{self._n_broadcasts}", self._n_broadcasts + 1
        if self.is_main:
            self.store.set(key, text)
        return self.store.get(key).decode()

    def all_gather(self, item: T) -> list[T]:
        """The item of each process, by rank."""
        items = [item] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(items, item)
        return items

    def assert_same_on_all_ranks(self, values: dict[str, Any]) -> None:
        """ValueError in all processes unless each has the same values as rank 0."""
        expected, *others = self.all_gather(values)
        for rank, found in enumerate(others, 1):
            for name in expected | found:
                if expected.get(name) != found.get(name):
                    raise ValueError(
                        f"{name} is {found.get(name)!r} on rank {rank} and {expected.get(name)!r} on rank 0: "
                        f"all processes need the same config and the same data"
                    )

    def all_reduce_seconds(self, n: int, device: torch.device) -> float:
        """Measure the seconds that an all-reduce of n float32 numbers takes, from one of at most 4 million."""
        if self.world_size == 1:
            return 0.0
        numbers, times = torch.zeros(min(n, 2**22), device=device), []
        for _ in range(3):
            start = time.perf_counter()
            dist.all_reduce(numbers)
            float(numbers[0])  # wait for it
            times.append(time.perf_counter() - start)
        return min(times) * n / len(numbers)

    def map_rows(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Return function(rows), (n, ...), for a function that maps each row by itself, and zeros to zeros.

        Each process computes a share of the rows, and all get the result.
        """
        if self.world_size == 1:
            return function(rows)
        share = -(-len(rows) // self.world_size)
        padded = torch.cat([rows, rows.new_zeros(self.world_size * share - len(rows), *rows.shape[1:])])
        own = function(padded[self.rank * share :][:share]).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(parts, own)
        return torch.cat(parts)[: len(rows)]

    # --- the model and its gradients ----------------------------------------------------------------------------------

    def wrap_fsdp(self, objective: nn.Module, parallel: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Shard an objective's parameters over all processes ("fsdp"), or over those of a node ("hsdp"): each block by
        itself, which is gathered while it computes, then the rest. "ddp" shards nothing.

        A shard is in float32, as are the sums of gradients. Weights are gathered, and everything is computed, in
        `dtype`. ValueError for nodes with different numbers of processes.
        """
        self._sharded = []
        if self.world_size == 1 or parallel == "ddp":
            return objective
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        mesh, low = self._mesh(parallel, device.type), None if dtype == torch.float32 else dtype
        for part in (*getattr(objective.model, "trf_blocks", ()), objective):
            # a block's inputs include the float32 rotation; those of the whole are ids, or no tensors at all
            policy = MixedPrecisionPolicy(low, torch.float32, cast_forward_inputs=part is not objective)
            self._sharded.append(fully_shard(part, mesh=mesh, mp_policy=policy))
        for method in ("evaluate", "sample", "prepare"):  # they need gathered parameters, as forward does
            register_fsdp_forward_method(objective, method)
        return objective

    def _mesh(self, parallel: str, device_type: str) -> Any:
        """The processes as a line, or for "hsdp" as a table: a row for each node."""
        from torch.distributed.device_mesh import init_device_mesh

        n, local = self.world_size, self.local_world_size
        if parallel == "fsdp" or local == n:
            return init_device_mesh(device_type, (n,))
        if n % local:
            raise ValueError(
                f"parallel is 'hsdp', but {n} processes are no multiple of the {local} on this node: start as many on "
                f"each, or set it to 'fsdp'"
            )
        return init_device_mesh(device_type, (n // local, local), mesh_dim_names=("replicate", "shard"))

    def autocast(self, device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
        """A context in which matrix products run in `dtype`; FSDP2 needs none, as it gathers the weights in it."""
        return autocast(device, torch.float32 if self._sharded else dtype)

    def wrap_ddp(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module in DistributedDataParallel, unless there is one process or FSDP2 has sharded it."""
        if self.world_size == 1 or self._sharded:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,  # saves a copy of the gradients
        )

    @contextlib.contextmanager
    def grad_sync(self, module: nn.Module, is_last: bool) -> Iterator[None]:
        """A context for one forward and backward pass. DDP averages gradients over processes after the last micro-batch
        of a step only. FSDP2 averages after each, within a node, since no process has room for all gradients; it
        averages over nodes after the last."""
        for part in self._sharded:
            part.set_requires_all_reduce(is_last, recurse=False)
        skip = isinstance(module, DistributedDataParallel) and not is_last
        with module.no_sync() if skip else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def reshard_after(self) -> Iterator[None]:
        """A context for forward passes that all processes make together. Afterwards each holds no more than its
        shard."""
        try:
            yield
        finally:
            for part in self._sharded:
                part.reshard()

    @contextlib.contextmanager
    def unsharded(self) -> Iterator[None]:
        """A context in which each process holds all parameters, and can compute without the others."""
        self.unshard()
        try:
            yield
        finally:
            for part in self._sharded:
                part.set_reshard_after_forward(part is not self._sharded[-1], recurse=False)  # PyTorch's default
                part.reshard()

    def unshard(self) -> None:
        """Gather all parameters in each process, for good."""
        for part in self._sharded:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()


SINGLE_PROCESS = DistContext()


@contextlib.contextmanager
def distributed_context() -> Iterator[DistContext]:
    """The DistContext of this process among those that torchrun has started; without torchrun, SINGLE_PROCESS.

    A process that fails ends the others: torchrun does so when it exits, and Heartbeat when it freezes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return
    from torch.distributed.rendezvous import rendezvous

    from gpt.system.heartbeat import Heartbeat

    store, rank, world_size = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # of torchrun --max-restarts
    store = dist.PrefixStore(f"gpt/{attempt}", store)
    ctx = DistContext(rank, world_size, store)
    heartbeat = Heartbeat(store, rank, world_size)
    try:
        yield ctx
        ctx.shutdown()
    except Exception as error:
        _wait_for_torchrun(ctx, error)
        if ctx.is_main or not isinstance(error, (ValueError, OSError)):
            raise
        raise ValueError(f"rank {rank}: {error}") from error
    finally:
        heartbeat.stop()


def _wait_for_torchrun(ctx: DistContext, error: Exception) -> None:
    """Give torchrun time to end this process silently if the error started elsewhere: if a connection broke because
    another process is gone, or if all make the same mistake, which rank 0 reports."""
    connection_broke = isinstance(error, dist.DistError) or "gloo" in str(error)
    if connection_broke or not ctx.is_main:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun sends it
        if connection_broke and ctx.store.add("connection_broke", 1) == 1:
            message = "another process is gone: ending. --resume continues from the last checkpoint"
            print(message, file=sys.stderr, flush=True)
        time.sleep(GRACE_PERIOD)


# --- tensors ----------------------------------------------------------------------------------------------------------


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered if it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, other: Tensor, from_main: bool = False) -> Tensor:
    """This process's shard of a whole tensor, sharded as `other`; the tensor itself if `other` is not sharded.

    All processes have the tensor, or rank 0 alone has its numbers and sends them (`from_main`).
    """
    if not hasattr(other, "full_tensor") or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    source = 0 if from_main else None
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=source)


def copy_shard(tensor: Tensor, target: Tensor, from_main: bool = False) -> None:
    """Copy this process's shard of a whole tensor, as by `shard_like`, into a tensor that may be sharded."""
    shard = shard_like(tensor, target, from_main)
    if hasattr(target, "full_tensor"):
        target, shard = target.to_local(), shard.to_local()
    target.copy_(shard)
