"""A slot: what is to be added to one parameter, until it is applied once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .bounds import UpdateBounds
from .checks import require
from .parameters import ParameterReference
from .state import TensorState

__all__ = ["Parts", "Slot", "broadcasts", "unchanged_on_error"]

Parts = tuple[Tensor | None, Tensor | None]


def broadcasts(part: Tensor, param: Tensor) -> bool:
    """Whether ``part`` broadcasts with ``param`` without making it larger."""
    sizes = zip(reversed(part.shape), reversed(param.shape), strict=False)
    return part.ndim <= param.ndim and all(size in (1, wanted) for size, wanted in sizes)


class Slot(TensorState):
    """What is to be added to one parameter, as two magnitudes.

    Parts are kept in float32 or better and in the small shape in which the rule made them.
    For a parameter in half precision, what rounding takes from an update is kept and added
    to the next.

    Args:
        reference: the parameter.
        limits: what the parameter stays within, whatever the bounds.

    Attributes:
        told_stuck: whether the user knows that a row of the parameter is stuck at a limit.
    """

    def __init__(self, reference: ParameterReference, limits: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.reference = reference
        self.limits = limits
        self.told_stuck = False
        self._bounds: UpdateBounds | None = None
        for name in ("pos", "neg", "residue"):
            self.register_buffer(name, None)

    pos: Tensor | None
    neg: Tensor | None
    residue: Tensor | None

    @property
    def bounds(self) -> UpdateBounds | None:
        """A bound, any callable ``(param, pos, neg) -> delta``, or None."""
        return self._bounds

    @bounds.setter
    def bounds(self, bounds: UpdateBounds | None) -> None:
        require(
            bounds is None or callable(bounds),
            "bounds",
            "be None or a callable (param, pos, neg) -> delta",
            bounds,
            "Take for example `ClampBounds(-1.0, 1.0)`.",
        )
        self._bounds = bounds

    @property
    def pending(self) -> bool:
        """Whether anything was added since the slot was last emptied."""
        return self.pos is not None or self.neg is not None

    def add(self, pos: Tensor | None, neg: Tensor | None) -> None:
        """Adds two parts that broadcast with the parameter; the sign of ``neg`` is dropped."""
        param = self.reference.tensor
        dtype = torch.promote_types(param.dtype, torch.float32)
        fresh = {"pos": pos, "neg": None if neg is None else neg.abs()}
        for name, part in fresh.items():
            if part is not None:
                self._require_fits(name, part, param)
        for name, part in fresh.items():
            if part is not None:
                part = part.detach().to(param.device, dtype)
                held = getattr(self, name)
                setattr(self, name, part.clone() if held is None else held.to(param.device) + part)

    def empty(self) -> None:
        """Drops what is pending; what rounding has kept back stays."""
        self.pos = self.neg = None

    def _require_fits(self, name: str, part: Tensor, param: Tensor) -> None:
        require(
            broadcasts(part, param),
            name,
            f"broadcast to {self.reference}, {list(param.shape)}",
            None,
            "Bring it there with `connection.like_bias`, or reduce B and L first.",
            show=f"shape {list(part.shape)}",
        )

    def extra_repr(self) -> str:
        return f"{self.reference}, bounds={self._bounds}, pending={self.pending}"


@contextmanager
def unchanged_on_error(slots: Iterable[Slot]) -> Iterator[None]:
    """Takes back what was added to slots if the block is left by an error or an interruption.

    Slots that were applied in the block stay empty.
    """
    before = [(slot, slot.pos, slot.neg) for slot in slots]
    try:
        yield
    except BaseException:
        for slot, pos, neg in before:
            if slot.pending:
                slot.pos, slot.neg = pos, neg
        raise
