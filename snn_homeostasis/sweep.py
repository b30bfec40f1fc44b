"""A sweep: one step of a rule that is affine in the rate, over all cells at once.

Where nothing bounds a parameter, and a rule's term is ``offset + slope * rate``, its mean over
samples and positions is all that reaches the parameter: it need not be split in two. The sums
of all cells lie in one buffer, so that what follows them is one operation for all. A sweep is
prepared once, and holds as long as nothing changes that it relies on. What it cannot do, or finds
wrong, it leaves to `forward` and `update`, whose result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .changes import is_changed_in_place, make_all
from .checks import is_finite
from .estimator import zeros_for
from .graphs import is_needed_by
from .neurons import is_inhibited
from .passes import Passes
from .settings import CellState, Target
from .sharded import is_sharded
from .shortcuts import is_current
from .slots import Slot, broadcasts
from .units import Unit

__all__ = ["Affine", "Sweep"]

Affine = Callable[[CellState, Target], tuple[float, Target] | None]
"""`Homeostasis.affine`."""


class Row:
    """One cell of a sweep: where its sums come from, and where its change goes.

    Args:
        unit: the cell.
        offset: what the rule adds at the rate 0.
        slope: what it adds beside for each unit of the sum of the rate, laid out against the weight.
        total: the rate but for a number, as `RateEstimator.scaled` gives it; held until the next step.
    """

    total: Tensor | None
    rows: Tensor | None
    of_samples: Tensor | None
    sums: Tensor
    watch: Tensor
    passes: Passes
    scale: float

    def __init__(self, unit: Unit, offset: float, slope: Tensor, total: Tensor) -> None:
        # kept one by one: to look them up in modules takes longer than to compare them
        self.unit, self.state, self.rate, self.tap = unit, unit.state, unit.rate, unit.cell.neuron
        self.slot, self.slots, self.reference = unit.slot, list(unit.all_slots), unit.slot.reference
        self.key, self.target, self.group = self.state.key, self.state.target_tensor, self.tap.group
        self.inhibited = is_inhibited(self.tap.module)
        self.leaf = leaf = self.reference.leaf
        self.dtype, self.device, self.leaf_shape = leaf.dtype, leaf.device, leaf.shape
        self.offset, self.slope, self.shape = offset, slope, total.shape
        self.is_view = self._take(total)

    def place(self, sums: Tensor, change: Tensor, watch: Tensor) -> bool:
        """Gives the cell its part of the buffers; false if its change cannot be laid out there."""
        self.sums, self.watch = sums.view(self.slope.shape), watch
        laid = self.unit.cell.connection.like(self.state.param, change.view(self.slope.shape))
        self.passes = Passes(self.leaf, [partial(self.leaf.add_, laid)])
        return _is_view(laid, change) and broadcasts(laid, self.leaf)

    def fits(self) -> bool:
        """Whether all that the sweep was prepared for is still so."""
        leaf = self.leaf
        if not (
            self.unit.active
            and self.rate.steps
            and self.tap.group is self.group
            and self.slot.is_free
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

    def sum(self) -> None:
        """Puts the sums of the rate into the buffer."""
        rows = self.rows
        assert rows is not None
        if self.of_samples is not None:
            rows = torch.sum(rows, -1, keepdim=True, dtype=torch.float32, out=self.of_samples)
        torch.sum(rows, (0, -1), dtype=torch.float32, out=self.sums)

    def look(self) -> bool:
        """Puts into the buffer what is finite if the membrane is; false if a graph waits."""
        membrane, graph = self.tap.membrane, self.tap.graph
        if membrane is not None:
            torch.sum(membrane, tuple(range(membrane.ndim)), dtype=torch.float32, out=self.watch)
        self.passes.renew()
        return graph is None or not is_needed_by(self.leaf, graph)

    def make(self) -> None:
        """Changes the parameter; does not do so again if called again."""
        self.passes.make()
        self.tap.forget()

    def release(self) -> None:
        """Lets go of the rate, whose memory may be needed."""
        self.total = self.rows = self.of_samples = None

    @torch.inference_mode(False)
    def _take(self, total: Tensor) -> bool:
        """Looks at another total; false unless the receptive view only lays it out in another shape."""
        rows = self.unit.cell.connection.postsyn_receptive(total)
        self.total, self.rows = total, rows
        # over positions first: over both at once, or over samples first, takes twice as long
        self.of_samples = zeros_for(rows[..., :1]) if len(rows) > 1 and rows.shape[-1] > 1 else None
        return _is_view(rows, total) and rows.numel() == total.numel()


class Sweep:
    """The rows of all cells, and the buffers they have in common.

    Args:
        rows: the cells, all on one device.

    Attributes:
        is_laid: whether every change could be laid out in the buffers.
    """

    @torch.inference_mode(False)
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        sizes, device = [row.slope.numel() for row in rows], rows[0].device
        offset = torch.cat([torch.full((size,), row.offset) for row, size in zip(rows, sizes, strict=True)])
        slope = torch.cat([row.slope.flatten() for row in rows])
        sums = torch.zeros(sum(sizes), device=device)
        self.outcome = torch.zeros(sum(sizes) + len(rows), device=device)
        change, watch = torch.split(self.outcome, [sum(sizes), len(rows)])
        self.whole = (offset.to(device), sums, slope, change)
        self.parts = list(zip(*(torch.split(each, sizes) for each in self.whole), strict=True))
        places = zip(rows, self.parts, watch, strict=True)
        self.is_laid = all(row.place(part[1], part[3], each) for row, part, each in places)

    @classmethod
    def of(cls, affine: Affine, units: Sequence[Unit]) -> Sweep | None:
        """A sweep over all cells there are; None if one of them needs more than that.

        Raises:
            NoSpikesError: if a cell has no estimate, with the reason.
            ArgumentError: for a target that cannot work.
        """
        rows: list[Row] = []
        for unit in units:  # one that cannot ends the search
            row = _row_of(affine, unit)
            if row is None or row.device != (rows or [row])[0].device:
                return None
            rows.append(row)
        if len({id(row.leaf) for row in rows}) < max(1, len(rows)):  # tied, or nothing there
            return None
        sweep = cls(rows)
        return sweep if sweep.is_laid else None

    def fits(self) -> bool:
        """Whether all that it was prepared for is still so."""
        return all(row.fits() for row in self.rows)

    def release(self) -> None:
        """Lets go of the rates, until `fits` looks at them anew."""
        for row in self.rows:
            row.release()

    def run(self) -> bool:
        """Makes the step; false if something is wrong, and nothing was changed."""
        if torch.is_grad_enabled():  # to enter a context takes as long as an operation
            with torch.no_grad():
                return self._run()
        return self._run()

    def _run(self) -> bool:
        rows = self.rows
        for row in rows:
            row.sum()
        for row in rows:
            if not row.look():
                return False
        scale = rows[0].scale
        if all(row.scale == scale for row in rows):
            self._weigh(self.whole, scale)
        else:
            for part, row in zip(self.parts, rows, strict=True):
                self._weigh(part, row.scale)
        if not is_finite(self.outcome):
            return False
        make_all(rows)
        return True

    @staticmethod
    def _weigh(part: tuple[Tensor, ...], scale: float) -> None:
        offset, sums, slope, change = part
        torch.addcmul(offset, sums, slope, value=scale, out=change)


def _row_of(affine: Affine, unit: Unit) -> Row | None:
    number = isinstance(unit.state.plasticity, int | float)
    if not (
        number and unit.active and is_current(type(unit.rate), "scaled", "rate") and _is_direct(unit.slot)
    ):
        return None
    total, _ = unit.scaled_rate()
    terms = affine(unit.state, unit.target_for(total, None))
    if terms is None or total.device != unit.slot.reference.leaf.device:
        return None
    offset, slope = terms
    laid = _laid_slope(unit, slope, total)
    row = None if laid is None else Row(unit, offset, laid, total)
    return row if row is not None and row.is_view else None


def _is_direct(slot: Slot) -> bool:
    """Whether what is added to a slot is added to its parameter as it is."""
    is_whole = not slot.sharded and not is_sharded(slot.reference.leaf)
    return is_whole and slot.is_free and is_changed_in_place(slot.reference)


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
