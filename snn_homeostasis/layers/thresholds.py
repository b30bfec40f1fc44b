"""The threshold of a neuron as a parameter of its cell."""

import math

from torch import nn

from .changeable import Problem
from .connection import Connection
from .limits import Limits
from .parameters import StateReference

__all__ = ["add_threshold"]

LOWEST = 1e-3  # at 0 a neuron would fire without any input
STUCK = (
    "A threshold of {cell} is at its lowest value, and the rule pushes it on: its input is silent or "
    "negative. Regulate the weight or the bias, or scale the weights with `calibrate` first."
)
WHOLE = Problem("holds whole numbers", "Build the neuron with `threshold=1.0` in place of `threshold=1`.")
LOW = Problem(f"is below {LOWEST:g}", "Set it to a positive value; a threshold near 1 is usual.")


class ThresholdReference(StateReference):
    """A threshold, of one neuron, of a channel, or of all neurons of a population."""

    def require_changeable(self, owner: str = "") -> None:
        value = self.plain
        if value is not None and not value.is_floating_point():
            self._refuse(WHOLE, owner)
        super().require_changeable(owner)
        if value is not None and bool((value < LOWEST).any()):
            self._refuse(LOW, owner)


def add_threshold(connection: Connection, neuron: nn.Module, name: str) -> None:
    """Adds the threshold of a neuron to the parameters of a cell, if it is a tensor."""
    reference = ThresholdReference(neuron, name)
    if reference.exists:
        connection.references["threshold"] = reference
        connection.limits["threshold"] = Limits(LOWEST, math.inf, STUCK)
