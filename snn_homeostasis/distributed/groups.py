"""Which processes train the model that is observed here."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import nn

from ..cells.cell import Cell
from ..cells.unit import Unit
from ..errors import require
from .reduction import Alone, Processes, Several
from .wrappers import group_around, group_of, sharded_modules

__all__ = ["AUTO", "Group", "Team"]

Group = Any  # a `ProcessGroup`, None or AUTO
AUTO = "auto"


class Team:
    """Finds out which processes train the model that is observed here.

    Args:
        process_group: their group; ``"auto"`` for that of the wrapper; None for this process alone.

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
        self._known: Processes = Alone()
        self._sharded: list[weakref.ref[Any]] = []

    def meet(self, model: nn.Module) -> Group:
        """Looks for wrappers in a model; gives the group that its cells belong to, if there is one.

        Raises:
            ArgumentError: for a wrapper that would spoil the membranes or hides the parameters.
        """
        self._sharded += map(weakref.ref, sharded_modules(model))
        self.reshard()
        return group_around(model)

    def admit(self, unit: Unit) -> None:
        """Lets a new cell take part.

        Raises:
            ArgumentError: if its parts cannot be put together.
        """
        tap = unit.cell.neuron
        tap.group = tap.group or group_of(unit.cell.connection)
        self.of([unit.cell]).open([unit])

    def reshard(self) -> None:
        """Has `fully_shard` take back gathered parameters: a change of those would be lost."""
        for reference in self._sharded:
            if (module := reference()) is not None:
                module.reshard()

    def of(self, cells: Iterable[Cell]) -> Processes:
        """The processes that share the batch of some cells, as far as it is known by now."""
        group = self.process_group
        if group == AUTO:
            groups = (cell.neuron.group for cell in cells)
            group = next((group for group in groups if group is not None), None)
        if group is not None and not dist.is_initialized():
            group = None  # the others are gone
        if group is not self._known.group:
            several = group is not None and dist.get_world_size(group) > 1
            self._known = Several(group) if several else Alone()
        return self._known
