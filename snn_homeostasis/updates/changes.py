"""Changes: what the slots make of the parameters. All of them happen, or none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, split

from ..errors import ArgumentError, HomeostasisError, require, warn
from ..layers import ParameterReference, full, is_sharded, replicate_as
from .bounds import Bounds, UpdateBounds
from .slots import Contribution, Slot, broadcasts

__all__ = ["Change", "apply_changes", "changes_of", "common_bounds"]

HALVES = (torch.float16, torch.bfloat16)
# entries of a block: on a CPU what stays in its cache, elsewhere what fills the device
ON_CPU, ELSEWHERE = 2**17, 2**24


class Change(ABC):
    """The change of one parameter: prepared when it is built, made by `apply`.

    Args:
        slots: one for each layer that has the parameter, so tied layers get one update.
        bounds: of the parameter.
        value: that the layer computes with.
        pos: raises the parameter; broadcasts with it.
        neg: lowers it, a magnitude; None if ``pos`` is signed.

    Attributes:
        outcome: is finite exactly if the new value is, unless the old value is not.
        is_stuck: whether a row of the parameter is at a limit, and is pushed against it.
    """

    outcome: Tensor

    def __init__(
        self,
        slots: Sequence[Slot],
        bounds: UpdateBounds | None,
        value: Tensor,
        pos: Tensor,
        neg: Tensor | None,
    ) -> None:
        self.slots, self.bounds, self.pos, self.neg = slots, bounds, pos, neg
        self.reference, self.limits = slots[0].reference, slots[0].limits
        self.is_stuck = False
        self._prepare(value)

    @abstractmethod
    def _prepare(self, value: Tensor) -> None:
        """Does all that can fail."""

    @abstractmethod
    def _write(self) -> None:
        """Changes the parameter; calls after an interruption do what is left."""

    def apply(self) -> None:
        """Changes the parameter and empties the slots; further calls do nothing more."""
        self._write()
        for slot in self.slots:
            slot.empty()

    def _delta(self, value: Tensor) -> Tensor:
        """Returns what is added to a value, by bounds that may want to see all of it."""
        pos, neg = replicate_as(self.pos, value), self._neg_for(value)
        delta = pos if neg is None else pos - neg
        if self.bounds is not None:
            delta = self.bounds(value, pos, torch.zeros_like(pos) if neg is None else neg)
        if not broadcasts(delta, value):
            raise ArgumentError(
                f"`bounds` should return a delta that broadcasts to {list(value.shape)}. Found shape "
                f"{list(delta.shape)} for {self.reference}. Mend the callable."
            )
        return replicate_as(delta, value)

    def _neg_for(self, value: Tensor) -> Tensor | None:
        return None if self.neg is None else replicate_as(self.neg, value)

    def _look_for_stuck_rows(self, value: Tensor) -> None:
        if self.limits is not None and not self.slots[0].warned_stuck:
            push = self.pos if self.neg is None else self.pos - self.neg
            self.is_stuck = _is_stuck(value, replicate_as(push, value), *self.limits)


class InPlace(Change):
    """Adds to a parameter, by operations that each change it once and allocate little.

    An interruption can fall between an operation and the note that it is made. So the version
    counter of the parameter tells which of them are made.
    """

    def _prepare(self, value: Tensor) -> None:
        self._look_for_stuck_rows(value)
        self.value, self.start = value, -1
        bounds, neg = self.bounds, self._neg_for(value)
        if isinstance(bounds, Bounds) and neg is not None and value.numel() > 0:
            self.operations = self._operations_of(bounds, value, replicate_as(self.pos, value), neg)
        else:
            self.outcome = self._delta(value)
            self.operations = [partial(value.add_, self.outcome)]
        if self.limits is not None:
            self.operations.append(partial(value.clamp_, *self.limits))

    def _write(self) -> None:
        # `_version` is private, and the only count of operations that no interruption can spoil
        if self.start < 0:
            self.start = self.value._version
        for operation in self.operations[self.value._version - self.start :]:
            operation()

    def _operations_of(
        self, bounds: Bounds, value: Tensor, pos: Tensor, neg: Tensor
    ) -> list[Callable[[], object]]:
        if self.slots[0].sharded:
            self.outcome = bounds(value, pos, neg)
            return [partial(bounds.change_, value, pos, neg)]
        ends = torch.stack(value.aminmax())
        self.outcome = bounds(ends, pos.amax(), neg.amax())  # a bound is largest at an end
        return [partial(bounds.change_, *block) for block in _blocks(value, pos, neg)]


class Replacement(Change):
    """Writes a new value: in half precision, or where a parametrization computes the value.

    Half precision cannot represent small changes. What rounding takes away stays in float32, as the
    residue of the slots.
    """

    def _prepare(self, value: Tensor) -> None:
        exact = self._exact(value)
        self._change_(exact)
        self.outcome, self.residue = exact.to(value.dtype), None
        if value.dtype in HALVES:
            if isinstance(self.bounds, Bounds):  # rounding may lead past a limit
                zero = replicate_as(torch.zeros((), device=value.device), value)
                self.bounds.change_(self.outcome, zero, zero)
            self.residue = exact.sub_(self.outcome)

    def _write(self) -> None:
        self.reference.write(self.outcome)
        for slot in self.slots:
            slot.residue = self.residue

    def _change_(self, exact: Tensor) -> None:
        self._look_for_stuck_rows(exact)
        neg = self._neg_for(exact)
        if isinstance(self.bounds, Bounds) and neg is not None:
            self.bounds.change_(exact, replicate_as(self.pos, exact), neg)
        else:
            exact += self._delta(exact)
        if self.limits is not None:
            exact.clamp_(*self.limits)

    def _exact(self, value: Tensor) -> Tensor:
        if value.dtype not in HALVES:
            return value.clone()
        residue = self.slots[0].residue
        if residue is None:
            return value.float()
        exact = value + residue.to(value.device)
        # an old residue has nothing to do with a value that was set since
        return torch.where(exact.to(value.dtype) == value, exact, value.float())


def changes_of(slots: Iterable[Slot]) -> list[Change]:
    """Prepares the changes that slots make, one for each parameter; nothing has changed yet.

    Args:
        slots: all that may share a parameter. Empty ones have a say in its bounds.

    Raises:
        ArgumentError: if tied layers have different bounds, or a bound returns a wrong shape.
        HomeostasisError: if a parameter was sharded or gathered since its registration.
    """
    tied: dict[int, tuple[Tensor, list[Slot]]] = {}
    for slot in dict.fromkeys(slots):
        if slot.contributions or slot.bounds is not None:  # others have nothing to say
            leaf = slot.reference.leaf
            tied.setdefault(id(leaf), (leaf, []))[1].append(slot)
    return [_change_of(*group) for group in tied.values() if any(slot.contributions for slot in group[1])]


def apply_changes(changes: Sequence[tuple[str, Change]]) -> None:
    """Makes all changes, or, if an interruption comes before the first, none.

    Args:
        changes: each with the name of its cell, for the warning about rows that are stuck.
    """
    try:
        for _, change in changes:
            change.apply()
    except BaseException:
        for _, change in changes:
            change.apply()
        raise
    for name, change in changes:
        if change.is_stuck:
            for slot in change.slots:
                slot.warned_stuck = True
            warn(
                f"All delays of a neuron in {name} are at a limit, and the rule pushes them on: they cannot "
                "bring its rate to the target. Regulate the weight or the bias; or, if they are too short "
                "or too long for it, build the layer with another `max_delay`."
            )


def common_bounds(owner: ParameterReference, *bounds: UpdateBounds | None) -> UpdateBounds | None:
    """Returns the bounds of one parameter, which each of its layers may name or leave open.

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


