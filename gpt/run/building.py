"""Build the objective of a run: made, compiled, sharded, then initialized or loaded.

No process ever holds the whole of a model that it shares with others.
"""

from collections.abc import Callable

import torch

from gpt.checkpoint import Checkpoint
from gpt.config import TrainConfig
from gpt.exchange.models import create_objective, initial_model
from gpt.objectives.objective import Objective, example_rng
from gpt.objectives.weights import load_weights, named_weights, scatter_weights
from gpt.system.deferred import DeferredInit
from gpt.system.device import choose_device, choose_dtype
from gpt.system.distributed import DistContext
from gpt.variants.compiled import compile_training


def build_objective(
    config: TrainConfig, ctx: DistContext, checkpoint: Checkpoint | None = None, log: Callable[[str], None] = print
) -> Objective:
    """Return the objective of a fresh run, or of a checkpoint, on its device; sharded as `parallel` says.

    The seed fixes the initial weights, which do not depend on the number of processes, then dropout, which does.
    """
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    if ctx.world_size == 1 or config.parallel == "ddp" or config.adapter.name != "none":
        objective = create_objective(config, fresh=checkpoint is None).to(device)
        if checkpoint:
            load_weights(objective, checkpoint.weights)
        _compile_and_shard(objective, config, ctx, log)
    else:
        objective = _build_shards(config, ctx, checkpoint, log)
    if not ctx.is_main:  # all ranks have the same weights but different dropout
        torch.manual_seed(example_rng((config.seed,), ctx.rank).integers(2**63))
    return objective


def _build_shards(
    config: TrainConfig, ctx: DistContext, checkpoint: Checkpoint | None, log: Callable[[str], None]
) -> Objective:
    """Build an objective of which each process holds its shard and, for a moment, one whole parameter. Rank 0 alone
    reads the model of init_from."""
    deferred = DeferredInit()
    objective = create_objective(config, checkpoint is None, deferred)
    parameters = list(objective.parameters())
    _compile_and_shard(objective, config, ctx, log)
    deferred.materialize(objective, parameters, choose_device(config.device))
    if checkpoint:
        load_weights(objective, checkpoint.weights)
    elif config.init_from:
        weights = named_weights(initial_model(config)) if ctx.is_main else {}
        scatter_weights(objective.model, weights, ctx)
    return objective


def _compile_and_shard(objective: Objective, config: TrainConfig, ctx: DistContext, log: Callable[[str], None]) -> None:
    device = choose_device(config.device)
    if config.compile:
        compile_training(objective.model, device, log)
    dtype = choose_dtype(config.dtype, device, objective.model.num_parameters())
    ctx.wrap_fsdp(objective, config.parallel, device, dtype)
