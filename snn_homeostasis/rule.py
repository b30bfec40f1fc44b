"""What every rule is: a drive for each neuron, and the contribution that it makes to a slot."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .cells import MEANS, SUMS, Cell, CellState, Target, Unit
from .updates import Contribution

__all__ = ["Rule"]

FORMULAS = {"drive", "parts"}


class Rule(ABC):
    """Base of the rules. A new one defines `drive`; one that needs more overrides `parts`.

    Attributes:
        linear: whether the drive of a mean rate is the mean of the drives. A step then takes means
            before it applies the rule. A class with a `drive` or `parts` of its own has to say so.
    """

    linear: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        formula, claim = _first_with(cls, FORMULAS), _first_with(cls, {"linear"})
        if cls.__mro__.index(claim) > cls.__mro__.index(formula):
            cls.linear = False

    @abstractmethod
    def drive(self, rate: Target, target: Target) -> Target:
        """The rule: returns how much each neuron wants its parameter to rise, elementwise and signed.

        Args:
            rate: spikes per step, ``[B, *N]``. A linear rule is asked for the drive at the numbers
                0.0 and 1.0 instead, so its formula should take them.
            target: a number, or a tensor that broadcasts with the rate.

        Returns:
            The shape of the rate, in units of the plasticity.
        """

    def parts(self, cell: Cell, state: CellState, rate: Tensor, target: Target) -> tuple[Tensor, Tensor]:
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
        term = cell.connection.postsyn_receptive(drive).mean(-1) * state.strength
        return _split(cell, state, term)

    def contribution(self, unit: Unit, target: Target | None, signed: bool) -> Contribution:
        """Applies the rule to one cell.

        Args:
            unit: the cell.
            target: of this call; None for the target of the cell.
            signed: whether the difference of the two parts is enough. A linear rule gives it from the
                mean over the samples: at a batch of 128 a tenth of the work.
        """
        state, samples = unit.state, unit.samples
        summed = state.batch_reduction in SUMS
        signed = signed and (summed or state.batch_reduction in MEANS)
        is_linear = self.linear and FORMULAS.isdisjoint(vars(self))  # an object may have its own, too
        sums = unit.summed_estimate(target, samples=signed) if is_linear else None
        if sums is None:
            parts = self.parts(unit.cell, state, *unit.estimate(target))
            return unit.slot.checked(*parts, samples, summed, unit.rate, state.finish)
        term = self._linear_term(state.strength * samples if signed and summed else state.strength, *sums)
        if signed:
            pos, neg = unit.connection.shaped_for(state.param, term), None
        else:
            pos, below = _split(unit.cell, state, term)
            neg = below.abs()
        return Contribution(pos, neg, samples, summed, unit.rate, state.finish)

    def _linear_term(self, strength: float, total: Tensor, scale: float, target: Target) -> Tensor:
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
