"""The settings of a rule: checked once, then trusted."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import require
from ..observe import CumulativeRate, RateEstimator
from ..state import TensorState
from ..updates import UpdateBounds
from .targets import Target, check_target, is_number

__all__ = ["MEANS", "SUMS", "BatchReduction", "CellState", "Settings"]

BatchReduction = Callable[[Tensor, int], Tensor]

MEANS, SUMS = (torch.mean, Tensor.mean), (torch.sum, Tensor.sum)
PARAMS = ("weight", "bias", "delay")


@dataclass(frozen=True)
class Settings:
    """The arguments of a rule, which each cell may override; see `LinearHomeostasis`.

    Raises:
        ArgumentError: for a value that cannot work.

    >>> Settings(0.05, target=0.1, param="BIAS").param
    'bias'
    """

    plasticity: float
    target: Target | None = None
    param: str = "weight"
    batch_reduction: BatchReduction | None = None
    rate: Callable[[], RateEstimator] = CumulativeRate
    bounds: UpdateBounds | None = None

    def __post_init__(self) -> None:
        is_finite = is_number(self.plasticity) and math.isfinite(self.plasticity)
        remedy = "Start with `LinearHomeostasis(0.01, target=0.1).attach(model)`."
        require(is_finite, "plasticity", "be a finite number", self.plasticity, remedy)
        object.__setattr__(self, "plasticity", float(self.plasticity))
        if self.target is not None:
            check_target(self.target)
        param = self.param.lower() if isinstance(self.param, str) else self.param
        names, remedy = ", ".join(map(repr, PARAMS)), "Name the parameter that the rule should change."
        require(param in PARAMS, "param", f"be one of {names}", self.param, remedy)
        object.__setattr__(self, "param", param)
        reduction, expected = self.batch_reduction, "be a function (tensor, dim) -> tensor"
        callable_ = reduction is None or callable(reduction)
        require(callable_, "batch_reduction", expected, reduction, "Take `torch.mean`.")
        is_factory = callable(self.rate) and not isinstance(self.rate, RateEstimator)
        remedy = "Pass the class, or `functools.partial(ExponentialRate, tau=200)`."
        require(is_factory, "rate", "be a factory, called once per cell", self.rate, remedy)

    def override(self, overrides: dict[str, Any]) -> Self:
        """Replaces some settings; raises ArgumentError for an unknown name or a value that cannot work."""
        names = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            require(name in names, "overrides", f"be among {', '.join(names)}", name, "Check the spelling.")
        return dataclasses.replace(self, **overrides)


class CellState(TensorState):
    """The settings of one registered cell, in the units of `Settings`. They may change at any time."""

    state = ("target_tensor",)

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.plasticity = settings.plasticity
        self.param = settings.param
        self.batch_reduction: BatchReduction = settings.batch_reduction or torch.mean
        self.target = settings.target

    @property
    def target(self) -> Target | None:
        """The target rate r* in spikes per step: a number, a tensor, or None."""
        return self._number if self.target_tensor is None else self.target_tensor

    @target.setter
    def target(self, target: Target | None) -> None:
        if target is not None:
            check_target(target)
        self._number = None if target is None or isinstance(target, Tensor) else float(target)
        with torch.inference_mode(False):
            self.target_tensor = target.detach().clone() if isinstance(target, Tensor) else None

    @property
    def strength(self) -> float:
        """The plasticity with its sign: a longer delay takes spikes apart, so delays change the other way."""
        return -self.plasticity if self.param == "delay" else self.plasticity

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = self.target_tensor  # a checkpoint with a number does not save it
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.target_tensor is None:
            self.target_tensor = own

    def extra_repr(self) -> str:
        return f"plasticity={self.plasticity:g}, target={self.target}, param={self.param!r}"
