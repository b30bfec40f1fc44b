"""What has to hold before parameters change: no graph waits for them, and all is finite."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from ..errors import WaitingGraphError
from ..updates import Change, Slot, is_needed_by, require_finite
from .unit import Unit

__all__ = [
    "owner_of",
    "require_finite_membranes",
    "require_finite_rates",
    "require_finite_updates",
    "require_no_waiting_graph",
]


def require_no_waiting_graph(units: Iterable[Unit]) -> None:
    """Raises WaitingGraphError if the last observed call of a cell needs a parameter as it is."""
    waiting = [
        repr(unit.name)
        for unit in units
        if (graph := unit.hook.graph) is not None
        and any(slot.pending and is_needed_by(slot.reference.leaf, graph) for slot in unit.slots.values())
    ]
    if waiting:
        raise WaitingGraphError(
            "`step` should be called when no graph waits for its backward. Found one that needs the "
            f"parameter of cell {', '.join(waiting)} as it is. Call `backward()` first, or run the model "
            "under `torch.no_grad()` if there is nothing to learn."
        )


def require_finite_rates(units: Sequence[Unit]) -> None:
    """Checks what waits in the slots of a rule, and the membranes."""
    rated = [(unit, part) for unit in units for part in (unit.slot.pos, unit.slot.neg) if part is not None]
    watched = _membranes(units)
    require_finite(
        [tensor for _, tensor in rated + watched],
        lambda: [f"{u.name!r} (rate)" for u, _ in rated] + [f"{u.name!r} (membrane)" for u, _ in watched],
    )


def require_finite_membranes(units: Sequence[Unit]) -> None:
    """Checks the membranes of the last observed calls."""
    watched = _membranes(units)
    require_finite([each for _, each in watched], lambda: [f"{u.name!r} (membrane)" for u, _ in watched])


def require_finite_updates(changes: Sequence[Change], watched: Sequence[Unit], units: Sequence[Unit]) -> None:
    """Checks what becomes of the parameters of some units, and the membranes of those watched."""
    membranes = _membranes(watched)
    require_finite(
        [change.outcome for change in changes] + [membrane for _, membrane in membranes],
        lambda: (
            [f"{owner_of(change.slots[0], units).name!r} (update)" for change in changes]
            + [f"{unit.name!r} (membrane)" for unit, _ in membranes]
        ),
    )


def _membranes(units: Sequence[Unit]) -> list[tuple[Unit, Tensor]]:
    return [(unit, membrane) for unit in units if (membrane := unit.hook.membrane) is not None]


def owner_of(slot: Slot, units: Iterable[Unit]) -> Unit:
    """Returns the first unit that has a slot."""
    return next(unit for unit in units if slot in unit.slots.values())
