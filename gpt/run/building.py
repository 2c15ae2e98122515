"""Build the objective of a run: made, sharded, then initialized or loaded, so that no process holds all of a model that
it shares with others."""

import torch

from gpt.checkpoint import Checkpoint
from gpt.config import TrainConfig
from gpt.exchange.models import create_objective, initial_model
from gpt.objectives.objective import Objective, example_rng
from gpt.objectives.weights import load_weights, named_weights, scatter_weights
from gpt.system.deferred import DeferredInit
from gpt.system.device import choose_device, choose_dtype
from gpt.system.distributed import DistContext


def build_objective(config: TrainConfig, ctx: DistContext, checkpoint: Checkpoint | None = None) -> Objective:
    """Return the objective of a fresh run, or of a checkpoint, on its device; sharded as `parallel` says.

    The seed fixes the initial weights, which do not depend on the number of processes, then dropout, which does.
    """
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    if ctx.world_size == 1 or config.parallel == "ddp" or config.adapter.name != "none":
        objective = create_objective(config, fresh=checkpoint is None).to(device)
        if checkpoint:
            load_weights(objective, checkpoint.weights)
        _shard(objective, config, ctx, device)
    else:
        objective = _build_shards(config, ctx, device, checkpoint)
    if not ctx.is_main:  # all ranks have the same weights but different dropout
        torch.manual_seed(example_rng((config.seed,), ctx.rank).integers(2**63))
    return objective


def _build_shards(
    config: TrainConfig, ctx: DistContext, device: torch.device, checkpoint: Checkpoint | None
) -> Objective:
    """Build an objective of which each process holds its shard and, for a moment, one whole parameter. Rank 0 alone
    reads the model of init_from."""
    deferred = DeferredInit()
    objective = create_objective(config, checkpoint is None, deferred)
    parameters = list(objective.parameters())
    _shard(objective, config, ctx, device)
    deferred.materialize(objective, parameters, device)
    if checkpoint:
        load_weights(objective, checkpoint.weights)
    elif config.init_from:
        weights = named_weights(initial_model(config)) if ctx.is_main else {}
        scatter_weights(objective.model, weights, ctx)
    return objective


def _shard(objective: Objective, config: TrainConfig, ctx: DistContext, device: torch.device) -> None:
    dtype = choose_dtype(config.dtype, device, objective.model.num_parameters())
    ctx.wrap_fsdp(objective, config.parallel, device, dtype)
