"""What each process has a part of: the rate of a cell, and what is pending in a slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..cells.unit import Unit
from ..observe.joint import Joint
from ..updates.slots import Slot

__all__ = ["Contribution", "contributions_of"]


class Contribution(Protocol):
    """Something of which every process has a part.

    Attributes:
        name: of its cell.
        label: what it is; equal in all processes, or they cannot be summed.
    """

    name: str

    @property
    def label(self) -> str: ...

    def values(self) -> Tensor:
        """The part of this process, flat, float64."""
        ...

    def is_founded(self, total: Tensor) -> bool:
        """Whether the sum over all processes says what is needed."""
        ...

    def settle(self, total: Tensor) -> None:
        """Takes over the sum over all processes."""
        ...


class RateContribution:
    """The rate of a cell: number of samples, of samples times steps, and sums over the samples.

    Of rates there are two, as of the parts in a `Ledger`.
    """

    def __init__(self, unit: Unit) -> None:
        self.unit, self.name = unit, unit.name
        self.neurons = unit.cell.neuron.neurons
        self.rate = unit.rate.rate if unit.samples else None

    @property
    def label(self) -> str:
        return f"cell {self.name!r} ({'never called' if self.neurons is None else list(self.neurons)})"

    def values(self) -> Tensor:
        if self.rate is None:
            number = 0 if self.neurons is None else self.neurons.numel()
            return torch.zeros(2 + 2 * number, dtype=torch.float64)
        samples, steps = len(self.rate), self.unit.rate.steps
        facts = self.rate.new_tensor([samples, samples * steps], dtype=torch.float64)
        rates = self.rate, self.unit.joint.carried(self.rate, self.unit.rate)
        return torch.cat([facts, *(rate.sum(0, dtype=torch.float64).flatten() for rate in rates)])

    def is_founded(self, total: Tensor) -> bool:
        return True  # a rate that nobody needs may be unknown

    def settle(self, total: Tensor) -> None:
        samples, steps = (round(fact) for fact in total[:2].tolist())
        if samples and self.neurons is not None:
            own, carried = total[2:].chunk(2)
            mean = (own if self.unit.joint.samples in (-1, samples) else carried) / samples
            device = self.unit.slot.reference.leaf.device if self.rate is None else self.rate.device
            mean = mean.reshape(self.neurons).to(device, torch.float32)
            joint = Joint(samples, round(steps / samples), mean)
            self.unit.joint.settle(self.unit.rate, self.rate, joint)


class SlotContribution:
    """All entries in the ledger of a slot: the number of samples of each, then their parts."""

    def __init__(self, name: str, slot: Slot) -> None:
        self.name, self.slot = name, slot
        if not slot.ledger.shares:  # from a checkpoint of one process, or before the model was wrapped
            slot.ledger.add((slot.pos, slot.neg))
        self.shares = slot.ledger.shares
        assert slot.ledger.parts is not None
        self.parts = slot.ledger.parts

    @property
    def label(self) -> str:
        calls = ", ".join(
            f"{'sum' if share.summed else 'mean'} after {share.before} samples" for share in self.shares
        )
        return (
            f"{len(self.shares)} calls of the rule for {self.slot.reference} of cell {self.name!r} "
            f"({list(self.parts.shape[2:])}; {calls})"
        )

    def values(self) -> Tensor:
        samples = self.parts.new_tensor([share.samples for share in self.shares], dtype=torch.float64)
        weights = torch.where(self._summed(samples), samples.sign(), samples)
        return torch.cat([samples, (self._column(weights) * self.parts).flatten()])

    def is_founded(self, total: Tensor) -> bool:
        return bool(total[: len(self.shares)].all())

    def settle(self, total: Tensor) -> None:
        samples, parts = total[: len(self.shares)], total[len(self.shares) :].reshape(self.parts.shape)
        before = samples.new_tensor([share.before for share in self.shares])
        own, carried = parts.chunk(2, dim=1)
        kept = (before == samples) | (before < 0)
        parts = torch.where(self._column(kept), own, carried)
        pos, neg = (parts / self._column(samples.masked_fill(self._summed(samples), 1.0))).sum(0)
        self.slot.take(pos, neg)

    def _summed(self, like: Tensor) -> Tensor:
        return torch.tensor([share.summed for share in self.shares], device=like.device)

    def _column(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *(1,) * (self.parts.ndim - 1))


def contributions_of(units: Sequence[Unit]) -> list[Contribution]:
    """What the cells have to share: the rate of each, and all pending slots, each once."""
    slots: dict[Slot, str] = {}
    for unit in units:
        slots |= {slot: unit.name for slot in unit.all_slots if slot.pending and slot not in slots}
    rates = [RateContribution(unit) for unit in units]
    return [*rates, *(SlotContribution(name, slot) for slot, name in slots.items())]
