"""What a rule is told about a cell: checked once, then trusted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, require
from ..observe.estimator import RateEstimator
from ..observe.rates import CumulativeRate
from ..state import TensorState
from ..updates.bounds import UpdateBounds

__all__ = ["BatchReduction", "CellState", "Settings", "Target", "check_target", "fit_target"]

BatchReduction = Callable[[Tensor, int], Tensor]
Target = float | Tensor

PARAMS = ("weight", "bias", "delay")


@dataclass(frozen=True)
class Settings:
    """The arguments of a rule, which each cell may override.

    Raises:
        ArgumentError: for a value that cannot work.
    """

    plasticity: float
    target: Target | None = None
    param: str = "weight"
    batch_reduction: BatchReduction | None = None
    rate: Callable[[], RateEstimator] = CumulativeRate
    bounds: UpdateBounds | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.plasticity, int | float) and math.isfinite(self.plasticity)
        require(number, "plasticity", "be a finite number", self.plasticity, "Start with 0.01.")
        if self.target is not None:
            check_target(self.target)
        param = self.param.lower() if isinstance(self.param, str) else self.param
        require(
            param in PARAMS,
            "param",
            f"be one of {', '.join(map(repr, PARAMS))}",
            self.param,
            "Name the parameter that the rule should change.",
        )
        object.__setattr__(self, "param", param)
        require(
            self.batch_reduction is None or callable(self.batch_reduction),
            "batch_reduction",
            "be a function (tensor, dim) -> tensor",
            self.batch_reduction,
            "Take `torch.mean`.",
        )
        require(
            callable(self.rate) and not isinstance(self.rate, RateEstimator),
            "rate",
            "be a factory, called once per cell",
            self.rate,
            "Pass the class, or `functools.partial(ExponentialRate, tau=200)`.",
        )

    def override(self, overrides: dict[str, Any]) -> Settings:
        """These settings with some replaced.

        Raises:
            ArgumentError: for an unknown name or a value that cannot work.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            require(name in names, "overrides", f"be among {', '.join(names)}", name, "Check the spelling.")
        return dataclasses.replace(self, **overrides)


class CellState(TensorState):
    """The settings of one registered cell; its target is saved if it is a tensor.

    Attributes:
        plasticity: λ, may be changed at any time.
        param: "weight", "bias" or "delay".
        batch_reduction: reduces a part over the batch.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.plasticity = settings.plasticity
        self.param = settings.param
        self.batch_reduction: BatchReduction = settings.batch_reduction or torch.mean
        self.register_buffer("target_tensor", None)
        self.target = settings.target

    target_tensor: Tensor | None

    @property
    def target(self) -> Target | None:
        """The target rate r*, in spikes per step: a number, a tensor, or None."""
        return self._number if self.target_tensor is None else self.target_tensor

    @target.setter
    def target(self, target: Target | None) -> None:
        if target is not None:
            check_target(target)
        is_tensor = isinstance(target, Tensor)
        self._number = None if is_tensor else target
        with torch.inference_mode(False):
            self.target_tensor = target.detach().clone() if isinstance(target, Tensor) else None

    @property
    def key(self) -> tuple[object, ...]:
        """Differs from an earlier one if a setting was changed since, and no tensor replaced."""
        target = self._buffers["target_tensor"]
        version = None if target is None else target._version
        return self.plasticity, self.param, self.batch_reduction, self._number, version

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = self.target_tensor  # stays where the checkpoint has a number, which it does not save
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.target_tensor is None:
            self.target_tensor = own

    def extra_repr(self) -> str:
        return f"plasticity={self.plasticity:g}, target={self.target}, param={self.param!r}"


def check_target(target: Target) -> None:
    """Checks that a target is a positive, finite rate.

    Raises:
        ArgumentError: if it, or an element of it, is not.
    """
    remedy = "It is a rate in spikes per step, for example 0.1."
    if isinstance(target, Tensor):
        positive = target.numel() > 0 and bool(((target > 0) & target.isfinite()).all())
        smallest = target.min().item() if target.numel() else None
        show = None if positive else f"a tensor of shape {list(target.shape)}, smallest {smallest}"
        require(positive, "target", "be > 0 and finite everywhere", None, remedy, show=show)
    else:
        number = isinstance(target, int | float) and not isinstance(target, bool)
        require(number and target > 0 and math.isfinite(target), "target", "be > 0", target, remedy)


def fit_target(target: Target, rate: Tensor) -> Target:
    """A target brought to the device of a rate ``[B, *N]`` that it broadcasts to.

    Raises:
        ArgumentError: if its shape is none of ``[*N]``, ``[1, *N]``, ``[B, *N]``, up to
            sizes of 1.
    """
    if not isinstance(target, Tensor):
        return target
    sizes = zip(reversed(target.shape), reversed(rate.shape), strict=False)
    fits = target.ndim in (0, rate.ndim - 1, rate.ndim)
    fits = fits and all(size in (1, wanted) for size, wanted in sizes)
    if not fits:
        raise ArgumentError(
            f"`target` should have the shape {list(rate.shape[1:])} of the neurons, or {list(rate.shape)} "
            f"with the batch. Found shape {list(target.shape)}. Use size 1 where a dimension shares its "
            "target, as in (C, 1, 1)."
        )
    return target.to(rate.device)
