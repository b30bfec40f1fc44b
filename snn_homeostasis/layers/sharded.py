"""Parameters that are spread over processes, as `fully_shard` makes them of `DTensor`."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..errors import ArgumentError

__all__ = ["full", "is_sharded", "local", "mesh_group", "replicate_as"]


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds a piece of a tensor."""
    return any(placement.is_shard() for placement in getattr(tensor, "placements", ()))


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    held: Tensor = tensor.to_local() if _is_distributed(tensor) else tensor  # type: ignore[attr-defined]
    return held


def full(tensor: Tensor) -> Tensor:
    """A tensor of which every process holds all."""
    full: Tensor = tensor.full_tensor() if _is_distributed(tensor) else tensor  # type: ignore[attr-defined]
    return full


def replicate_as(part: Tensor, param: Tensor) -> Tensor:
    """A tensor that every process holds whole, made fit to meet ``param`` in an operation."""
    if not _is_distributed(param) or _is_distributed(part):
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


def _is_distributed(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")  # a `DTensor`, without the import
