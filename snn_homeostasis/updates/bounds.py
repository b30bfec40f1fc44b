"""Bounds: how the two parts of an update become a change of the parameter.

A bound is any callable ``(param, pos, neg) -> delta``: ``param`` is the parameter, ``pos`` and
``neg`` are magnitudes that broadcast with it, and ``delta`` is added to it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, split

from ..errors import is_number, require
from ..layers import is_distributed
from ..state import Code

__all__ = [
    "BOUNDS_CODE",
    "HALVES",
    "Bounds",
    "ClampBounds",
    "Operation",
    "PowerBounds",
    "SharpBounds",
    "UpdateBounds",
    "check_bounds",
    "is_built_in",
]

HALVES = (torch.float16, torch.bfloat16)

Operation = Callable[[], object]

QUICK_POWERS = (0.5, 2.0, 3.0)  # `pow_` computes these much faster than others
# entries of a block: on a CPU what stays in its cache, elsewhere what fills the device
ON_CPU, ELSEWHERE = 2**17, 2**24


class UpdateBounds(Protocol):
    """Anything that turns magnitudes into a delta: a function, or a `Bounds`."""

    def __call__(self, param: Tensor, pos: Tensor, neg: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Bounds(ABC):
    """Limits of a parameter, and a formula that respects them. A new kind defines `__call__`.

    Args:
        min: lower limit, in the unit of the parameter, or None.
        max: upper limit, or None.

    Raises:
        ArgumentError: if both limits are None, one is no finite number, or ``min >= max``.

    >>> import torch
    >>> class HalfSteps(Bounds):
    ...     def __call__(self, param, pos, neg):
    ...         return 0.5 * (pos - neg)
    >>> HalfSteps(max=1.0)(torch.tensor(0.75), torch.tensor(0.5), torch.tensor(0.0))
    tensor(0.2500)
    """

    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.min, self.max) if limit is not None]
        found = f"`min = {self.min}, max = {self.max}`"
        named = bool(limits) and all(is_number(each) and math.isfinite(each) for each in limits)
        remedy = "Pass `min=`, `max=` or both; None leaves a side without a limit."
        require(named, "min, max", "name at least one limit, a finite number", None, remedy, show=found)
        ordered = len(limits) < 2 or limits[0] < limits[1]
        require(ordered, "min", "be < `max`", None, "Swap the two limits.", show=found)

    @abstractmethod
    def __call__(self, param: Tensor, pos: Tensor, neg: Tensor, /) -> Tensor:
        """Returns the delta of ``param`` for the magnitudes ``pos`` and ``neg``."""

    def outcome(self, param: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Returns what is finite exactly if the delta and the parameter are."""
        return self(torch.stack(param.aminmax()), pos.amax(), neg.amax())

    def operations(self, param: Tensor, pos: Tensor, neg: Tensor) -> list[Operation]:
        """Returns operations that add the delta in place; each of them changes ``param`` once.

        They take block after block of rows, since the formula allocates as much as it is given.
        """
        return [partial(self._change_, *block) for block in _blocks(param, pos, neg)]

    def _change_(self, param: Tensor, pos: Tensor, neg: Tensor) -> None:
        param.add_(self(param, pos, neg))


