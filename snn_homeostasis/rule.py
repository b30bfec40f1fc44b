"""What every rule is: a drive for each neuron, and the contribution that it makes to a slot."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .cells import MEANS, SUMS, Band, BatchReduction, Cell, CellState, Rate, Target, Unit
from .errors import require
from .updates import Contribution, Finish

__all__ = ["Rule"]

FORMULAS = {"drive", "parts"}


class Rule(ABC):
    """Base of the rules. A new one defines `drive`; one that needs more overrides `parts`.

    Attributes:
        linear: whether the drive of a mean rate is the mean of the drives. A step then takes means
            before it applies the rule. A class with a `drive` or `parts` of its own has to say so.
        relative: whether an update is a share of the size of each entry. Zeros and signs stay.
    """

    linear: bool = False
    relative: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        formula, claim = _first_with(cls, FORMULAS), _first_with(cls, {"linear"})
        if cls.__mro__.index(claim) > cls.__mro__.index(formula):
            cls.linear = False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in FORMULAS:  # of one object alone
            self.linear = False

    @abstractmethod
    def drive(self, rate: Rate, target: Rate) -> Rate:
        """The rule: returns how much each neuron wants its parameter to rise, elementwise and signed.

        Args:
            rate: spikes per step, ``[B, *N]``. A linear rule is asked for the drive at the numbers
                0.0 and 1.0 instead, so its formula should take them.
            target: a number, or a tensor that broadcasts with the rate.

        Returns:
            The shape of the rate, in units of the plasticity.
        """

    def parts(self, cell: Cell, state: CellState, rate: Tensor, target: Rate) -> tuple[Tensor, Tensor]:
        """Returns the positive and the negative part of an update.

        The drive, times the plasticity, is averaged over the positions that share a parameter, split
        by its sign, and each part is reduced over the batch.

        Args:
            cell: gives the receptive view.
            state: the settings of the cell.
            rate: ``[B, *N]``, spikes per step.
            target: a number, or a tensor that broadcasts with the rate.

        Returns:
            ``(pos, neg)``, each broadcasts with the parameter; ``neg`` as a clamp gives it.
        """
        drive = torch.as_tensor(self.drive(rate, target))
        term = cell.connection.receptive(state.param, drive).mean(-1) * state.strength
        return _split(cell, state, term)

    def contribution(self, unit: Unit, target: Target | None, signed: bool) -> Contribution:
        """Applies the rule to one cell.

        Args:
            unit: the cell.
            target: of this call; None for the target of the cell.
            signed: whether the difference of the two parts is enough. A linear rule gives it from the
                mean over the samples: at a batch of 128 a tenth of the work.
        """
        state, (total, samples) = unit.state, unit.observation()
        summed = state.batch_reduction in SUMS
        goal = unit.target_for(total, target, is_blank=not samples)
        strength, finish = state.next_step()
        if self.relative:
            finish = (finish or Finish())._replace(relative=True)
        if isinstance(goal, Band):
            pushes = self._pushes(unit, total, goal, abs(strength) * (samples if summed else 1))
            finish = (finish or Finish())._replace(band=1 if strength > 0 else -1)
            return Contribution(*pushes, samples, summed, unit.rate, finish)
        signed = signed and (summed or state.batch_reduction in MEANS)
        sums = unit.summed_estimate(total, goal, samples=signed) if self.linear else None
        if sums is None:
            parts = self.parts(unit.cell, state, unit.estimate(), goal)
            return unit.slot.checked(*parts, samples, summed, unit.rate, finish)
        term = self._linear_term(strength * samples if signed and summed else strength, *sums)
        if signed:
            pos, neg = unit.connection.shaped_for(state.param, term), None
        else:
            pos, below = _split(unit.cell, state, term)
            neg = below.abs()
        return Contribution(pos, neg, samples, summed, unit.rate, finish)

    def _pushes(self, unit: Unit, total: Tensor, band: Band, strength: float) -> tuple[Tensor, Tensor]:
        """Applies the rule to the mean rate and each edge of a band; a `Finish` keeps what leads to it."""
        self._require_means(unit.state.batch_reduction)
        pushes = [self._push(unit, total, strength, edge) for edge in (band.low, band.high)]
        present = next(push for push in pushes if push is not None)
        up, down = (torch.zeros_like(present) if push is None else push for push in pushes)
        return up, down

    def _push(self, unit: Unit, total: Tensor, strength: float, edge: float | None) -> Tensor | None:
        sums = None if edge is None else unit.summed_estimate(total, edge, samples=True)
        if sums is None:
            return None
        summed, scale, rate = sums
        nonlinear = None if self.linear else self.drive(summed * scale, rate) * strength
        term = self._linear_term(strength, *sums) if nonlinear is None else torch.as_tensor(nonlinear)
        return unit.connection.shaped_for(unit.state.param, term)

    def _require_means(self, reduction: BatchReduction) -> None:
        remedy = "A band is compared with the mean rate over the batch."
        known, has_own = reduction in (*MEANS, *SUMS), type(self).parts is not Rule.parts
        require(known, "batch_reduction", "be the mean or the sum with a Band", reduction, remedy)
        show = f"{type(self).__name__} with `parts` of its own"
        require(not has_own, "target", "be a number or a tensor", None, remedy, show=show)

    def _linear_term(self, strength: float, total: Tensor, scale: float, target: Rate) -> Tensor:
        """Applies a linear rule to the rate ``total * scale``, by its values at the rates 0 and 1."""
        offset = self.drive(0.0, target) * strength
        slope = (self.drive(1.0, target) * strength - offset) * scale
        if isinstance(offset, Tensor) or isinstance(slope, Tensor):
            return offset + slope * total
        return torch.rsub(total, offset, alpha=-slope)  # offset + slope * total, in one operation


def _first_with(cls: type, names: set[str]) -> type:
    return next(base for base in cls.__mro__ if names & vars(base).keys())


def _split(cell: Cell, state: CellState, term: Tensor) -> tuple[Tensor, Tensor]:
    """Splits a term ``[B, ...]`` by its sign, and reduces each part over the batch."""
    shaped_for, reduce = cell.connection.shaped_for, state.batch_reduction
    pos, neg = reduce(term.clamp_min(0.0), 0), reduce(term.clamp_max(0.0), 0)
    return shaped_for(state.param, pos), shaped_for(state.param, neg)
