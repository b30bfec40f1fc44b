"""What has to hold before parameters change: the model uses them, no graph waits for them, all is finite."""

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor

from ..errors import ReplacedModuleError, WaitingGraphError
from ..updates import Change, Slot, is_needed_by, require_finite
from .unit import Unit

__all__ = ["owner_of", "require_finite_cells", "require_ready"]


def require_ready(units: Collection[Unit]) -> None:
    """Raises ReplacedModuleError or WaitingGraphError if the parameters of some cells must not change."""
    _require_in_place(units)
    _require_no_waiting_graph(units)


def _require_in_place(units: Iterable[Unit]) -> None:
    """Raises ReplacedModuleError if a model does not hold the layer or the neuron of a cell any more."""
    replaced = [
        f"`{path}` of cell {unit.name!r} replaced by {'nothing' if now is None else type(now).__name__}"
        for unit in units
        if (places := unit.cell.places) is not None
        for path, now in places.replaced().items()
    ]
    if replaced:
        raise ReplacedModuleError(
            "`model` should hold the layers and neurons that were attached. Found "
            f"{', '.join(replaced)}. Call `remove()`, then `attach` the model as it is now."
        )


def _require_no_waiting_graph(units: Iterable[Unit]) -> None:
    """Raises WaitingGraphError if the last observed call of a cell needs a parameter as it is."""
    waiting = [
        repr(unit.name)
        for unit in units
        if (graph := unit.hook.membranes.graph) is not None
        and any(slot.pending and is_needed_by(slot.reference.leaf, graph) for slot in unit.slots.values())
    ]
    if waiting:
        raise WaitingGraphError(
            "`step` should be called when no graph waits for its backward. Found one that needs the "
            f"parameter of cell {', '.join(waiting)} as it is. Call `backward()` first, the last time "
            "without `retain_graph=True`, or run the model under `torch.no_grad()` if there is nothing to "
            "learn."
        )


def require_finite_cells(
    watched: Sequence[Unit],
    rated: Sequence[Unit] = (),
    changes: Sequence[Change] = (),
    units: Sequence[Unit] = (),
) -> None:
    """Checks the membranes of some units, what waits in the slots of others, and changes of any."""
    tensors: list[Tensor | None] = [change.outcome for change in changes]
    for unit in rated:
        tensors += [unit.slot.pos, unit.slot.neg]
    for unit in watched:
        membranes = unit.hook.membranes
        tensors += [membranes.last, membranes.past]
    require_finite(
        tensors,
        lambda: [
            *(f"{owner_of(change.slots[0], units).name!r} (update)" for change in changes),
            *(f"{unit.name!r} (rate)" for unit in rated for _ in range(2)),
            *(f"{unit.name!r} (membrane)" for unit in watched for _ in range(2)),
        ],
    )


def owner_of(slot: Slot, units: Iterable[Unit]) -> Unit:
    """Returns the first unit that has a slot."""
    return next(unit for unit in units if slot in unit.slots.values())
