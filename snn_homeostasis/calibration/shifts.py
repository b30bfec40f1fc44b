"""Shifts: what a replay says of the shift that brings a population to its target."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from .goals import errors_of
from .populations import Population
from .replay import Replay
from .search import Found, find_shift

__all__ = ["shift_of", "threshold_of"]

FIRST_STEP = 0.05  # of a threshold
ALONE, ROUNDS = 0.005, 12  # of the target: what is not worth another round of replays; their number at most


def shift_of(population: Population, replay: Replay, start: Tensor) -> Tensor:
    """Finds the shift of each row, ``[rows]``, that brings it to its target; notes what it is to reach."""
    search = _Search(population, replay)
    total, found = search.together(start) if replay.is_coupled else search.alone(start)
    is_damped = (replay.gain >= 0) & (replay.gain < 1)
    if not replay.is_coupled and replay.assume(~found.is_reached & is_damped):
        search = _Search(population, replay)
        total, found = search.alone(start)
    population.predicted, population.is_reached = found.error, found.is_reached
    return total * search.sign


class _Search:
    """Asks a replay for shifts that bring its rows to their targets."""

    def __init__(self, population: Population, replay: Replay) -> None:
        self.population, self.replay = population, replay
        self.sign = replay.gain.sign()
        self.step = FIRST_STEP * threshold_of(population.neuron) / replay.gain.abs().clamp_min(1e-3)

    def error(self, shift: Tensor, live: bool = False) -> Tensor:
        """How far each row is from its target with a shift."""
        rates = self.replay.rates(shift * self.sign, live=live)
        return errors_of(self.population, rates, self.replay.rows)

    def alone(self, start: Tensor) -> tuple[Tensor, Found]:
        """Finds the shift of each row where no row acts on another."""
        found = find_shift(self.error, start, self.step)
        return found.shift, found

    def together(self, start: Tensor) -> tuple[Tensor, Found]:
        """Finds the shifts of rows that act on each other.

        In each round they do so as in the round before, and move by half of what each of them asks for.
        """
        total, step = torch.zeros_like(self.step), self.step
        for _ in range(ROUNDS):
            found = find_shift(partial(self._error_near, total), start, step, close=0.2)
            if float((start - found.error).abs().mean()) <= ALONE:
                break
            total = total + found.shift * 0.5
            start = self.error(total, live=True)
            step = (found.shift.abs() / 4).clamp_min(1e-2 * self.step)
        return total, replace(found, error=start)

    def _error_near(self, total: Tensor, shift: Tensor) -> Tensor:
        return self.error(total + shift)


def threshold_of(neuron: nn.Module) -> float:
    """The largest threshold of a neuron's, 1 where it has none; not below what a search can step in."""
    threshold = torch.as_tensor(getattr(neuron, "threshold", 1.0))
    return float(threshold.abs().max().clamp_min(1e-3))
