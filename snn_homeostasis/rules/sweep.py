"""A sweep: one step of a rule that is affine in the rate, over all cells at once.

A rule's term is then ``offset + slope * rate``. Where nothing bounds a parameter, the mean of the
term over samples and positions is all that reaches it: it need not be split in two. The sums of
all such cells lie in one buffer, so that what follows them is one operation for all. For the other
cells the term is split for each sample, and what the parts make of a parameter is told by `changes`.
A sweep is prepared once, and holds as long as nothing changes that it relies on. What it cannot do,
or finds wrong, it leaves to `forward` and `update`, whose result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..cells.settings import CellState, Target
from ..cells.unit import Unit
from ..updates.changes import Change, make_all, warn_stuck
from ..updates.finite import is_finite, require_finite
from ..updates.passes import Passes
from .rows import DirectRow, SplitRow, row_of

__all__ = ["Affine", "Sweep"]

Affine = Callable[[CellState, Target], tuple[float, Target] | None]
"""`Homeostasis.affine`."""


class Sweep:
    """The rows of all cells, and the buffers they have in common.

    Args:
        rows: the cells, all on one device.

    Attributes:
        is_laid: whether every change could be laid out in the buffers.
    """

    @torch.inference_mode(False)
    def __init__(self, rows: Sequence[DirectRow | SplitRow]) -> None:
        self.direct = [row for row in rows if isinstance(row, DirectRow)]
        self.split = [row for row in rows if isinstance(row, SplitRow)]
        self.rows = [*self.direct, *self.split]  # in the order of their places
        sizes, device = [row.size for row in self.rows], rows[0].device
        self.outcome = torch.zeros(sum(sizes) + len(rows), dtype=torch.float32, device=device)
        *places, watch = torch.split(self.outcome, [*sizes, len(rows)])
        for row, each in zip(self.rows, watch.unbind(), strict=True):
            row.watch = each
        self._place_direct()
        for row, place in zip(self.split, places[len(self.direct) :], strict=True):
            row.place(place)
        self.is_laid = all(row.is_laid for row in rows)

    @classmethod
    def of(cls, affine: Affine, units: Sequence[Unit]) -> Sweep | None:
        """A sweep over all cells there are; None if one of them needs more than that.

        Raises:
            NoSpikesError: if a cell has no estimate, with the reason.
            ArgumentError: for a target that cannot work.
        """
        rows: list[DirectRow | SplitRow] = []
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
        """Makes the step; false if rates or membranes are wrong, or graphs wait. Nothing was changed then.

        Raises:
            NonFiniteError: if what becomes of a bounded parameter is not finite.
            ArgumentError: if a bound returns a wrong shape. Nothing was changed.
        """
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
        self._weigh_direct()
        if not is_finite(self.outcome):
            return False
        changes = self._changes() if self.split else {}  # a call that finds nothing to do costs as well
        make_all([*self._passes, *changes.values()])
        for row in rows:
            row.tap.forget()
        if changes:
            warn_stuck({f"cell {name!r}": change for name, change in changes.items()})
        return True

    def _changes(self) -> dict[str, Change]:
        """What becomes of the parameters that need both parts, by cell."""
        changes = {row.unit.name: row.change() for row in self.split}
        require_finite([(name, "update", change.outcome) for name, change in changes.items()])
        return changes

    def _place_direct(self) -> None:
        self._passes: list[Passes] = []
        if not self.direct:
            return
        sizes = [row.size for row in self.direct]
        slope = torch.cat([row.slope.flatten() for row in self.direct])
        offset = torch.cat([torch.full_like(row.slope.flatten(), row.offset) for row in self.direct])
        self._whole = (offset, torch.zeros_like(slope), slope, self.outcome[: len(slope)])
        self._parts = list(zip(*(torch.split(each, sizes) for each in self._whole), strict=True))
        for row, (_, sums, _, change) in zip(self.direct, self._parts, strict=True):
            row.place(sums, change)
            self._passes.append(row.passes)

    def _weigh_direct(self) -> None:
        direct = self.direct
        if not direct:
            return
        scale = direct[0].scale
        if all(row.scale == scale for row in direct):
            _weigh(self._whole, scale)
        else:
            for part, row in zip(self._parts, direct, strict=True):
                _weigh(part, row.scale)


def _weigh(part: tuple[Tensor, ...], scale: float) -> None:
    offset, sums, slope, change = part
    torch.addcmul(offset, sums, slope, value=scale, out=change)


def _row_of(affine: Affine, unit: Unit) -> DirectRow | SplitRow | None:
    if not (isinstance(unit.state.plasticity, int | float) and unit.active):
        return None
    total, _ = unit.scaled_rate()
    terms = affine(unit.state, unit.target_for(total, None))
    return None if terms is None else row_of(unit, *terms, total)
