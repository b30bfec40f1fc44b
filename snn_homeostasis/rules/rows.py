"""Rows: the cells of a sweep, where the sums of each come from and where its change goes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor

from ..cells.settings import Target
from ..cells.unit import Unit
from ..layers.sharded import is_sharded
from ..observe.estimator import zeros_for
from ..observe.neurons import is_inhibited
from ..observe.shortcuts import is_current
from ..updates.changes import Change, change_of, is_changed_in_place
from ..updates.graphs import is_needed_by
from ..updates.passes import Passes
from ..updates.slots import broadcasts

__all__ = ["DirectRow", "Row", "SplitRow", "row_of"]


class Row(ABC):
    """One cell of a sweep.

    Args:
        unit: the cell.
        offset: what the rule adds at the rate 0, on the mean over what is summed.
        slope: what it adds beside for each unit of the sum of the rate, laid out against the weight.
        total: the rate but for a number, as `RateEstimator.scaled` gives it; held until the next step.

    Attributes:
        watch: its entry for the membrane in the buffer that has to be finite.
        scale: the number.
        is_laid: whether what it is told is only laid out, and not changed, by the views of its layer.
    """

    total: Tensor | None
    rows: Tensor | None
    of_samples: Tensor | None
    watch: Tensor
    scale: float
    is_laid: bool

    def __init__(self, unit: Unit, offset: float, slope: Tensor, total: Tensor) -> None:
        # kept one by one: to look them up in modules takes longer than to compare them
        self.unit, self.state, self.rate, self.tap = unit, unit.state, unit.rate, unit.cell.neuron
        self.slot, self.slots, self.reference = unit.slot, list(unit.all_slots), unit.slot.reference
        self.key, self.target, self.group = self.state.key, self.state.target_tensor, self.tap.group
        self.inhibited = is_inhibited(self.tap.module)
        self.leaf = leaf = self.reference.leaf
        self.dtype, self.device, self.leaf_shape = leaf.dtype, leaf.device, leaf.shape
        self.offset, self.slope, self.shape = offset, slope, total.shape
        self.is_laid = self._take(total)

    @property
    @abstractmethod
    def size(self) -> int:
        """How many numbers it puts into that buffer beside."""

    def fits(self) -> bool:
        """Whether all that the sweep was prepared for is still so."""
        leaf = self.leaf
        if not (
            self.unit.active
            and self.rate.steps
            and self.tap.group is self.group
            and self._is_open()
            and not any(slot.pending for slot in self.slots)
            and self.reference.leaf is leaf
            and leaf.dtype is self.dtype
            and leaf.device == self.device
            and leaf.shape == self.leaf_shape
            and self.state._buffers["target_tensor"] is self.target
            and self.state.key == self.key
            and is_inhibited(self.tap.module) == self.inhibited
        ):
            return False
        total, self.scale = self.rate.scaled()
        if total is self.total:
            return True
        if total.shape != self.shape or total.device != self.device:
            return False
        return self._take(total)

    @abstractmethod
    def sum(self) -> None:
        """Sums the rate; where the rule has to be applied to each sample, applies it first."""

    def look(self) -> bool:
        """Puts into the buffer what is finite if the membrane is; false if a graph waits."""
        membrane, graph = self.tap.membrane, self.tap.graph
        if membrane is not None:
            torch.sum(membrane, tuple(range(membrane.ndim)), dtype=torch.float32, out=self.watch)
        return graph is None or not is_needed_by(self.leaf, graph)

    def release(self) -> None:
        """Lets go of the rate, whose memory may be needed."""
        self.total = self.rows = self.of_samples = None

    @abstractmethod
    def _is_open(self) -> bool:
        """Whether what the rule gives may still go to the parameter in this way."""

    @abstractmethod
    def _sums_positions_first(self, rows: Tensor) -> bool:
        """Whether sums over positions are needed before those over samples."""

    def _lay(self, part: Tensor) -> Tensor:
        """A part of the buffer as the parameter needs it."""
        laid = self.unit.cell.connection.like(self.state.param, part.view(self.slope.shape))
        self.is_laid = self.is_laid and _is_view(laid, part) and broadcasts(laid, self.leaf)
        return laid

    @torch.inference_mode(False)
    def _take(self, total: Tensor) -> bool:
        """Looks at another total; false unless the receptive view only lays it out in another shape."""
        rows = self.unit.cell.connection.postsyn_receptive(total)
        self.of_samples = zeros_for(rows[..., :1]) if self._sums_positions_first(rows) else None
        self.rows, self.total = rows, total  # last, since `fits` takes it for all of this
        return _is_view(rows, total) and rows.numel() == total.numel()

    def _summed_positions(self) -> Tensor:
        assert self.rows is not None
        if self.of_samples is None:
            return self.rows
        return torch.sum(self.rows, -1, keepdim=True, dtype=torch.float32, out=self.of_samples)


class DirectRow(Row):
    """A cell whose change is added as it is, so that the mean over all that is summed is enough.

    Attributes:
        passes: the addition.
    """

    sums: Tensor
    passes: Passes

    @property
    def size(self) -> int:
        return self.slope.numel()

    def place(self, sums: Tensor, change: Tensor) -> None:
        """Gives the cell its part of the buffers: for the sums, and for what is made of them."""
        self.sums = sums.view(self.slope.shape)
        self.passes = Passes(self.leaf, [partial(self.leaf.add_, self._lay(change))])

    def sum(self) -> None:
        torch.sum(self._summed_positions(), (0, -1), dtype=torch.float32, out=self.sums)

    def look(self) -> bool:
        self.passes.renew()
        return super().look()

    def _is_open(self) -> bool:
        return self.slot.is_free

    def _sums_positions_first(self, rows: Tensor) -> bool:
        # over both at once, or over samples first, takes twice as long
        return len(rows) > 1 and rows.shape[-1] > 1


class SplitRow(Row):
    """A cell whose change needs the positive and the negative part, or replaces the parameter."""

    @property
    def size(self) -> int:
        return 2 * self.slope.numel()

    def place(self, parts: Tensor) -> None:
        """Gives the cell its part of the buffer for both parts."""
        pos, neg = parts.chunk(2)
        self.pos, self.neg = pos.view(self.slope.shape), neg.view(self.slope.shape)
        self.laid = self._lay(pos), self._lay(neg)
        # the mean over samples is taken of the terms, which are summed then
        self.base = torch.full((), self.offset / self.shape[0], dtype=torch.float32, device=self.device)
        self.exact = torch.promote_types(self.dtype, torch.float32)

    def sum(self) -> None:
        sums = self._summed_positions()[..., 0]
        terms = torch.addcmul(self.base, sums, self.slope, value=self.scale)
        torch.sum(terms.clamp_min(0.0), 0, dtype=torch.float32, out=self.pos)
        torch.sum(terms.clamp_max_(0.0), 0, dtype=torch.float32, out=self.neg)
        self.neg.abs_()

    def change(self) -> Change:
        """What the two parts make of the parameter.

        Raises:
            ArgumentError: if a bound returns a wrong shape.
        """
        pos, neg = (part.to(self.exact, copy=True) for part in self.laid)  # a bound may keep them
        return change_of([self.slot], pos, neg)

    def _is_open(self) -> bool:
        return not self.slot.ledger.is_open

    def _sums_positions_first(self, rows: Tensor) -> bool:
        return rows.shape[-1] > 1


def row_of(unit: Unit, offset: float, slope: Target, total: Tensor) -> DirectRow | SplitRow | None:
    """A cell for a sweep; None if it needs more than that.

    Args:
        unit: the cell.
        offset: as `Homeostasis.affine` gives it.
        slope: likewise.
        total: the rate but for a number.
    """
    if unit.slot.sharded or is_sharded(unit.slot.reference.leaf):
        return None
    if total.device != unit.slot.reference.leaf.device or not is_current(type(unit.rate), "scaled", "rate"):
        return None
    laid = _laid_slope(unit, slope, total)
    if laid is None:
        return None
    is_direct = unit.slot.is_free and is_changed_in_place(unit.slot.reference)
    row = (DirectRow if is_direct else SplitRow)(unit, offset, laid, total)
    return row if row.is_laid else None


def _laid_slope(unit: Unit, slope: Target, total: Tensor) -> Tensor | None:
    """The slope for each sum against the weight; None if it differs between what is summed."""
    spread = torch.as_tensor(slope, dtype=torch.float32, device=total.device).expand(total.shape)
    rows = unit.cell.connection.postsyn_receptive(spread)
    if any(rows.shape[dim] > 1 and rows.stride(dim) for dim in (0, -1)):
        return None
    first = rows[0, ..., 0]
    return first * (first.numel() / rows.numel())


def _is_view(part: Tensor, of: Tensor) -> bool:
    return part.untyped_storage().data_ptr() == of.untyped_storage().data_ptr()