@dataclass(frozen=True)
class PowerBounds(Bounds):
    r"""Soft bounds: the nearer the limit, the smaller the step toward it.

    .. math:: \Delta p = ((max - p)_+)^{\mu_+} pos - ((p - min)_+)^{\mu_-} neg

    with p the parameter, and ₊ a clamp at 0: outside its limits it moves only inwards. With power 1
    these are the multiplicative bounds of Kistler and van Hemmen (2000), with other powers the bounds
    of Gütig et al. (2003). A limit of None leaves its side unbounded.

    Args:
        min: lower limit or None.
        max: upper limit or None.
        power: μ > 0, or the pair (upper, lower).
        scaled: divide each distance by ``max - min``. Needs both limits.

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
        positive = len(self._powers) == 2 and all(is_number(mu) and 0 < mu < math.inf for mu in self._powers)
        remedy = "For a step function at the limit take `SharpBounds`."
        require(positive, "power", "be > 0, or a pair of such numbers", self.power, remedy)
        upper, lower = self._powers  # a pair of equal powers is that power: the same bounds compare equal
        object.__setattr__(self, "power", upper if upper == lower else (upper, lower))
        has_range = not self.scaled or (self.min is not None and self.max is not None)
        expected = "be False unless both limits are given"
        require(has_range, "scaled", expected, self.scaled, "Give `min` and `max`.")

    def __call__(self, param: Tensor, pos: Tensor, neg: Tensor, /) -> Tensor:
        upper, lower = self._powers
        if self.min is not None:
            neg = self._factor(param - self.min, lower).mul_(neg)
        if self.max is None:
            return pos - neg
        return self._factor(self.max - param, upper).mul_(pos).sub_(neg)

    def _change_(self, param: Tensor, pos: Tensor, neg: Tensor) -> None:
        if self._powers != (1.0, 1.0) or self.min is None or self.max is None or not self._contain(param):
            param.add_(self(param, pos, neg))
            return
        # inside the limits the linear formula is a step toward a centre: a third of the operations
        pull = pos + neg
        centre = (pos * self.max + neg * self.min).div_(pull).nan_to_num_(0.0)  # 0 / 0 where nothing pulls
        param.addcmul_(centre - param, pull / (self.max - self.min) if self.scaled else pull)

    def _contain(self, param: Tensor) -> bool:
        """Whether a parameter is inside both limits; only a CPU says so without a wait."""
        if param.device.type != "cpu" or is_distributed(param):
            return False
        low, high = param.aminmax()
        return low.item() >= (self.min or 0.0) and high.item() <= (self.max or 0.0)

    @property
    def _powers(self) -> tuple[float, float]:
        return self.power if isinstance(self.power, tuple) else (self.power, self.power)

    def _factor(self, distance: Tensor, power: float) -> Tensor:
        """Raises a distance to its power, in place."""
        distance = distance.clamp_min_(0.0)
        if self.scaled and self.min is not None and self.max is not None:
            distance = distance.div_(self.max - self.min)
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
        # in place, because a product with booleans takes ten times as long
        if self.max is not None:
            pos = (self.max - param).ge_(0.0) * pos
        if self.min is not None:
            neg = (param - self.min).ge_(0.0) * neg
        return pos - neg


@dataclass(frozen=True)
class ClampBounds(Bounds):
    """Full steps, and the parameter ends inside ``[min, max]``.

    >>> import torch
    >>> ClampBounds(0.0, 1.0)(torch.tensor(0.75), torch.tensor(0.5), torch.tensor(0.0))
    tensor(0.2500)
    """

    def __call__(self, param: Tensor, pos: Tensor, neg: Tensor, /) -> Tensor:
        return (param + (pos - neg)).clamp_(self.min, self.max).sub_(param)

    def outcome(self, param: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        low, high = param.aminmax()
        return pos - neg + (low + high)

    def operations(self, param: Tensor, pos: Tensor, neg: Tensor) -> list[Operation]:
        # a clamp, because p + (max - p) need not round to max
        low, high = _inside(self.min, param.dtype, math.inf), _inside(self.max, param.dtype, -math.inf)
        return [partial(param.add_, pos - neg), partial(param.clamp_, low, high)]


BUILT_IN = (PowerBounds, SharpBounds, ClampBounds)


def check_bounds(bounds: object) -> None:
    """Raises ArgumentError for what is no formula; a class is none."""
    works = bounds is None or (callable(bounds) and not isinstance(bounds, type))
    remedy = "Take for example `ClampBounds(-1.0, 1.0)`."
    require(works, "bounds", "be None or a callable (param, pos, neg) -> delta", bounds, remedy)


def is_built_in(bounds: UpdateBounds | None) -> TypeGuard[Bounds]:
    """Whether a formula is known to be elementwise, and largest at an end of the values."""
    return type(bounds) in BUILT_IN


def _write(bounds: UpdateBounds | None) -> tuple[float, ...]:
    """Writes a kind (0: none, -1: a formula of the user's own), the limits, the powers, and `scaled`."""
    if not is_built_in(bounds):
        return (0 if bounds is None else -1, -math.inf, math.inf, 1, 1, False)
    low, high = (
        -math.inf if bounds.min is None else bounds.min,
        math.inf if bounds.max is None else bounds.max,
    )
    powers, scaled = (bounds._powers, bounds.scaled) if isinstance(bounds, PowerBounds) else ((1, 1), False)
    return (1 + BUILT_IN.index(type(bounds)), low, high, *powers, scaled)


def _read(numbers: Sequence[float], present: UpdateBounds | None) -> UpdateBounds | None:
    kind, *limits, upper, lower, scaled = numbers
    if kind <= 0:
        return present if kind < 0 else None
    made, (low, high) = BUILT_IN[int(kind) - 1], (limit if math.isfinite(limit) else None for limit in limits)
    if made is PowerBounds:
        return PowerBounds(low, high, (upper, lower), bool(scaled))
    return made(low, high)


BOUNDS_CODE = Code(_write, _read)


def _inside(limit: float | None, dtype: torch.dtype, inwards: float) -> float | None:
    """Returns a limit as half precision can represent it without passing it; others unchanged."""
    if limit is None or dtype not in HALVES:
        return limit
    nearest = torch.tensor(limit, dtype=dtype, device="cpu")
    passes = nearest.item() > limit if inwards < 0 else nearest.item() < limit
    return (nearest.nextafter(torch.full_like(nearest, inwards)) if passes else nearest).item()


def _blocks(value: Tensor, pos: Tensor, neg: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Cuts a value into blocks of rows, each with the parts that belong to it."""
    size = ON_CPU if value.device.type == "cpu" else ELSEWHERE
    if value.numel() <= size or is_distributed(value):
        return [(value, pos, neg)]
    rows = max(1, size * len(value) // value.numel())
    return zip(*(_rows_of(part, value, rows) for part in (value, pos, neg)), strict=True)


def _rows_of(part: Tensor, value: Tensor, rows: int) -> Sequence[Tensor]:
    aligned = part.reshape((1,) * (value.ndim - part.ndim) + part.shape)
    return split(aligned.expand(len(value), *aligned.shape[1:]), rows)
