"""A slot: what is to be added to one parameter, until it is applied once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import require
from ..layers.parameters import ParameterReference
from ..layers.sharded import is_sharded
from ..state import TensorState
from .bounds import UpdateBounds
from .ledger import Ledger, Share

__all__ = ["Slot", "broadcasts", "unchanged_on_error"]


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
        sharded: whether the parameter is spread over processes.
        ledger: what was added, as long as several processes have to share it.
        told_stuck: whether the user knows that a row of the parameter is stuck at a limit.
    """

    def __init__(self, reference: ParameterReference, limits: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.reference = reference
        self.limits = limits
        self.sharded = is_sharded(reference.leaf)
        self.ledger = Ledger()
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
        buffers = self._buffers  # whose look-up as attributes takes longer than all else
        return buffers["pos"] is not None or buffers["neg"] is not None

    @property
    def is_free(self) -> bool:
        """Whether nothing stands between what is added and the parameter."""
        ledger = self._modules["ledger"]
        return self._bounds is None and self.limits is None and not ledger.is_open  # type: ignore[union-attr]

    def add(self, pos: Tensor | None, neg: Tensor | None, share: Share | None = None) -> None:
        """Adds two parts that broadcast with the parameter; the sign of ``neg`` is dropped.

        Args:
            pos: raises the parameter.
            neg: lowers it.
            share: how they count among those of several processes.
        """
        param = self.reference.tensor
        own = self._fitted(pos, "pos", param), self._fitted(neg, "neg", param)
        self.pos, self.neg = _sum(self.pos, own[0]), _sum(self.neg, own[1])
        self.ledger.add(own, share)

    def take(self, pos: Tensor, neg: Tensor) -> None:
        """Puts what all processes have added in the place of what this one has."""
        param = self.reference.tensor
        dtype = torch.promote_types(param.dtype, torch.float32)
        self.pos, self.neg = (part.to(param.device, dtype) for part in (pos, neg))

    def empty(self) -> None:
        """Drops what is pending; what rounding has kept back stays."""
        if self.pending:
            self.pos = self.neg = None
            self.ledger.empty()

    def _fitted(self, part: Tensor | None, name: str, param: Tensor) -> Tensor | None:
        if part is None:
            return None
        require(
            broadcasts(part, param),
            name,
            f"broadcast to {self.reference}, {list(param.shape)}",
            None,
            "Bring it there with `connection.like_bias`, or reduce B and L first.",
            show=f"shape {list(part.shape)}",
        )
        part = part.detach().to(param.device, torch.promote_types(param.dtype, torch.float32))
        return part.abs() if name == "neg" else part.clone()

    def extra_repr(self) -> str:
        return f"{self.reference}, bounds={self._bounds}, pending={self.pending}"


@contextmanager
def unchanged_on_error(slots: Iterable[Slot]) -> Iterator[None]:
    """Takes back what was added to slots if the block is left by an error or an interruption.

    Slots that were applied in the block stay empty.
    """
    before = [(slot, slot.pos, slot.neg, slot.ledger.entries) for slot in slots]
    try:
        yield
    except BaseException:
        for slot, pos, neg, entries in before:
            if slot.pending:
                slot.pos, slot.neg, slot.ledger.entries = pos, neg, entries
        raise


def _sum(held: Tensor | None, part: Tensor | None) -> Tensor | None:
    if held is None or part is None:
        return part if held is None else held
    return held.to(part.device) + part
