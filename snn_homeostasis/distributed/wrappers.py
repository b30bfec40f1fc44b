"""How to tell that several processes train one model: torch's wrappers around it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ArgumentError
from ..layers.connections import Connection
from ..layers.sharded import is_sharded, mesh_group
from ..observe.neurons import is_neuron

__all__ = ["group_around", "group_in_forward", "group_of", "sharded_modules"]


def group_around(model: nn.Module) -> Any:
    """The process group of the wrapper that a model is, has or is in; None without one.

    Raises:
        ArgumentError: if the wrapper would spoil the membranes or hides the parameters.
    """
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            return _group_of(module)
        if isinstance(module, _fsdp("FullyShardedDataParallel")):
            raise ArgumentError(
                "`model` should have parameters of their own shape. Found FullyShardedDataParallel, which "
                "keeps flat pieces. Use `torch.distributed.fsdp.fully_shard`."
            )
    spread = next((param for param in model.parameters() if is_sharded(param)), None)
    return None if spread is None else mesh_group(spread)


def group_of(connection: Connection) -> Any:
    """The process group over which parameters of a layer are sharded, or None."""
    params = (reference.tensor for reference in connection.references.values())
    return next((mesh_group(param) for param in params if is_sharded(param)), None)


def group_in_forward() -> Any:
    """The process group of the DistributedDataParallel whose forward is running now, or None.

    A model that was attached before it was wrapped is known by this.
    """
    wrapper = DistributedDataParallel._active_ddp_module
    return None if wrapper is None else _group_of(wrapper)


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules whose parameters `fully_shard` gathers and spreads."""
    return [module for module in model.modules() if isinstance(module, _fsdp("FSDPModule"))]


def _group_of(wrapper: DistributedDataParallel) -> Any:
    """The group of a wrapper, once it is known to leave the membranes alone."""
    spoilt = list(_synced_states(wrapper)) if wrapper.broadcast_buffers else []
    if spoilt:
        current = hasattr(wrapper, "forward_sync_buffers")
        name = "forward_sync_buffers" if current else "broadcast_buffers"
        raise ArgumentError(
            f"`{name}` should be False for a spiking model. Found `{name} = True` for a model with the "
            f"membrane {spoilt[0]!r}: it is a buffer, and every forward would replace it by that of process "
            "0, or fail where batches differ. Wrap it with DistributedDataParallel(model, "
            f"{name}=False){' (broadcast_buffers=False in older torch)' if current else ''}."
        )
    return wrapper.process_group


def _synced_states(wrapper: DistributedDataParallel) -> Iterator[str]:
    for path, module in wrapper.module.named_modules():
        if is_neuron(module):
            for name in sorted(module._non_persistent_buffers_set):
                full = f"{path}.{name}" if path else name
                if full not in wrapper.parameters_to_ignore:
                    yield full


def _fsdp(name: str) -> type | tuple[()]:
    """A class of torch's FSDP; nothing is an instance of it while it is not imported."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), name, ())
