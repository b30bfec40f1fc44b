"""A watch: counts the spikes of all cells for a while, apart from the rule."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..cells import Unit
from ..observe import CumulativeRate, SpikeHook
from .activity import Activity, activities, metrics_of
from .summary import summary_of
from .table import Table

__all__ = ["Watch"]


class Watch:
    """The rates of some cells since it was made, in training and in eval mode.

    It hooks each neuron once, also where several layers drive it.
    """

    def __init__(self, units: Mapping[str, Unit]) -> None:
        self._units = dict(units)
        self._counts = {id(unit.hook.module): CumulativeRate() for unit in units.values()}
        modules = {id(unit.hook.module): unit.hook.module for unit in units.values()}
        self._hooks = [SpikeHook(module, _accept, in_eval=True) for module in modules.values()]
        for hook in self._hooks:
            hook.listen(self._counts[id(hook.module)])

    def close(self) -> None:
        """Takes the hooks off; what was counted stays."""
        for hook in self._hooks:
            hook.close()

    def rates(self) -> dict[str, Tensor]:
        """Returns the rate of each cell that has run, mean over the batch: name → ``[*N]``."""
        counts = {name: self._counts[id(unit.hook.module)] for name, unit in self._units.items()}
        seen = {name: count.rate.mean(0) for name, count in counts.items() if count.steps}
        return {name: self._units[name].in_units(rate) for name, rate in seen.items()}

    def metrics(self) -> dict[str, float]:
        """Returns the same figures as `Homeostasis.metrics`, from the spikes that this watch counted."""
        return metrics_of(self._activities())

    def summary(self) -> Table:
        """Returns the same table as `Homeostasis.summary`, from the spikes that this watch counted."""
        return summary_of(self._units.values(), self._activities())

    def _activities(self) -> dict[str, Activity]:
        return activities(self._units, self.rates())


def _accept(shape: torch.Size) -> None:
    """Takes spikes of any shape: the cell checks them where it observes them."""