def _change_of(leaf: Tensor, slots: Sequence[Slot]) -> Change:
    _require_same_sharding(slots, is_sharded(leaf))
    reference, bounds = slots[0].reference, slots[0].bounds
    if len(slots) > 1:
        bounds = common_bounds(reference, *(slot.bounds for slot in slots))
    pos, neg = _sums(leaf, [each for slot in slots for each in slot.contributions])
    if reference.is_plain and leaf.dtype not in HALVES:
        return InPlace(slots, bounds, leaf, pos, neg)
    return Replacement(slots, bounds, reference.tensor, pos, neg)


def _sums(leaf: Tensor, contributions: Sequence[Contribution]) -> tuple[Tensor, Tensor | None]:
    first, *others = contributions
    pos, neg = first.pos.to(leaf.device), first.neg
    for each in others:
        pos = pos + each.pos.to(leaf.device)
        if each.neg is not None:
            neg = each.neg if neg is None else neg.to(leaf.device) + each.neg.to(leaf.device)
    return pos, None if neg is None else neg.to(leaf.device)


def _require_same_sharding(slots: Iterable[Slot], now: bool) -> None:
    for slot in slots:
        if slot.sharded and not now:
            raise HomeostasisError(
                f"{slot.reference} should be sharded when it changes. Found it gathered, as `fully_shard` "
                "leaves it after a forward without backward, and the change would be lost. Call `reshard()` "
                "of the model, or `attach` the model in place of single cells."
            )
        if now and not slot.sharded:
            raise HomeostasisError(
                f"{slot.reference} should be sharded before it is registered. Found it sharded since. Call "
                "`fully_shard` first, then `attach` or `register_cell`."
            )


def _blocks(value: Tensor, pos: Tensor, neg: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Cuts a value into blocks of rows, each with the parts that belong to it."""
    if value.ndim == 0:
        return [(value, pos, neg)]
    size = ON_CPU if value.device.type == "cpu" else ELSEWHERE
    rows = max(1, size * len(value) // value.numel())
    return zip(*(_rows_of(part, value, rows) for part in (value, pos, neg)), strict=True)


def _rows_of(part: Tensor, value: Tensor, rows: int) -> Sequence[Tensor]:
    aligned = part.reshape((1,) * (value.ndim - part.ndim) + part.shape)
    return split(aligned.expand(len(value), *aligned.shape[1:]), rows)


def _is_stuck(value: Tensor, push: Tensor, lower: float, upper: float) -> bool:
    against = torch.where(push > 0, value >= upper, (value <= lower) & (push < 0))
    return bool(full(against).reshape(len(value), -1).all(1).any())
