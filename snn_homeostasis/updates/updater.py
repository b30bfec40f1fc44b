"""The updater of a cell: its slots by kind."""

from __future__ import annotations

from torch import Tensor

from ..errors import HomeostasisError, RemovedCellError
from ..layers import Connection
from .changes import apply_changes, changes_of
from .finite import require_finite
from .gradients import without_gradients
from .slots import Slot

__all__ = ["Updater"]

Parts = tuple[Tensor | None, Tensor | None]


def _slot_property(kind: str) -> property:
    """Makes an attribute that reads as the slot of a parameter, and adds to it when it is set."""

    def get(updater: Updater) -> Slot:
        return updater.slot(kind)

    def add(updater: Updater, parts: Parts) -> None:
        updater.slot(kind).add(*parts)

    return property(get, add, doc=f"The slot of the {kind}.")


class Updater:
    """The slots of one cell: ``updater.weight = (pos, neg)`` adds, ``updater()`` applies all."""

    __slots__ = ("is_open", "slots")  # a misspelt slot is an error

    def __init__(self, connection: Connection) -> None:
        limits = connection.limits
        self.slots = {
            kind: Slot(reference, limits.get(kind)) for kind, reference in connection.references.items()
        }
        self.is_open = True

    @without_gradients
    def __call__(self) -> None:
        """Applies every slot through its bounds, once, and empties it; no error changes a parameter."""
        self._require_open()
        self._require_alone()
        changes = changes_of(self.slots.values())
        outcomes = [change.outcome for change in changes]
        require_finite(outcomes, lambda: [f"{change.slots[0].reference} (update)" for change in changes])
        apply_changes(changes, lambda slot: str(slot.reference))

    def clear(self) -> None:
        """Empties every slot and applies nothing."""
        for slot in self.slots.values():
            slot.empty()

    def close(self) -> None:
        """Empties every slot and lifts its bounds; nobody can use them until the cell is registered again."""
        self.is_open = False
        self.clear()
        for slot in self.slots.values():
            slot.bounds = None

    def slot(self, kind: str) -> Slot:
        """Returns the slot of "weight", "bias", "delay" or "threshold", if the cell has it."""
        self._require_open()
        if kind not in self.slots:
            raise AttributeError(f"the cell has no {kind}; its slots are {', '.join(self.slots) or 'none'}")
        return self.slots[kind]

    weight = _slot_property("weight")
    bias = _slot_property("bias")
    delay = _slot_property("delay")
    threshold = _slot_property("threshold")

    def _require_alone(self) -> None:
        if any(slot.shared for slot in self.slots.values()):
            raise HomeostasisError(
                "`updater()` should be called where one process trains the model. Found several, whose parts "
                "have to be summed first. Call `update()` of the homeostasis in every process."
            )

    def _require_open(self) -> None:
        if not self.is_open:
            raise RemovedCellError(
                "`updater` should belong to a registered cell. Found a cell that was removed. "
                "Register it again."
            )
