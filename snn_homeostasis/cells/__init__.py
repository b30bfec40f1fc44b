"""Cells: a layer with the neuron that it drives; units: cells with all that a rule keeps for them."""

from .cell import Cell
from .registry import key_of, require_new, select, set_bounds
from .settings import BatchReduction, CellState, Settings
from .targets import Target, check_target
from .unit import Unit, require_no_waiting_graph

__all__ = [
    "BatchReduction",
    "Cell",
    "CellState",
    "Settings",
    "Target",
    "Unit",
    "check_target",
    "key_of",
    "require_new",
    "require_no_waiting_graph",
    "select",
    "set_bounds",
]
