"""A band of rates as a target."""

import math
from dataclasses import dataclass

from torch import Tensor

from ..errors import is_number, require

__all__ = ["Band"]


@dataclass(frozen=True)
class Band:
    """A range of rates as a target: no push inside, the plain rule toward the nearer edge outside.

    It looks at the mean rate over the batch, and over the positions that share a parameter. So a
    neuron that fires for a few samples only is left alone as long as its mean rate is in the band.

    Args:
        low: the lower edge, a rate > 0, or None: then nothing is too quiet.
        high: the upper edge, a rate > 0, or None: then nothing is too busy.

    Raises:
        ArgumentError: if both edges are None, one is not a rate > 0, or ``low >= high``.

    >>> Band(0.05, 0.2)  # in spikes per step, or in Hz with `dt`
    Band(low=0.05, high=0.2)
    >>> Band(0.01, None)  # only wakes the silent
    Band(low=0.01, high=None)
    """

    low: float | None
    high: float | None

    def __post_init__(self) -> None:
        remedy = "Take for example `Band(0.05, 0.2)`, or `Band(0.01, None)` to wake the silent only."
        for name, edge in (("low", self.low), ("high", self.high)):
            works = edge is None or (is_number(edge) and 0 < edge < math.inf)
            require(works, name, "be a rate > 0 and finite, or None", edge, remedy)
        edges = [edge for edge in (self.low, self.high) if edge is not None]
        show = f"`low = {self.low}, high = {self.high}`"
        require(bool(edges), "low, high", "name at least one edge", None, remedy, show=show)
        require(len(edges) < 2 or edges[0] < edges[1], "low", "be < `high`", None, remedy, show=show)

    def nearest(self, rate: Tensor) -> Tensor:
        """Returns the rates in the band that are nearest to some rates."""
        return rate.clamp(self.low, self.high)

    def __mul__(self, factor: float) -> "Band":
        return Band(*(None if edge is None else edge * factor for edge in (self.low, self.high)))
