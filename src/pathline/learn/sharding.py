"""Networks too large for one device: weights, moments and averages in shards (FSDP2).

Every process keeps its part of each parameter, and has a block of the network whole only while it
runs. What is written on disk is whole, so a run goes on with any number of processes.

Paper: Zhao et al. 2023 (arXiv:2304.11277).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from torch import Tensor, nn

from pathline.core.errors import UsageError, unknown

__all__ = ["Strategy", "as_strategy", "fabric_strategy", "like", "loaded_moments", "whole"]

Strategy = Literal["ddp", "fsdp"]
"""How processes share the work: each with all of the network, or with its shards."""


def as_strategy(name: str) -> Strategy:
    """Return the strategy of a name.

    Raises:
        UsageError: nobody knows it.
    """
    if name not in get_args(Strategy):
        raise unknown("strategy", name, get_args(Strategy))
    return cast(Strategy, name)


def fabric_strategy(strategy: Strategy, devices: int) -> dict[str, Any]:
    """Return what Lightning's Fabric is told for a number of processes.

    Raises:
        UsageError: an unknown strategy; shards of a single process.
    """
    if as_strategy(strategy) == "fsdp":
        if devices < 2:
            raise UsageError(
                "strategy 'fsdp' shares weights among devices: give devices=2 or more."
            )
        made = importlib.import_module("lightning_fabric.strategies").ModelParallelStrategy
        return {"strategy": made(_sharded, devices, 1)}
    return {"strategy": "ddp"} if devices > 1 else {}


def whole(value: Any) -> Any:
    """Return a value with every shard in it put together; all processes must ask at once."""
    if isinstance(value, Mapping):
        return {k: whole(v) for k, v in value.items()}
    if isinstance(value, list):
        return [whole(v) for v in value]
    return value.full_tensor() if _is_sharded(value) else value


def like(pattern: Tensor, value: Tensor) -> Tensor:
    """Return a whole tensor in the shards of a pattern; as it is if the pattern has none."""
    if not _is_sharded(pattern):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = pattern
    return distribute_tensor(value.to(sharded.device), sharded.device_mesh, sharded.placements)


def loaded_moments(optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimiser's whole state in the shards of its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def cut(index: int, value: Any) -> Any:
        is_moment = isinstance(value, Tensor) and value.ndim > 0
        return like(parameters[index], value) if is_moment else value

    moments = {i: {k: cut(i, v) for k, v in kept.items()} for i, kept in state["state"].items()}
    return {**state, "state": moments}


def _is_sharded(value: Any) -> bool:
    return hasattr(value, "full_tensor")


def _sharded(network: nn.Module, mesh: Any) -> nn.Module:
    """Shard the blocks of a network's lists, the inner ones first, and then what is left."""
    from torch.distributed.fsdp import fully_shard

    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 knows no other order of channels
    lists = [m for m in network.modules() if isinstance(m, nn.ModuleList)]
    for blocks in reversed(lists):
        for block in blocks:
            if not isinstance(block, nn.ModuleList) and any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(network, mesh=mesh["data_parallel"])
    return network
