"""The share of one process in what all of them sum: the rate of a cell, and what waits in a slot."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from ..cells import MEANS, SUMS, BatchReduction, Unit
from ..errors import require
from ..layers import is_sharded, local
from ..updates import HALVES, Bounds, Slot, UpdateBounds, is_built_in
from .message import Part

__all__ = ["Share", "described", "require_mean_or_sum", "shares_of"]


class Share(Part, Protocol):
    """Something of which every process has a part, which takes in the sum.

    Attributes:
        name: of its cell.
        may_differ: whether one process alone may fail, or do something else, with the sum.
    """

    name: str
    may_differ: bool

    def is_observed(self, counts: Sequence[float]) -> bool:
        """Whether samples of some process stand behind it."""

    def accept(self, counts: Sequence[float], sums: Tensor) -> None:
        """Takes in the sums over all processes; ``sums`` lie on the processor, and may be changed."""


class RateShare:
    """The rate of a cell, as a sum over the samples."""

    may_differ = False

    def __init__(self, unit: Unit) -> None:
        require_mean_or_sum(unit.state.batch_reduction)
        self.unit, self.name = unit, unit.name
        self.neurons = unit.cell.neuron.neurons
        known = "that were never called" if self.neurons is None else list(self.neurons)
        self.label = f"{described(unit)} with neurons {known}"
        self.size = 0 if self.neurons is None else self.neurons.numel()
        self.total = unit.rate.total if unit.rate.steps and unit.cell.neuron.samples else None
        self.counts: list[float] = [0 if self.total is None else len(self.total)]

    def write(self, room: Tensor) -> None:
        if self.total is not None:
            torch.sum(self.total.flatten(1), 0, dtype=torch.float64, out=room)
            room.div_(self.unit.rate.weight)

    def is_observed(self, counts: Sequence[float]) -> bool:
        return True  # a rate that no update needs may be unknown

    def accept(self, counts: Sequence[float], sums: Tensor) -> None:
        if counts[0] and self.neurons is not None:
            own = self.unit.rate.total
            device = self.unit.slot.reference.leaf.device if own is None else own.device
            mean = sums.div_(counts[0]).reshape(self.neurons)
            self.unit.rate.joint = mean.to(device, torch.float32)


class SlotShare:
    """All that waits in a slot: the parts of each contribution, as sums over its samples.

    Without bounds or a band the difference of the two parts is enough. Bounds, and rounding to half
    precision, look at the parameter. If it is not finite in one process, the sum is not finite in any.

    Args:
        name: of its cell.
        slot: where something waits.
        bounds: of the parameter, if only by a tied layer.
    """

    def __init__(self, name: str, slot: Slot, bounds: UpdateBounds | None) -> None:
        self.name, self.slot, self.contributions = name, slot, list(slot.contributions)
        self.counts: list[float] = [each.samples for each in self.contributions]
        parts = [part for each in self.contributions for part in (each.pos, each.neg) if part is not None]
        part_shape = reduce(torch.add, parts).shape  # what they broadcast to
        finishes = [each.finish for each in self.contributions if each.finish is not None]
        has_band = any(finish.band for finish in finishes)
        self.shape = (len(self.contributions), 2 if has_band or bounds is not None else 1, *part_shape)
        self.size = math.prod(self.shape)
        param = slot.reference.tensor
        kinds = [f"{'sum' if each.summed else 'mean'}{each.finish or ''}" for each in self.contributions]
        self.looks_at = param if bounds is not None or _is_replaced(slot, param) else None
        is_own_code = bounds is not None and not is_built_in(bounds)
        self.may_differ = is_own_code or (slot.sharded and self.looks_at is not None)
        self.exact = torch.promote_types(param.dtype, torch.float32)  # the same in all processes
        self.label = (
            f"{len(kinds)} calls of the rule for {slot.reference} of cell {name!r} ({list(self.shape)}; "
            f"{', '.join(kinds)}) on a {_kind_of(slot, param)}"
        )

    def write(self, room: Tensor) -> None:
        for each, pair in zip(self.contributions, room.view(self.shape), strict=True):
            pair[0].copy_(each.pos)
            if each.neg is not None:
                pair[-1].add_(each.neg, alpha=-1 if len(pair) == 1 else 1)
            weight = min(each.samples, 1) if each.summed else each.samples
            if weight != 1:
                pair.mul_(weight)
        if self.looks_at is not None:
            room.add_(local(self.looks_at).sum(dtype=torch.float32) * 0.0)

    def is_observed(self, counts: Sequence[float]) -> bool:
        return all(counts)

    def accept(self, counts: Sequence[float], sums: Tensor) -> None:
        pairs = sums.view(self.shape)
        for each, pair, count in zip(self.contributions, pairs, counts, strict=True):
            if not each.summed:
                pair.div_(count)
        parts = pairs.to(self.slot.reference.leaf.device, self.exact).unbind(1)
        both = zip(*parts, strict=True) if len(parts) == 2 else ((pos, None) for pos in parts[0])
        replaced = zip(self.contributions, both, strict=True)
        self.slot.contributions[:] = [each._replace(pos=pos, neg=neg) for each, (pos, neg) in replaced]


def shares_of(units: Sequence[Unit]) -> list[Share]:
    """Returns what the active cells have to share: their rates, and each slot in which something waits."""
    bounds = {
        id(slot.reference.leaf): slot.bounds
        for unit in units
        for slot in unit.slots.values()
        if slot.bounds is not None
    }
    active = [unit for unit in units if unit.active]
    slots: dict[Slot, str] = {}
    for unit in active:
        slots |= {slot: unit.name for slot in unit.slots.values() if slot.pending and slot not in slots}
    rates: list[Share] = [RateShare(unit) for unit in active]
    parts = (SlotShare(name, slot, bounds.get(id(slot.reference.leaf))) for slot, name in slots.items())
    return [*rates, *parts]


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


def described(unit: Unit) -> str:
    """Describes a cell, its layer and its settings: what has to be equal in all processes."""
    state, slot = unit.state, unit.slot
    layer = f"{type(unit.cell.connection.layer).__name__} {state.param} {list(slot.reference.tensor.shape)}"
    bounds = {kind: _named(each.bounds) for kind, each in unit.slots.items() if each.bounds is not None}
    target = "tensor" if isinstance(state.target, Tensor) else state.target
    rate = f"{type(unit.rate).__name__}({unit.rate.extra_repr()})"
    settings = f"plasticity {state.strength!r}, target {target}, {rate}, bounds {bounds or None}"
    return f"cell {unit.name!r} ({layer}, {settings})"


def _is_replaced(slot: Slot, param: Tensor) -> bool:
    """Whether an update makes a new value, and rounds it or hands it to a parametrization."""
    return param.dtype in HALVES or slot.reference.plain is None


def _kind_of(slot: Slot, param: Tensor) -> str:
    """Describes a parameter: what decides how it changes, and whether that can fail."""
    traits = {
        "sharded": is_sharded(param),
        "parametrized": slot.reference.plain is None,
        "rounded": slot.residue is not None,
        "stuck": slot.warned_stuck,
    }
    named = "".join(f"{trait} " for trait, has in traits.items() if has)
    limits = "" if slot.limits is None else f" within {slot.limits}"
    return f"{named}{param.dtype} parameter {list(param.shape)}{limits}, {param.device.type}"


def _named(bounds: UpdateBounds) -> str:
    # the `repr` of a function holds an address, which differs between processes
    if isinstance(bounds, Bounds):
        return repr(bounds)
    return str(getattr(bounds, "__qualname__", type(bounds).__name__))
