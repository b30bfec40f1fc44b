"""Changes: what the slots make of the parameters. All of them happen, or none."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..errors import ArgumentError, HomeostasisError, require, warn
from ..layers import Limits, ParameterReference, full, is_distributed, is_sharded, local, replicate_as
from .bounds import HALVES, Operation, UpdateBounds, is_built_in
from .contributions import joined
from .slots import Slot, broadcasts

__all__ = ["Change", "apply_changes", "changes_of", "common_bounds"]


class Change:
    """The change of one parameter, prepared up to the writing.

    Args:
        slots: one for each layer that has the parameter, so tied layers get one update.
        value: the Parameter.
        outcome: holds NaN or infinity if the new value would.
        operations: each changes the value once, in place.
        residue: what rounding to half precision takes away; None for other types.
        tied: the other slots of the parameter.
        is_stuck: tells whether a row of the parameter is at a limit, and is pushed against it; all
            processes that hold a piece of it have to ask.
    """

    __slots__ = ("is_stuck", "operations", "outcome", "residue", "slots", "start", "tied", "value")

    def __init__(
        self,
        slots: Sequence[Slot],
        value: Tensor,
        outcome: Tensor,
        operations: Sequence[Operation],
        residue: Tensor | None = None,
        tied: Sequence[Slot] = (),
        is_stuck: Callable[[], bool] | None = None,
    ) -> None:
        self.slots, self.value, self.outcome, self.operations = slots, value, outcome, operations
        self.residue, self.tied, self.is_stuck = residue, tied, is_stuck
        self.start = -1

    def apply(self) -> None:
        """Changes the parameter and empties the slots; further calls do nothing more."""
        # An interruption can fall between an operation and a note that it is made. So the version
        # counter tells which are made; it is private, and nothing public counts them.
        version = self.value._version
        self.start = version if self.start < 0 else self.start
        for operation in self.operations[version - self.start :]:
            operation()
        if self.residue is not None:
            for slot in (*self.slots, *self.tied):
                slot.residue = self.residue
        for slot in self.slots:
            slot.empty()


def changes_of(slots: Iterable[Slot], tied: Iterable[Slot] = ()) -> list[Change]:
    """Prepares the changes that slots make, one for each parameter.

    Args:
        slots: those to apply.
        tied: others, which have a say in the bounds of a parameter that they share.

    Raises:
        UnsupportedLayerError: if a parameter has become one that cannot change.
        ArgumentError: if tied layers have different bounds, or a part or a delta has a wrong shape.
        HomeostasisError: if a parameter was sharded or gathered since its registration.
    """
    groups: dict[int, tuple[Tensor, dict[Slot, None], list[Slot]]] = {}
    for slot in slots:
        if slot.contributions:
            leaf = slot.require_changeable()
            groups.setdefault(id(leaf), (leaf, {}, []))[1][slot] = None
    for slot in tied:
        if slot.bounds is not None or slot.residue is not None:
            group = groups.get(id(slot.reference.leaf))
            if group is not None and slot not in group[1]:
                group[2].append(slot)
    return [_change_of(leaf, tuple(group), others) for leaf, group, others in groups.values()]


def apply_changes(changes: Sequence[Change], name_of: Callable[[Slot], str]) -> None:
    """Makes all changes, or, if an interruption comes before the first, none."""
    stuck = [change for change in changes if change.is_stuck is not None and change.is_stuck()]
    try:
        for change in changes:
            change.apply()
    except BaseException:
        for change in changes:
            change.apply()
        raise
    for change in stuck:
        for slot in change.slots:
            slot.warned_stuck = True
        first = change.slots[0]
        if first.limits is not None:
            warn(first.limits.stuck.format(cell=name_of(first)))


def common_bounds(owner: ParameterReference, *bounds: UpdateBounds | None) -> UpdateBounds | None:
    """Returns the bounds of one parameter; raises ArgumentError if its layers name different ones."""
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


def _change_of(leaf: Tensor, slots: Sequence[Slot], tied: Sequence[Slot]) -> Change:
    slot = slots[0]
    bounds, contributions = slot.bounds, slot.contributions
    if len(slots) + len(tied) > 1:
        bounds = common_bounds(slot.reference, *(each.bounds for each in (*slots, *tied)))
        contributions = [each for slot in slots for each in slot.contributions]
    pos, neg = joined(contributions, slot.reference)
    pos, neg = pos.to(leaf.device), None if neg is None else neg.to(leaf.device)
    is_spread = is_distributed(leaf)
    if slot.sharded or is_spread:
        _require_same_sharding(slots, is_sharded(leaf))
        pos, neg = replicate_as(pos, leaf), None if neg is None else replicate_as(neg, leaf)
    is_stuck = None
    if slot.limits is not None and not slot.warned_stuck:
        is_stuck = partial(_is_stuck, leaf, pos, neg, slot.limits)
    if leaf.dtype in HALVES or slot.reference.plain is None:
        outcome, operations, residue = _replacement(slots, tied, bounds, pos, neg)
    else:
        (outcome, operations), residue = _operations(slot, bounds, leaf, pos, neg), None
        if slot.limits is not None:
            operations.append(partial(slot.limits.clamp_, leaf))
    outcome = local(outcome) if is_spread else outcome
    return Change(slots, leaf, outcome, operations, residue, tied, is_stuck)


def _operations(
    slot: Slot, bounds: UpdateBounds | None, value: Tensor, pos: Tensor, neg: Tensor | None
) -> tuple[Tensor, list[Operation]]:
    """Prepares a change in place: what has to be finite, and the operations, which allocate little."""
    slot.require_broadcasts(pos, "pos", value)
    if neg is None and bounds is None:
        return pos, [partial(value.add_, pos)]
    if neg is None or value.numel() == 0 or not is_built_in(bounds):
        delta = _delta(slot, bounds, value, pos, neg)
        return delta, [partial(value.add_, delta)]
    slot.require_broadcasts(neg, "neg", value)
    outcome = bounds(value, pos, neg) if slot.sharded else bounds.outcome(value, pos, neg)
    return outcome, bounds.operations(value, pos, neg)


def _replacement(
    slots: Sequence[Slot],
    tied: Sequence[Slot],
    bounds: UpdateBounds | None,
    pos: Tensor,
    neg: Tensor | None,
) -> tuple[Tensor, list[Operation], Tensor | None]:
    """Prepares a new value: in half precision, or where a parametrization computes the value.

    Half precision cannot represent small changes. What rounding takes away stays in float32, as the
    residue of the slots.
    """
    slot, value = slots[0], slots[0].reference.tensor
    residues = [each.residue for each in (*slots, *tied) if each.residue is not None]
    exact = _exact(value, residues[0] if residues else None)
    for operation in _operations(slot, bounds, exact, pos, neg)[1]:
        operation()
    if slot.limits is not None:
        slot.limits.clamp_(exact)
    rounded, residue = exact.to(value.dtype), None
    if value.dtype in HALVES:
        if is_built_in(bounds):  # rounding may lead past a limit
            zero = replicate_as(torch.zeros((), device=value.device), value)
            for operation in bounds.operations(rounded, zero, zero):
                operation()
        residue = exact.sub_(rounded)
    return rounded, [partial(slot.reference.write, rounded)], residue


def _exact(value: Tensor, residue: Tensor | None) -> Tensor:
    """Returns a copy of a value in float32 or better, with what rounding has taken from it."""
    if value.dtype not in HALVES:
        return value.clone()
    if residue is None:
        return value.float()
    exact = value + residue.to(value.device)
    # an old residue has nothing to do with a value that was set since
    return torch.where(exact.to(value.dtype) == value, exact, value.float())


def _delta(slot: Slot, bounds: UpdateBounds | None, value: Tensor, pos: Tensor, neg: Tensor | None) -> Tensor:
    """Returns what is added to a value, by bounds that may want to see all of it."""
    neg = torch.zeros_like(pos) if neg is None else neg
    delta = pos - neg if bounds is None else replicate_as(bounds(value, pos, neg), value)
    if not broadcasts(delta, value):
        raise ArgumentError(
            f"`bounds` should return a delta that broadcasts to {list(value.shape)}. Found shape "
            f"{list(delta.shape)} for {slot.reference}. Mend the callable."
        )
    return delta


def _require_same_sharding(slots: Iterable[Slot], now: bool) -> None:
    for slot in slots:
        if slot.sharded == now:
            continue
        if slot.sharded:
            raise HomeostasisError(
                f"{slot.reference} should be sharded when it changes. Found it gathered, as `fully_shard` "
                "leaves it after a forward without backward, and the change would be lost. Call `reshard()` "
                "of the model, or `attach` the model in place of single cells."
            )
        raise HomeostasisError(
            f"{slot.reference} should be sharded before it is registered. Found it sharded since. Call "
            "`fully_shard` first, then `attach` or `register_cell`."
        )


def _is_stuck(value: Tensor, pos: Tensor, neg: Tensor | None, limits: Limits) -> bool:
    push = pos if neg is None else pos - neg
    against = torch.where(push > 0, value >= limits.high, (value <= limits.low) & (push < 0))
    rows = full(against)
    return bool(rows.reshape(len(rows) if rows.ndim else 1, -1).all(1).any())
