"""Parameters that are spread over processes: the `DTensor` that `fully_shard` makes."""

from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..errors import ArgumentError

__all__ = ["full", "is_distributed", "is_sharded", "local", "mesh_group", "replicate_as"]


def is_sharded(tensor: Any) -> bool:
    """Whether each process holds a piece of a tensor."""
    return is_distributed(tensor) and any(placement.is_shard() for placement in tensor.placements)


def local(tensor: Any) -> Tensor:
    """Returns the piece of a tensor that this process holds."""
    held: Tensor = tensor.to_local() if is_distributed(tensor) else tensor
    return held


def full(tensor: Any) -> Tensor:
    """Gathers a tensor, so that every process holds all of it."""
    gathered: Tensor = tensor.full_tensor() if is_distributed(tensor) else tensor
    return gathered


def replicate_as(part: Tensor, param: Any) -> Tensor:
    """Lets a tensor that every process holds whole take part in an operation with ``param``."""
    if not is_distributed(param) or is_distributed(part):
        return part
    from torch.distributed.tensor import DTensor, Replicate  # takes long, and only DTensors need it

    mesh = param.device_mesh
    return DTensor.from_local(part, mesh, [Replicate()] * mesh.ndim, run_check=False)


def mesh_group(param: Any) -> Any:
    """Returns the process group of the mesh over which a parameter is spread.

    Raises:
        ArgumentError: if the mesh has several dimensions and leaves out some processes.
    """
    mesh = param.device_mesh
    if mesh.ndim == 1:
        return mesh.get_group()
    if mesh.size() == dist.get_world_size():
        return dist.group.WORLD
    raise ArgumentError(
        "`process_group` should be given for parameters on a part of a mesh of several dimensions. "
        f"Found `mesh = {mesh}`. Pass the group of the processes that share the batch."
    )


def is_distributed(tensor: Any) -> bool:
    """Whether a tensor is a `DTensor`; tells without its import, which takes long."""
    return hasattr(tensor, "placements")
