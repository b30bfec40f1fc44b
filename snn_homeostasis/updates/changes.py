"""Changes: what the slots make of the parameters, all of it or nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ArgumentError, HomeostasisError, require, warn
from ..layers.parameters import ParameterReference
from ..layers.sharded import full, is_sharded, replicate_as
from ..observe.shortcuts import is_current
from .bounds import Bounds, UpdateBounds, unbounded
from .passes import Pass, Passes
from .slots import Slot, broadcasts

__all__ = [
    "Change",
    "change_of",
    "changes_of",
    "is_changed_in_place",
    "joint_bounds",
    "make_all",
    "warn_stuck",
]

HALVES = (torch.float16, torch.bfloat16)


class Change(ABC):
    """What is made of one parameter: worked out first, made later.

    Args:
        slots: one for each layer that has the parameter, so that tied layers get one update.
        pos: what raises it; broadcasts with it.
        neg: what lowers it, a magnitude.

    Attributes:
        outcome: what has to be finite before anything is made.
        is_stuck: whether a whole row of the parameter is at one of its limits and is pushed on.
    """

    outcome: Tensor
    is_stuck = False

    def __init__(self, slots: Sequence[Slot], pos: Tensor, neg: Tensor) -> None:
        self.slots, self.pos, self.neg = slots, pos, neg
        self.reference = slots[0].reference
        _require_spread(slots)
        self.bounds = joint_bounds(self.reference, *(slot.bounds for slot in slots))
        self.limits = slots[0].limits

    def make(self) -> None:
        """Changes the parameter and empties the slots; does not do so again if called again."""
        with torch.no_grad():
            self._write()
        for slot in self.slots:
            slot.empty()

    @abstractmethod
    def _write(self) -> None: ...

    def _delta(self, value: Tensor) -> Tensor:
        pos, neg = self.pos, self.neg
        if self.limits is not None and not self.slots[0].told_stuck:
            self.is_stuck = _is_stuck(value, replicate_as(pos - neg, value), *self.limits)
        if self.bounds is None:
            delta = unbounded(value, pos, neg)
        else:
            delta = self.bounds(value, replicate_as(pos, value), replicate_as(neg, value))
        if not broadcasts(delta, value):
            raise ArgumentError(
                f"`bounds` should return a delta that broadcasts to {list(value.shape)}. Found shape "
                f"{list(delta.shape)} for {self.reference}. Mend the callable."
            )
        return delta

    def _settle(self, value: Tensor) -> None:
        if isinstance(self.bounds, Bounds):
            self.bounds.settle_(value)
        if self.limits is not None:
            value.clamp_(*self.limits)


class InPlace(Change):
    """Makes some passes over the parameter: those of its bounds, or else one that adds their delta."""

    def __init__(self, slots: Sequence[Slot], pos: Tensor, neg: Tensor) -> None:
        super().__init__(slots, pos, neg)
        value = self.reference.tensor
        operations = self._operations_of_bounds(value)
        if operations is None:
            self.outcome = self._delta(value)
            operations = [partial(value.add_, replicate_as(self.outcome, value))]
        self._passes = Passes(value, operations)

    def _write(self) -> None:
        self._passes.make()
        self._settle(self._passes.tensor)

    def _operations_of_bounds(self, value: Tensor) -> list[Pass] | None:
        bounds = self.bounds
        is_free = self.limits is None and not self.slots[0].sharded and value.numel() > 0
        if not (is_free and isinstance(bounds, Bounds)):
            return None
        if not is_current(type(bounds), "passes", "__call__", "settle_"):
            return None
        ends = torch.stack(value.aminmax())
        # finite exactly if the whole delta is
        self.outcome = bounds(ends, self.pos.amax(), self.neg.amax())
        return bounds.passes(value, ends, self.pos, self.neg)


class Replacement(Change):
    """Writes a new value: in half precision, or where a parametrization computes the value.

    Half precision cannot represent small changes of a value. What rounding takes away is kept
    as a residue in float32.
    """

    def __init__(self, slots: Sequence[Slot], pos: Tensor, neg: Tensor) -> None:
        super().__init__(slots, pos, neg)
        value = self.reference.tensor
        exact = self._exact(value)
        exact += replicate_as(self._delta(exact), exact)
        self._settle(exact)
        self.outcome = exact.to(value.dtype)
        self._residue = None
        if value.dtype in HALVES:
            self._settle(self.outcome)
            self._residue = exact.sub_(self.outcome)

    def _write(self) -> None:
        self.reference.write(self.outcome)
        for slot in self.slots:
            slot.residue = self._residue

    def _exact(self, value: Tensor) -> Tensor:
        if value.dtype not in HALVES:
            return value.clone()
        residue = self.slots[0].residue
        if residue is None:
            return value.float()
        exact = value + residue.to(value.device)
        # a value that was set meanwhile has nothing to do with an old residue
        return torch.where(exact.to(value.dtype) == value, exact, value.float())


@torch.no_grad()
def changes_of(slots: Iterable[Slot]) -> list[Change]:
    """The changes that slots make, one for each parameter; nothing is changed yet.

    Raises:
        ArgumentError: if tied layers have different bounds, or a bound returns a wrong shape.
    """
    tied: dict[int, list[Slot]] = {}
    for slot in dict.fromkeys(slots):
        if slot.pending:
            tied.setdefault(id(slot.reference.leaf), []).append(slot)
    return [change_of(group, *_totals(group)) for group in tied.values()]


def change_of(slots: Sequence[Slot], pos: Tensor, neg: Tensor) -> Change:
    """The change that two parts make of the parameter that some slots have in common.

    Raises:
        ArgumentError: if the slots have different bounds, or a bound returns a wrong shape.
    """
    kind = InPlace if is_changed_in_place(slots[0].reference) else Replacement
    return kind(slots, pos, neg)


class Makeable(Protocol):
    """A change that can be made again without harm."""

    def make(self) -> None: ...


def make_all(changes: Sequence[Makeable]) -> None:
    """Makes all changes, or, interrupted before the first, none."""
    try:
        for change in changes:
            change.make()
    except BaseException:
        for change in changes:
            change.make()
        raise


def warn_stuck(changes: Mapping[str, Change]) -> None:
    """Warns, once for each slot, that a row of its parameter can move no further.

    Args:
        changes: whose, by name.
    """
    for name, change in changes.items():
        if change.is_stuck:
            for slot in change.slots:
                slot.told_stuck = True
            warn(
                f"All delays of a neuron in {name} are at a limit, and the rule pushes them on: they cannot "
                "bring its rate to the target. Regulate the weight or the bias; or, if they are too short "
                "or too long for it, build the layer with another `max_delay`."
            )


def is_changed_in_place(reference: ParameterReference) -> bool:
    """Whether an update is added to a parameter, whose value is otherwise replaced."""
    return reference.is_plain and reference.tensor.dtype not in HALVES


def joint_bounds(owner: ParameterReference, *bounds: UpdateBounds | None) -> UpdateBounds | None:
    """The bounds of one parameter, where each of its layers may name them or leave them open.

    Raises:
        ArgumentError: if they differ.
    """
    named = [each for each in bounds if each is not None]
    for each in named[1:]:
        require(
            each == named[0],
            "bounds",
            "be the same wherever one parameter is regulated",
            each,
            f"{owner} has {named[0]} already.",
        )
    return named[0] if named else None


def _require_spread(slots: Iterable[Slot]) -> None:
    for slot in slots:
        now = is_sharded(slot.reference.leaf)
        if slot.sharded and not now:
            raise HomeostasisError(
                f"{slot.reference} should be sharded when it is changed. Found it gathered, as `fully_shard` "
                "leaves it after a forward without backward, and the change would be lost. Call `reshard()` "
                "of the model, or `attach` the model in place of single cells."
            )
        if now and not slot.sharded:
            raise HomeostasisError(
                f"{slot.reference} should be sharded before it is registered. Found it sharded since. Call "
                "`fully_shard` first, then `attach` or `register_cell`."
            )


def _is_stuck(value: Tensor, push: Tensor, lower: float, upper: float) -> bool:
    against = torch.where(push > 0, value >= upper, (value <= lower) & (push < 0))
    return bool(full(against).reshape(len(value), -1).all(1).any())


def _totals(slots: Sequence[Slot]) -> tuple[Tensor, Tensor]:
    leaf = slots[0].reference.leaf
    return _total([slot.pos for slot in slots], leaf), _total([slot.neg for slot in slots], leaf)


def _total(parts: Iterable[Tensor | None], leaf: Tensor) -> Tensor:
    present = [part.to(leaf.device) for part in parts if part is not None]
    if present:
        return sum(present[1:], present[0])
    return torch.zeros((), dtype=torch.promote_types(leaf.dtype, torch.float32), device=leaf.device)
