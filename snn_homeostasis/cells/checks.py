"""What has to hold before parameters change: the model uses them, no graph waits for them, all is finite."""

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.autograd.graph import Node

from ..errors import ReplacedModuleError, WaitingGraphError
from ..updates import Change, Slot, is_needed_by, require_finite
from .places import Places
from .unit import Unit

__all__ = ["owner_of", "require_finite_cells", "require_ready"]


def require_ready(units: Iterable[Unit]) -> None:
    """Raises ReplacedModuleError or WaitingGraphError if the parameters of some cells must not change."""
    replaced: list[str] = []
    waiting: list[str] = []
    for unit in units:
        places, graph = unit.cell.places, unit.hook.membranes.graph
        if places is not None:
            replaced += _replaced_in(unit, places)
        if graph is not None and _is_needed(unit, graph):
            waiting.append(repr(unit.name))
    if replaced:
        raise ReplacedModuleError(
            "`model` should hold the layers and neurons that were attached. Found "
            f"{', '.join(replaced)}. Call `remove()`, then `attach` the model as it is now."
        )
    if waiting:
        raise WaitingGraphError(
            "`step` should be called when no graph waits for its backward. Found one that needs the "
            f"parameter of cell {', '.join(waiting)} as it is. Call `backward()` first, the last time "
            "without `retain_graph=True`, or run the model under `torch.no_grad()` if there is nothing to "
            "learn."
        )


def _replaced_in(unit: Unit, places: Places) -> list[str]:
    """Says which modules of a cell the model does not hold any more."""
    return [
        f"`{path}` of cell {unit.name!r} replaced by {'nothing' if now is None else type(now).__name__}"
        for path, now in places.replaced().items()
    ]


def _is_needed(unit: Unit, graph: Node) -> bool:
    """Whether the graph of the last observed call needs a parameter as it is, and that is to change."""
    return any(slot.pending and is_needed_by(slot.reference.leaf, graph) for slot in unit.slots.values())


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
