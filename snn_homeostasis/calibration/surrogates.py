"""Surrogates: how steep the gradient of a spike is, and how steep it should be in deep nets."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Surrogate", "surrogate_of"]

Function = Callable[[Tensor], Tensor]

HOME = "snntorch.surrogate"
# the argument of each family that sets its slope, and that argument times the threshold, by measurement
FAMILIES = {"fast_sigmoid": ("slope", 3.0), "sigmoid": ("slope", 1.5), "atan": ("alpha", 0.9)}


@dataclass(frozen=True)
class Surrogate:
    """A surrogate of snntorch that has a slope.

    Args:
        family: the function of `snntorch.surrogate` that makes it.
        settings: the arguments of that function.
    """

    family: str
    settings: dict[str, Any]

    @property
    def slope(self) -> float:
        """The slope, in one over the unit of the membrane."""
        return float(self.settings[FAMILIES[self.family][0]])

    def wanted(self, threshold: float) -> float:
        """The slope with which gradients pass many layers, for a threshold in the unit of the membrane."""
        return FAMILIES[self.family][1] / threshold

    def with_slope(self, slope: float) -> Function:
        """Makes a surrogate of the same family."""
        make = getattr(sys.modules[HOME], self.family)
        function: Function = make(**{**self.settings, FAMILIES[self.family][0]: slope})
        return function


def surrogate_of(neuron: nn.Module) -> Surrogate | None:
    """Returns the surrogate of a neuron, None if it is not one with a slope."""
    function = getattr(neuron, "spike_grad", None)
    if not inspect.isfunction(function) or function.__module__ != HOME:
        return None
    family = function.__qualname__.partition(".")[0]  # the function around it made it
    if family not in FAMILIES:
        return None
    return Surrogate(family, dict(inspect.getclosurevars(function).nonlocals))
