"""Plasticities: λ, how far a parameter moves in one step."""

import math

from ..errors import require
from ..state import Code
from .targets import is_number

__all__ = ["PLASTICITY_CODE", "Plasticity", "checked_plasticity"]

Plasticity = float


def checked_plasticity(plasticity: object) -> Plasticity:
    """Returns a plasticity; raises ArgumentError unless it is a positive, finite number."""
    works = is_number(plasticity) and 0 < plasticity < math.inf
    remedy = (
        "Start with `LinearHomeostasis(0.01, target=0.1).attach(model)`. To freeze, call `eval()`; for a "
        "layer that inhibits, build the cell with `sign=-1`, as `attach` does."
    )
    require(works, "plasticity", "be a finite number > 0", plasticity, remedy)
    assert is_number(plasticity)
    return float(plasticity)


PLASTICITY_CODE = Code(lambda plasticity: (plasticity,), lambda numbers, present: numbers[0])
