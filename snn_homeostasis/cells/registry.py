"""What holds among the registered cells of one homeostasis: their names, and what they share."""

from collections.abc import Iterable, Mapping

from torch import nn

from ..errors import require
from ..updates import UpdateBounds, common_bounds
from .cell import Cell
from .unit import Unit

__all__ = ["key_of", "require_new", "select", "set_bounds"]


def key_of(name: str) -> str:
    """Returns the name of a cell as the key of a submodule, which may hold no dot."""
    return name.replace(".", "/")


def select(units: Mapping[str, Unit], cells: Iterable[str] | None) -> list[Unit]:
    """Returns the units of some names, or all; raises ArgumentError for an unknown name, or without any."""
    if cells is None:
        require(bool(units), "cells", "be registered", None, "Call `attach(model)` first.", show="no cell")
        return list(units.values())
    names = [cells] if isinstance(cells, str) else list(cells)
    for name in names:
        known = ", ".join(map(repr, units)) or "none yet"
        require(name in units, "cells", f"name registered cells ({known})", name, "Check the spelling.")
    return [units[name] for name in dict.fromkeys(names)]


def require_new(units: Mapping[str, Unit], name: str, cell: Cell, param: str) -> None:
    """Raises ArgumentError if the name of a cell, or the cell with this param, is there already."""
    taken = set(map(key_of, units))
    require(
        bool(name) and key_of(name) not in taken and not hasattr(nn.ModuleDict, key_of(name)),
        "name",
        "be new and not empty, and no attribute of a module",
        name,
        "Choose another, or `remove_cell` the old one.",
    )
    for unit in units.values():
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
    """Gives the slot of a new unit its bounds, unless a layer with the same parameter has others."""
    leaf = new.slot.reference.leaf
    slots = [slot for unit in (*units, new) for slot in unit.slots.values()]
    tied = [slot.bounds for slot in slots if slot.reference.leaf is leaf]
    common_bounds(new.slot.reference, *tied, bounds)
    if bounds is not None:
        new.slot.bounds = bounds
