"""Updates: slots collect parts, bounds turn them into a change, the change goes into the parameter."""

from .bounds import (
    HALVES,
    Bounds,
    ClampBounds,
    PowerBounds,
    SharpBounds,
    UpdateBounds,
    check_bounds,
    is_built_in,
)
from .changes import Change, apply_changes, changes_of, common_bounds
from .contributions import Contribution, Finish
from .finite import require_finite
from .gradients import without_gradients
from .graphs import is_needed_by
from .slots import Slot, Waiting, broadcasts
from .updater import Updater

__all__ = [
    "HALVES",
    "Bounds",
    "Change",
    "ClampBounds",
    "Contribution",
    "Finish",
    "PowerBounds",
    "SharpBounds",
    "Slot",
    "UpdateBounds",
    "Updater",
    "Waiting",
    "apply_changes",
    "broadcasts",
    "changes_of",
    "check_bounds",
    "common_bounds",
    "is_built_in",
    "is_needed_by",
    "require_finite",
    "without_gradients",
]
