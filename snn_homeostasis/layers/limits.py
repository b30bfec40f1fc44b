"""Limits: the range that a parameter never leaves, whatever its bounds."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Limits"]


class Limits(NamedTuple):
    """A range that is inherent to a kind of parameter.

    Args:
        low: the lowest value.
        high: the highest value.
        stuck: what is said once when a neuron is at a limit and its parameter is pushed on; it
            follows the name of the cell.
    """

    low: float
    high: float
    stuck: str

    def clamp_(self, value: Tensor) -> Tensor:
        """Brings a value into the range, in place."""
        return value.clamp_(self.low, self.high)
