"""Cells: a layer with the neuron that it drives; units: cells with all that a rule keeps for them."""

from .band import Band
from .cell import Cell
from .checks import owner_of, require_finite_cells, require_ready
from .places import Places
from .plasticity import FALLING, FallingPlasticity, Plasticity
from .registration import Registration
from .registry import require_new, select
from .settings import MEANS, SUMS, BatchReduction, Settings
from .state import CellState
from .targets import Rate, Target, check_target, targets_of
from .unit import Unit

__all__ = [
    "FALLING",
    "MEANS",
    "SUMS",
    "Band",
    "BatchReduction",
    "Cell",
    "CellState",
    "FallingPlasticity",
    "Places",
    "Plasticity",
    "Rate",
    "Registration",
    "Settings",
    "Target",
    "Unit",
    "check_target",
    "owner_of",
    "require_finite_cells",
    "require_new",
    "require_ready",
    "select",
    "targets_of",
]
