"""Parameters that are spread over processes (`DTensor`), as `fully_shard` makes them."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from .errors import ArgumentError

__all__ = ["is_sharded", "like", "local", "mesh_group"]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`; known by its placements, so that nothing is imported."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    held: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return held


def like(part: Tensor, param: Tensor) -> Tensor:
    """A tensor that every process holds whole, made fit to meet ``param`` in an operation."""
    if not is_sharded(param) or is_sharded(part):
        return part
    from torch.distributed.tensor import DTensor, Replicate  # costly, and only here is it needed

    mesh: Any = param.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(part, mesh, [Replicate()] * mesh.ndim, run_check=False)


def mesh_group(param: Tensor) -> Any:
    """The process group of the mesh over which a parameter is spread.

    Raises:
        ArgumentError: if the mesh has several dimensions and leaves out some processes.
    """
    mesh: Any = param.device_mesh  # type: ignore[attr-defined]
    if mesh.ndim == 1:
        return mesh.get_group()
    if mesh.size() == dist.get_world_size():
        return dist.group.WORLD
    raise ArgumentError(
        "`process_group` should be given for parameters on a part of a mesh of several dimensions. "
        f"Found `mesh = {mesh}`. Pass the group of the processes that share the batch."
    )
