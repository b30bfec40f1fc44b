"""Search: the shift at which each row is at its target, all rows at once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Found", "find_shift"]

DOUBLINGS, CUTS = 14, 24
CLOSE = 2e-3  # of the target
NARROW = 1e-3  # of the first step; the rate jumps inside of such a bracket


@dataclass(frozen=True)
class Found:
    """What a search found, for each row.

    Args:
        shift: the best one that was tried; 0 where the target is out of reach.
        start: the distance to the target without a shift, relative to it; positive if too quiet.
        error: the distance with the shift.
        is_reached: whether the target lies between the rates at two shifts.
    """

    shift: Tensor
    start: Tensor
    error: Tensor
    is_reached: Tensor


def find_shift(error: Callable[[Tensor], Tensor], start: Tensor, step: Tensor, close: float = 0.0) -> Found:
    """Finds the shift at which an error is zero.

    Args:
        error: for shifts ``[rows]`` the relative distances to the target: positive if too quiet,
            negative if too loud. It falls with the shift.
        start: the error without a shift.
        step: the first step of each row, > 0. It doubles until the target is passed.
        close: the share of the error at the start that may be left.
    """
    bracket = _Bracket(error, start, step, (close * start.abs()).clamp_min(CLOSE))
    bracket.widen(step)
    bracket.cut()
    shift = torch.where(bracket.is_open, torch.zeros_like(step), bracket.shift)
    left = torch.where(bracket.is_open, start, bracket.left)
    return Found(shift, start, left, ~bracket.is_open)


class _Bracket:
    """For each row a shift that is too low and one that is too high, and the best that was tried."""

    def __init__(self, error: Callable[[Tensor], Tensor], start: Tensor, step: Tensor, close: Tensor) -> None:
        self._error, self._narrow, self._close = error, NARROW * step, close
        self.shift = self.low = self.high = torch.zeros_like(step)
        self.left = self.quiet = self.loud = start
        self.is_done = start.abs() <= close
        self.is_open = ~self.is_done  # whether one of the two is unknown

    def widen(self, step: Tensor) -> None:
        """Steps from 0 toward the target until it is passed."""
        direction, probe = self.left.sign(), self.shift
        for doubling in range(DOUBLINGS):
            if not self.is_open.any():
                return
            probe = torch.where(self.is_open, direction * step * 2**doubling, probe)
            error = self._try(probe, self.is_open)
            self.is_open = self.is_open & ~self.is_done & (error * direction > 0)

    def cut(self) -> None:
        """Cuts the brackets, in turn where a line between the errors crosses zero and in the middle."""
        for turn in range(CUTS):
            active = ~self.is_done & ~self.is_open & (self.high - self.low > self._narrow)
            if not active.any():
                return
            share = self.quiet / (self.quiet - self.loud) if turn % 3 != 2 else 0.5
            probe = self.low + (self.high - self.low) * share
            self._try(torch.where(active, probe, self.shift), active)

    def _try(self, probe: Tensor, active: Tensor) -> Tensor:
        """Narrows the brackets of the active rows by the error at a shift."""
        error = self._error(probe)
        is_quiet, is_loud = active & (error > 0), active & (error < 0)
        self.low = torch.where(is_quiet, probe, self.low)
        self.quiet = torch.where(is_quiet, error, self.quiet)
        self.high = torch.where(is_loud, probe, self.high)
        self.loud = torch.where(is_loud, error, self.loud)
        better = active & (error.abs() < self.left.abs())
        self.shift = torch.where(better, probe, self.shift)
        self.left = torch.where(better, error, self.left)
        self.is_done = self.is_done | (active & (error.abs() <= self._close))
        return error
