"""The share of one process in what all of them sum: the rate of a cell, and what waits in a slot."""

from collections.abc import Sequence
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from ..cells import MEANS, SUMS, BatchReduction, Unit
from ..errors import require
from ..updates import Bounds, Contribution, Slot, UpdateBounds

__all__ = ["Share", "require_mean_or_sum", "shares_of"]


class Share(Protocol):
    """Something of which every process has a part; processes with other labels cannot be summed."""

    name: str  # of its cell
    label: str

    def values(self) -> Tensor: ...  # flat, float64

    def is_observed(self, total: Tensor) -> bool: ...  # whether samples stand behind the sum

    def accept(self, total: Tensor) -> None: ...  # the sum over all processes


class RateShare:
    """The rate of a cell: number of samples, and the sum over them."""

    def __init__(self, unit: Unit) -> None:
        self.unit, self.name = unit, unit.name
        self.neurons = unit.cell.neuron.neurons
        size = "never called" if self.neurons is None else list(self.neurons)
        self.label = f"cell {self.name!r} ({size}; {_described(unit)})"

    def values(self) -> Tensor:
        rate = self.unit.rate
        if not rate.steps or not self.unit.cell.neuron.samples:
            return torch.zeros(1 + (0 if self.neurons is None else self.neurons.numel()), dtype=torch.float64)
        sums = rate.rate.sum(0, dtype=torch.float64).flatten()
        return torch.cat([sums.new_tensor([len(rate.rate)]), sums])

    def is_observed(self, total: Tensor) -> bool:
        return True  # a rate that no update needs may be unknown

    def accept(self, total: Tensor) -> None:
        if total[0] and self.neurons is not None:
            mean = (total[1:] / total[0]).reshape(self.neurons)
            own = self.unit.rate.total
            device = self.unit.slot.reference.leaf.device if own is None else own.device
            self.unit.rate.joint = mean.to(device, torch.float32)


class SlotShare:
    """All that waits in a slot: the number of samples of each contribution, then their parts."""

    def __init__(self, name: str, slot: Slot) -> None:
        self.name, self.slot = name, slot
        pairs = [(each.pos, each.pos * 0 if each.neg is None else each.neg) for each in slot.contributions]
        parts = [part for pair in pairs for part in pair]
        shape = reduce(torch.add, parts).shape  # what they broadcast to
        self.parts = torch.stack([part.expand(shape) for part in parts]).reshape(len(pairs), 2, *shape)
        kinds = ", ".join(
            f"{'sum' if each.summed else 'mean'}{each.finish or ''}" for each in slot.contributions
        )
        self.label = (
            f"{len(pairs)} calls of the rule for {slot.reference} of cell {name!r} ({list(shape)}; {kinds})"
        )

    def values(self) -> Tensor:
        samples = self.parts.new_tensor(
            [each.samples for each in self.slot.contributions], dtype=torch.float64
        )
        weights = torch.where(self._summed(samples), samples.sign(), samples)
        return torch.cat([samples, (self._column(weights) * self.parts).flatten()])

    def is_observed(self, total: Tensor) -> bool:
        return bool(total[: len(self.parts)].all())

    def accept(self, total: Tensor) -> None:
        samples, sums = total[: len(self.parts)], total[len(self.parts) :].reshape(self.parts.shape)
        means = sums / self._column(samples.masked_fill(self._summed(samples), 1.0))
        # the same dtype in all processes, also where one has only the blank parts of an empty batch
        exact = torch.promote_types(self.slot.reference.leaf.dtype, torch.float32)
        means = means.to(self.parts.device)
        finishes = [each.finish for each in self.slot.contributions]
        if any(finishes):
            pairs = zip(self.slot.contributions, means.to(exact), strict=True)
            self.slot.contributions[:] = [each._replace(pos=pos, neg=neg) for each, (pos, neg) in pairs]
            return
        pos, neg = means.sum(0).to(exact)
        self.slot.contributions[:] = [Contribution(pos, neg, round(samples.max().item()))]

    def _summed(self, like: Tensor) -> Tensor:
        return torch.tensor([each.summed for each in self.slot.contributions], device=like.device)

    def _column(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *(1,) * (self.parts.ndim - 1))


def shares_of(units: Sequence[Unit]) -> list[Share]:
    """Returns what the cells have to share: the rate of each, and each slot in which something waits."""
    slots: dict[Slot, str] = {}
    for unit in units:
        slots |= {slot: unit.name for slot in unit.slots.values() if slot.pending and slot not in slots}
    rates = [RateShare(unit) for unit in units]
    return [*rates, *(SlotShare(name, slot) for slot, name in slots.items())]


def require_mean_or_sum(reduction: BatchReduction) -> None:
    """Raises ArgumentError for another batch reduction: its parts cannot be put together."""
    require(
        reduction in (*MEANS, *SUMS),
        "batch_reduction",
        "be `torch.mean` or `torch.sum` where several processes share the batch",
        None,
        "No other can be put together from what each process knows.",
        show=f"`batch_reduction = {getattr(reduction, '__name__', reduction)}`",
    )


def _described(unit: Unit) -> str:
    """Describes the layer and the settings of a cell: what has to be equal in all processes."""
    state, slot = unit.state, unit.slot
    layer = f"{type(unit.cell.connection.layer).__name__} {state.param} {list(slot.reference.tensor.shape)}"
    bounds = {kind: _named(each.bounds) for kind, each in unit.slots.items() if each.bounds is not None}
    target = "tensor" if isinstance(state.target, Tensor) else state.target
    rate = f"{type(unit.rate).__name__}({unit.rate.extra_repr()})"
    return f"{layer}, plasticity {state.strength!r}, target {target}, {rate}, bounds {bounds or None}"


def _named(bounds: UpdateBounds) -> str:
    # the `repr` of a function holds an address, which differs between processes
    if isinstance(bounds, Bounds):
        return repr(bounds)
    return str(getattr(bounds, "__qualname__", type(bounds).__name__))
