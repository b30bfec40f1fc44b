"""Which processes train the model that is observed here."""

import gc
import sys
import weakref
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Self

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..cells import Unit
from ..errors import ArgumentError, require
from ..layers import Connection, is_sharded, mesh_group
from ..observe import is_neuron
from .processes import Processes
from .reduction import Several
from .shares import require_mean_or_sum

__all__ = ["AUTO", "Group", "ProcessGroups"]

Group = Any  # a `ProcessGroup`, None or AUTO
AUTO = "auto"


class ProcessGroups:
    """Finds out which processes train the model that is observed here.

    A wrapper around the model tells: DistributedDataParallel or `fully_shard`. It may be found when
    the model is attached, or when it runs the model. A process group alone tells nothing, since
    processes may as well train models of their own.

    Args:
        process_group: the group; ``"auto"`` for the group of the wrapper; None for this process alone.

    Raises:
        ArgumentError: for anything else.
    """

    def __init__(self, process_group: Group) -> None:
        require(
            process_group in (None, AUTO) or isinstance(process_group, dist.ProcessGroup),
            "process_group",
            "be 'auto', None or a ProcessGroup",
            process_group,
            "Take `torch.distributed.group.WORLD` for all processes.",
        )
        self.process_group = process_group
        self._processes = Processes()
        self._group: Group = None
        self._sharded: list[weakref.ref[Any]] = []
        self._wrappers: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self.process_group)  # the copied cells know their group, and tell

    def look_into(self, model: nn.Module) -> Group:
        """Looks for wrappers in a model. Returns the group that its cells belong to, or None."""
        self._sharded += map(weakref.ref, _sharded_modules(model))
        self.reshard()
        return self._group_in(model)

    def look_around(self, units: Iterable[Unit]) -> None:
        """Looks for wrappers around the cells, which a wrapper that has not run yet does not tell."""
        hooks = [unit.hook for unit in units if unit.hook.group is None]
        if self.process_group != AUTO or not hooks or not _has_peers():
            return
        # a module does not know the wrapper around it, and nothing public lists all wrappers
        wrappers = [each for each in gc.get_objects() if issubclass(type(each), DistributedDataParallel)]
        for wrapper in wrappers:
            if not _exists(wrapper.process_group):
                continue  # an older one around the same model
            inside = set(wrapper.modules())
            for hook in hooks:
                if hook.module in inside:
                    hook.group = self._group_of(wrapper)

    def admit(self, unit: Unit) -> None:
        """Lets a new cell take part."""
        hook = unit.cell.neuron
        hook.find_group = self._group_of
        hook.group = hook.group or _group_of_shards(unit.cell.connection)
        if self.of([unit]).group is not None:
            require_mean_or_sum(unit.state.batch_reduction)

    def reshard(self) -> None:
        """Lets `fully_shard` take back gathered parameters, whose changes would be lost."""
        for reference in self._sharded:
            if (module := reference()) is not None:
                module.reshard()

    def of(self, units: Collection[Unit]) -> Processes:
        """Returns the processes that share the batch of some cells."""
        group = self.process_group
        if group == AUTO:
            group = self._group_around(units)
        if group is not None and not _exists(group):
            for unit in units:
                unit.hook.group = None  # a later wrapper may have another
            group = None
        if group is not self._group:
            several = group is not None and dist.get_world_size(group) > 1
            self._processes, self._group = Several(group, self._wrappers) if several else Processes(), group
        is_shared = self._processes.group is not None
        for unit in units:
            for slot in unit.slots.values():
                if slot.shared is not is_shared:
                    slot.shared = is_shared
        return self._processes

    def _group_around(self, units: Collection[Unit]) -> Group:
        """Returns the group of the first cell that knows one; without cells that of a wrapper; or None."""
        for unit in units:
            if unit.hook.group is not None:
                return unit.hook.group
        if units:
            return None
        # the others may have cells, and wait for this process
        return next((wrapper.process_group for wrapper in self._wrappers), None)

    def _group_in(self, model: nn.Module) -> Any:
        """Returns the process group of the wrapper that a model is, has or is in; None without one."""
        for module in model.modules():
            if isinstance(module, DistributedDataParallel):
                return self._group_of(module)
            if isinstance(module, _fsdp("FullyShardedDataParallel")):
                raise ArgumentError(
                    "`model` should have parameters of their own shape. Found FullyShardedDataParallel, "
                    "which keeps flat pieces. Use `torch.distributed.fsdp.fully_shard`."
                )
        spread = next((param for param in model.parameters() if is_sharded(param)), None)
        return None if spread is None else mesh_group(spread)

    def _group_of(self, wrapper: DistributedDataParallel) -> Any:
        """Returns the group of a wrapper, unless it overwrites the membranes."""
        _require_own_membranes(wrapper)
        self._wrappers.add(wrapper)
        return wrapper.process_group


def _has_peers() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _exists(group: Any) -> bool:
    """Whether the processes of a group are still connected."""
    try:
        return dist.is_initialized() and dist.get_rank(group) >= 0
    except ValueError:  # another default group was made since
        return False


def _group_of_shards(connection: Connection) -> Any:
    params = (reference.leaf for reference in connection.references.values())
    return next((mesh_group(param) for param in params if is_sharded(param)), None)


def _sharded_modules(model: nn.Module) -> list[Any]:
    """Returns the modules whose parameters `fully_shard` gathers and spreads."""
    return [module for module in model.modules() if isinstance(module, _fsdp("FSDPModule"))]


def _require_own_membranes(wrapper: DistributedDataParallel) -> None:
    """Raises ArgumentError if a wrapper overwrites the membranes of a process."""
    spoilt = list(_synced_states(wrapper)) if wrapper.broadcast_buffers else []
    if spoilt:
        current = hasattr(wrapper, "forward_sync_buffers")
        name = "forward_sync_buffers" if current else "broadcast_buffers"
        raise ArgumentError(
            f"`{name}` should be False for a spiking model. Found `{name} = True` for a model with the "
            f"membrane {spoilt[0]!r}: it is a buffer, and every forward would copy it from process 0, or "
            "fail where batches differ. Wrap it with DistributedDataParallel(model, "
            f"{name}=False){' (broadcast_buffers=False in older torch)' if current else ''}."
        )


def _synced_states(wrapper: DistributedDataParallel) -> Iterator[str]:
    for path, module in wrapper.module.named_modules():
        if is_neuron(module):
            saved = module.state_dict()
            for name, _ in module.named_buffers(prefix=path, recurse=False):
                if name.removeprefix(f"{path}.") not in saved and name not in wrapper.parameters_to_ignore:
                    yield name


def _fsdp(name: str) -> type | tuple[()]:
    """Returns a class of torch's FSDP; an empty tuple, which has no instances, before its import."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), name, ())
