"""Habits: ways to call `step` that run, but do something else than they seem to. Each gets one warning."""

from collections.abc import Iterable, Mapping, Sequence

from ..errors import warn
from .unit import Unit

__all__ = ["Habits"]


class Habits:
    """Watches the steps of one homeostasis.

    Attributes:
        cells: how many there were at the last step; 0 before the first.
    """

    def __init__(self) -> None:
        self.cells = 0
        self._said: set[str] = set()

    def watch_observations(self, stepped: Sequence[Unit], units: Mapping[str, Unit]) -> None:
        """Warns of a step in which no cell had run since its last one, or in which all were frozen."""
        if [unit for unit in stepped if unit.is_news()]:
            return
        if stepped:
            self._say(
                "`step` should be called once for each observation. Found no spikes since the last call, so "
                "the same rates would move the parameters again. Run the model in between; where "
                "`follow(optimizer)` calls it, call it nowhere else."
            )
        elif not all(unit.hook.module.training for unit in units.values()):
            self._say(
                "`step` should be called while the model is in training mode. Found it in eval mode, where "
                "nothing is observed and nothing changes. Call `.train()` on the model; to freeze on "
                "purpose, call `eval()` of the homeostasis alone."
            )

    def watch_others(self, units: Mapping[str, Unit], others: Iterable[Mapping[str, Unit]]) -> None:
        """Warns of a cell that other objects with the same rule step as well."""
        self.cells = len(units)
        taken = {unit.regulated for each in others for unit in each.values()}
        twice = [repr(name) for name, unit in units.items() if unit.regulated in taken]
        if twice:
            param = next(unit.state.param for unit in units.values() if unit.regulated in taken)
            self._say(
                f"A model should be regulated once by its {param}. Found that two objects with the same rule "
                f"step cell {', '.join(twice)}, so each change is made twice. Call `remove()` of one of them."
            )

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warn(message)
