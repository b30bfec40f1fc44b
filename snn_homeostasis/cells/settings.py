"""The settings of a rule: checked once, then trusted."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import is_number, require
from ..observe import RateEstimator, RecentRate
from ..updates import UpdateBounds, check_bounds
from .plasticity import FALLING, Plasticity, checked_plasticity
from .targets import Target, check_target

__all__ = [
    "MEANS",
    "PARAMS",
    "SUMS",
    "BatchReduction",
    "Settings",
    "check_dt",
    "check_reduction",
    "checked_param",
]

BatchReduction = Callable[[Tensor, int], Tensor]

MEANS, SUMS = (torch.mean, Tensor.mean), (torch.sum, Tensor.sum)
PARAMS = ("weight", "bias", "delay", "threshold")


@dataclass(frozen=True)
class Settings:
    """The arguments of a rule, which each cell may override; see `LinearHomeostasis`.

    Raises:
        ArgumentError: for a value that cannot work.

    >>> Settings(0.05, target=0.1, param="BIAS").param
    'bias'
    """

    plasticity: Plasticity = FALLING
    target: Target | None = None
    param: str = "weight"
    batch_reduction: BatchReduction | None = None
    rate: Callable[[], RateEstimator] = RecentRate
    bounds: UpdateBounds | None = None
    dt: float | None = None
    population: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "plasticity", checked_plasticity(self.plasticity))
        if self.target is not None:
            check_target(self.target)
        object.__setattr__(self, "param", checked_param(self.param))
        if self.batch_reduction is not None:
            check_reduction(self.batch_reduction)
        check_dt(self.dt)
        check_bounds(self.bounds)
        is_factory = callable(self.rate) and not isinstance(self.rate, RateEstimator)
        remedy = "Pass the class, or `functools.partial(ExponentialRate, tau=200)`."
        require(is_factory, "rate", "be a factory, called once per cell", self.rate, remedy)

    def override(self, overrides: dict[str, Any]) -> Self:
        """Replaces some settings; raises ArgumentError for an unknown name or a value that cannot work."""
        names = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            require(name in names, "overrides", f"be among {', '.join(names)}", name, "Check the spelling.")
        return dataclasses.replace(self, **overrides)


def checked_param(param: object) -> str:
    """Returns the kind of a parameter in small letters; raises ArgumentError for an unknown one."""
    kind = param.lower() if isinstance(param, str) else ""
    names, remedy = ", ".join(map(repr, PARAMS)), "Name the parameter that the rule should change."
    require(kind in PARAMS, "param", f"be one of {names}", param, remedy)
    return kind


def check_reduction(reduction: object) -> None:
    """Raises ArgumentError for a batch reduction that cannot be called."""
    expected = "be a function (tensor, dim) -> tensor"
    require(callable(reduction), "batch_reduction", expected, reduction, "Take `torch.mean`.")


def check_dt(dt: object) -> None:
    """Raises ArgumentError for a duration of a step that cannot be."""
    works = dt is None or (is_number(dt) and 0 < dt < math.inf)
    remedy = "It is in seconds: 0.001 where a step is one millisecond."
    require(works, "dt", "be a finite number > 0, or None", dt, remedy)
