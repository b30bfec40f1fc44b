"""What holds among the registered cells of one homeostasis: their names, and what they share."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from torch import nn

from ..errors import require
from ..observe import RateEstimator
from ..updates import UpdateBounds, common_bounds
from .cell import Cell
from .unit import Unit

__all__ = ["count_layers", "key_of", "require_new", "require_own_rate", "select", "set_bounds"]


NO_MODULES = nn.ModuleDict()


def key_of(name: str) -> str:
    """Returns the name of a cell as the key of a submodule, which holds no dot and is no attribute."""
    key = name.replace(".", "/")
    return f"{key}/" if hasattr(NO_MODULES, key) else key


def select(units: Mapping[str, Unit], cells: Iterable[str] | None) -> list[Unit]:
    """Returns the units of some names, or all; raises ArgumentError for an unknown name, or without any."""
    if cells is None:
        require(bool(units), "cells", "be registered", None, "Call `attach(model)` first.", show="no cell")
        return list(units.values())
    names = [cells] if isinstance(cells, str) or not isinstance(cells, Iterable) else list(cells)
    for name in names:
        known = ", ".join(map(repr, units)) or "none yet"
        require(name in units, "cells", f"name registered cells ({known})", name, "Check the spelling.")
    return [units[name] for name in dict.fromkeys(names)]


def require_new(units: Mapping[str, Unit], name: str, cell: Cell, param: str) -> None:
    """Raises ArgumentError if the name of a cell, or the cell with this param, is there already."""
    taken = set(map(key_of, units))
    is_new = isinstance(name, str) and bool(name) and key_of(name) not in taken
    remedy = "Choose another, or `remove_cell` the old one."
    require(is_new, "name", "be new and not empty, and a string", name, remedy)
    remedy = "Build one: `register_cell(name, Cell(layer, neuron))`."
    require(isinstance(cell, Cell), "cell", "be a Cell", cell, remedy)
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


def require_own_rate(units: Iterable[Unit], new: Unit) -> None:
    """Raises ArgumentError unless a new unit has an estimator of its own."""
    remedy = "Pass the class, or `functools.partial(ExponentialRate, tau=200)`."
    is_estimator = isinstance(new.rate, RateEstimator)
    require(is_estimator, "rate", "return a RateEstimator", new.rate, remedy)
    is_own = all(unit.rate is not new.rate for unit in units)
    require(is_own, "rate", "return a new estimator at each call", new.rate, remedy)


def set_bounds(units: Iterable[Unit], new: Unit, bounds: UpdateBounds | None) -> None:
    """Gives the slot of a new unit its bounds; raises ArgumentError where the same parameter has others."""
    leaf = new.slot.reference.leaf
    slots = [slot for unit in (*units, new) for slot in unit.slots.values()]
    tied = [slot.bounds for slot in slots if slot.reference.leaf is leaf]
    common_bounds(new.slot.reference, *tied, bounds)
    if bounds is not None:
        new.slot.claims[new.rate] = bounds  # first, because an interruption may come in between
        new.slot.bounds = bounds


def count_layers(units: Collection[Unit]) -> None:
    """Tells each unit how many layers drive its neuron: together they make one step."""
    layers: dict[nn.Module, set[nn.Module]] = defaultdict(set)
    for unit in units:
        layers[unit.hook.module].add(unit.connection.layer)
    for unit in units:
        unit.state.layers = len(layers[unit.hook.module])
