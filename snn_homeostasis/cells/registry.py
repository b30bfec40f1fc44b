"""What holds among the registered cells of one homeostasis: their names, and what they share."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..errors import require
from ..updates.bounds import UpdateBounds
from ..updates.changes import joint_bounds
from ..updates.slots import Slot
from .cell import Cell
from .unit import Unit

__all__ = ["key_of", "owners_of", "require_new", "select", "set_bounds"]


def key_of(name: str) -> str:
    """The name of a cell as the key of a submodule."""
    return name.replace(".", "/")


def select(units: Iterable[Unit], cells: Iterable[str] | None) -> list[Unit]:
    """The units of some names, or all.

    Raises:
        ArgumentError: for an unknown name.
    """
    known = {unit.name: unit for unit in units}
    names = known if cells is None else [cells] if isinstance(cells, str) else cells
    for name in names:
        listed = ", ".join(map(repr, known)) or "none yet"
        require(name in known, "cells", f"name registered cells ({listed})", name, "Check the spelling.")
    return [known[name] for name in dict.fromkeys(names)]


def owners_of(units: Iterable[Unit]) -> dict[Slot, Unit]:
    """The slots of the cells that are not frozen, each with the first that has it."""
    owners: dict[Slot, Unit] = {}
    for unit in units:
        if unit.active:
            owners |= {slot: unit for slot in unit.all_slots if slot not in owners}
    return owners


def require_new(units: Iterable[Unit], name: str, cell: Cell, param: str) -> None:
    """Checks that a cell can be registered.

    Raises:
        ArgumentError: if its name, or the cell with this param, is there already.
    """
    units = list(units)
    taken = {key_of(unit.name) for unit in units}
    require(
        bool(name) and key_of(name) not in taken and not hasattr(nn.ModuleDict, key_of(name)),
        "name",
        "be new and not empty, and no attribute of a module",
        name,
        "Choose another, or `remove_cell` the old one.",
    )
    for unit in units:
        same = unit.cell.connection.layer is cell.connection.layer
        same = same and unit.cell.neuron.module is cell.neuron.module
        same = same and unit.cell.connection.norm is cell.connection.norm
        require(
            not (same and unit.state.param == param),
            "cell",
            f"be regulated once by its {param}",
            None,
            "Remove one of the two.",
            show=f"the same layer and neuron in cell {unit.name!r}",
        )


def set_bounds(units: Iterable[Unit], new: Unit, bounds: UpdateBounds | None) -> None:
    """Gives the slot of a new unit its bounds; None leaves it as it is.

    Raises:
        ArgumentError: if a layer with the same parameter has others.
    """
    leaf = new.slot.reference.leaf
    slots = [slot for unit in (*units, new) for slot in unit.all_slots]
    tied = [slot.bounds for slot in slots if slot.reference.leaf is leaf]
    joint_bounds(new.slot.reference, *tied, bounds)
    if bounds is not None:
        new.slot.bounds = bounds
