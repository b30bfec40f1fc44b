"""Cells: a layer with the neuron that it drives; units: cells with all that a rule keeps for them."""

from .cell import Cell
from .checks import owner_of, require_finite_cells, require_no_waiting_graph
from .registry import key_of, require_new, select, set_bounds
from .settings import MEANS, SUMS, BatchReduction, Settings
from .state import CellState
from .targets import Target, check_target
from .unit import Unit

__all__ = [
    "MEANS",
    "SUMS",
    "BatchReduction",
    "Cell",
    "CellState",
    "Settings",
    "Target",
    "Unit",
    "check_target",
    "key_of",
    "owner_of",
    "require_finite_cells",
    "require_new",
    "require_no_waiting_graph",
    "select",
    "set_bounds",
]
