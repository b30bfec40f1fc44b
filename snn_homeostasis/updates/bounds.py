"""How the two parts of an update become a change of the parameter.

A bound is any callable ``(param, pos, neg) -> delta``: ``param`` is the parameter, ``pos``
and ``neg`` are magnitudes that broadcast with it, ``delta`` is what will be added.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..errors import require
from .passes import Pass, add_product, adding, blockwise, nearing

__all__ = ["Bounds", "ClampBounds", "PowerBounds", "SharpBounds", "UpdateBounds", "unbounded"]


QUICK_POWERS = (0.5, 2.0, 3.0)  # those for which `pow_` has a way of its own


class UpdateBounds(Protocol):
    """Anything that turns magnitudes into a delta: a function, or a `Bounds`."""

    def __call__(self, param: Tensor, pos: Tensor, neg: Tensor, /) -> Tensor: ...


def unbounded(param: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    """The delta without any bound, ``pos - neg``, in the small shape of its parts."""
    return pos - neg


@dataclass(frozen=True)
class Bounds(ABC):
    """Limits of a parameter; either may be None.

    Args:
        min: lower limit, in the parameter's unit.
        max: upper limit.

    Raises:
        ArgumentError: if both limits are None, one is NaN, or ``min >= max``.
    """

    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.min, self.max) if limit is not None]
        found = f"`min = {self.min}, max = {self.max}`"
        require(
            bool(limits) and not any(math.isnan(limit) for limit in limits),
            "min, max",
            "name at least one limit, and no NaN",
            None,
            "Pass `min=`, `max=` or both; for no bound leave `bounds` at None.",
            show=found,
        )
        require(
            len(limits) < 2 or limits[0] < limits[1],
            "min",
            "be < `max`",
            None,
            "Swap the two limits.",
            show=found,
        )

    @abstractmethod
    def __call__(self, param: Tensor, pos: Tensor, neg: Tensor, /) -> Tensor:
        """The delta of ``param`` for the magnitudes ``pos`` and ``neg``."""

    def passes(self, param: Tensor, ends: Tensor, pos: Tensor, neg: Tensor) -> list[Pass] | None:
        """The addition of the delta as passes over ``param``; None if only `__call__` knows it.

        Only for a delta that is elementwise, and largest at one end of the values of ``param``.
        A subclass with another `__call__` or `settle_`, and no `passes` of its own, does without.

        Args:
            param: the parameter.
            ends: its smallest and its largest value.
            pos: a magnitude that broadcasts with it.
            neg: another.
        """
        return None

    def settle_(self, param: Tensor) -> None:
        """A last word on the parameter after its update, in place; nothing by default."""

    def _contain(self, ends: Tensor, roundings: int = 0) -> bool:
        """Whether the smallest and the largest value of a parameter are inside, up to some roundings."""
        limits = [abs(limit) for limit in (self.min, self.max) if limit is not None and math.isfinite(limit)]
        slack = roundings * torch.finfo(ends.dtype).eps * max(limits, default=0.0)
        low, high = ends.tolist()
        return (self.min is None or low >= self.min - slack) and (
            self.max is None or high <= self.max + slack
        )


@dataclass(frozen=True)
class PowerBounds(Bounds):
    r"""Soft bounds: the nearer the limit, the smaller the step toward it.

    .. math:: \Delta p = ((max - p)_+)^{\mu_+} pos - ((p - min)_+)^{\mu_-} neg

    With power 1 these are the multiplicative bounds of Kistler and van Hemmen (2000),
    with other powers those of Gütig et al. (2003). Where a limit is None, its side is
    left as it is. Distances are clamped at 0, so a parameter outside moves only inwards.

    Args:
        min: lower limit or None.
        max: upper limit or None.
        power: μ > 0, or the pair (upper, lower).
        scaled: divide each distance by ``max - min``, so that a step does not depend on
            the width of the range. Needs both limits.

    Raises:
        ArgumentError: for limits or powers that cannot work.

    >>> import torch
    >>> PowerBounds(0.0, 1.0)(torch.tensor(0.75), torch.tensor(0.1), torch.tensor(0.0))
    tensor(0.0250)
    """

    power: float | tuple[float, float] = 1.0
    scaled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self._powers) == 2 and all(mu > 0 and math.isfinite(mu) for mu in self._powers),
            "power",
            "be > 0, or a pair of such numbers",
            self.power,
            "For a step function at the limit take `SharpBounds`.",
        )
        require(
            not self.scaled or (self.min is not None and self.max is not None),
            "scaled",
            "be False unless both limits are given",
            self.scaled,
            "Give `min` and `max`.",
        )

    def __call__(self, param: Tensor, pos: Tensor, neg: Tensor, /) -> Tensor:
        upper, lower = self._powers
        if self.max is not None:
            pos = self._factor((self.max - param).clamp_min_(0.0), upper).mul_(pos)
        if self.min is not None:
            neg = self._factor((param - self.min).clamp_min_(0.0), lower).mul_(neg)
        return pos - neg

    def passes(self, param: Tensor, ends: Tensor, pos: Tensor, neg: Tensor) -> list[Pass] | None:
        is_linear = self._powers == (1.0, 1.0)
        # inside the limits no distance has to be clamped; a power of 1 may be taken of less than 0
        if not self._contain(ends, roundings=4 if is_linear else 0):
            return blockwise(adding(self), param, pos, neg)
        if not is_linear or self.min is None or self.max is None:
            return blockwise(self._rise_and_fall, param, pos, neg)
        pull = pos + neg
        center = (pos * self.max + neg * self.min).div_(pull).nan_to_num_(0.0)  # 0 / 0 where nothing pulls
        return blockwise(nearing, param, center, pull / self._width)

    def _rise_and_fall(self, param: Tensor, pos: Tensor, neg: Tensor) -> list[Pass]:
        upper, lower = self._powers
        factors: list[Tensor | None] = []

        def rise() -> None:  # both factors are of the values before it
            factors[:] = (
                None if self.max is None else self._factor(self.max - param, upper),
                None if self.min is None else self._factor(param - self.min, lower),
            )
            add_product(param, factors[0], pos)

        def fall() -> None:
            add_product(param, factors[1], neg, -1)
            factors.clear()

        return [rise, fall]

    @property
    def _powers(self) -> tuple[float, float]:
        return self.power if isinstance(self.power, tuple) else (self.power, self.power)

    @property
    def _width(self) -> float:
        """What distances are divided by."""
        return self.max - self.min if self.scaled and self.min is not None and self.max is not None else 1.0

    def _factor(self, distance: Tensor, power: float) -> Tensor:
        """What a step is multiplied with; overwrites the distance."""
        if self.scaled:
            distance = distance.div_(self._width)
        if power == 1.0:
            return distance
        if power in QUICK_POWERS:
            return distance.pow_(power)
        return distance.log2_().mul_(power).exp2_()  # half as long as the general `pow_`


@dataclass(frozen=True)
class SharpBounds(Bounds):
    r"""Full steps up to the limit, none beyond it: ``Θ(max − p) pos − Θ(p − min) neg``, Θ(0) = 1.

    The last step may pass the limit by its own size; `ClampBounds` does not let it.

    >>> import torch
    >>> SharpBounds(max=1.0)(torch.tensor([0.5, 1.5]), torch.tensor(0.1), torch.tensor(0.0))
    tensor([0.1000, 0.0000])
    """

    def __call__(self, param: Tensor, pos: Tensor, neg: Tensor, /) -> Tensor:
        # compared in place, since to multiply booleans takes ten times as long
        if self.max is not None:
            pos = (self.max - param).ge_(0.0) * pos
        if self.min is not None:
            neg = (param - self.min).ge_(0.0) * neg
        return pos - neg

    def passes(self, param: Tensor, ends: Tensor, pos: Tensor, neg: Tensor) -> list[Pass] | None:
        # elsewhere the device would have to be waited for
        if ends.device.type == "cpu" and self._contain(ends):
            return [partial(param.add_, pos - neg)]
        return blockwise(adding(self), param, pos, neg)


@dataclass(frozen=True)
class ClampBounds(Bounds):
    """Full steps, then the parameter is put inside ``[min, max]``.

    >>> import torch
    >>> ClampBounds(0.0, 1.0)(torch.tensor(0.75), torch.tensor(0.5), torch.tensor(0.0))
    tensor(0.2500)
    """

    def __call__(self, param: Tensor, pos: Tensor, neg: Tensor, /) -> Tensor:
        return (param + (pos - neg)).clamp_(self.min, self.max).sub_(param)

    def passes(self, param: Tensor, ends: Tensor, pos: Tensor, neg: Tensor) -> list[Pass] | None:
        return [partial(param.add_, pos - neg)]

    def settle_(self, param: Tensor) -> None:
        # p + (max - p) need not round to max
        param.clamp_(_inside(self.min, param.dtype, math.inf), _inside(self.max, param.dtype, -math.inf))


def _inside(limit: float | None, dtype: torch.dtype, inwards: float) -> float | None:
    """A limit as half precision can represent it, without passing it; as it is in other types."""
    if limit is None or dtype not in (torch.float16, torch.bfloat16):
        return limit
    nearest = torch.tensor(limit, dtype=dtype, device="cpu")
    passes = nearest.item() > limit if inwards < 0 else nearest.item() < limit
    return (nearest.nextafter(torch.full_like(nearest, inwards)) if passes else nearest).item()
