"""What a homeostasis says of its cells: metrics, a summary, and what it sees in a validation."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..cells import Unit
from ..errors import NoSpikesError
from .activity import Activity, activities, metrics_of
from .summary import pairs_of, summary_of
from .table import Table
from .watch import Watch

__all__ = ["Reports"]


class Reports(ABC):
    """The part of a homeostasis that only looks; it changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._step_post_hooks: OrderedDict[int, Callable[[Any], None]] = OrderedDict()

    @property
    @abstractmethod
    def units(self) -> Mapping[str, Unit]:
        """The registered units by name."""

    @property
    @abstractmethod
    def _is_shared(self) -> bool:
        """Whether several processes train the model."""

    def rates(self) -> dict[str, Tensor]:
        """Returns the rate of every cell, mean over the batch: name → ``[*N]``.

        It is in spikes per step, or in Hz with `dt`.

        With several processes it is the rate of all their samples as of the last `update`.

        Raises:
            NoSpikesError: if a cell was never observed.
        """
        shared = self._is_shared
        return {name: unit.mean_rate(shared) for name, unit in self.units.items()}

    def metrics(self) -> dict[str, float]:
        """Returns the figures of each cell, and of all neurons together; waits for the device once.

        Per cell ``"name/rate"`` (as in `rates`), ``"name/silent"`` and ``"name/saturated"`` (shares
        of the neurons, 0 to 1) and, with a target, ``"name/error"`` (mean of ``|r* - r| / r*``); over
        all neurons the same without a name. A cell that was not observed yet is left out.

        >>> import snntorch as snn, torch
        >>> from snn_homeostasis import LinearHomeostasis
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
        >>> homeostasis = LinearHomeostasis(0.05, target=0.1, param="bias").attach(net)
        >>> spikes = net(torch.zeros(16, 4))
        >>> sorted(homeostasis.metrics())[:4]
        ['1/error', '1/rate', '1/saturated', '1/silent']
        """
        return metrics_of(self._activities())

    def summary(self) -> Table:
        """Returns a table with one row for each cell: text for `print`, HTML in a notebook.

        >>> import snntorch as snn, torch
        >>> from snn_homeostasis import LinearHomeostasis
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
        >>> print(LinearHomeostasis(0.05, target=0.1, param="bias").attach(net).summary())
        cell  layer → neuron  param  target  rate  error  silent  saturated     λ  steps
        1     Linear → Leaky  bias      0.1     –      –       –          –  0.05      0
        """
        return summary_of(self.units.values(), self._activities())

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Counts spikes inside the ``with`` block, in any mode and apart from the rule.

        For validation: the estimates of the rule, and with them the parameters, do not notice.

        Yields:
            A `Watch`: its ``rates()``, ``metrics()`` and ``summary()`` are those of the block, during
            it and after it.

        >>> import snntorch as snn, torch
        >>> from snn_homeostasis import LinearHomeostasis
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
        >>> homeostasis = LinearHomeostasis(0.05, target=0.1, param="bias").attach(net)
        >>> with homeostasis.watching() as seen:
        ...     spikes = net.eval()(torch.zeros(16, 4))
        >>> sorted(seen.metrics())[:4]
        ['1/error', '1/rate', '1/saturated', '1/silent']
        """
        watch = Watch(self.units)
        try:
            yield watch
        finally:
            watch.close()

    def register_step_post_hook(self, hook: Callable[[Any], None]) -> RemovableHandle:
        """Calls ``hook(homeostasis)`` after each `update`, and so after each `step`.

        It is what `torch.optim.Optimizer.register_step_post_hook` is for optimizers. `RateHistory`
        uses it.

        Returns:
            A handle; its ``remove()`` ends the calls.
        """
        handle = RemovableHandle(self._step_post_hooks)
        self._step_post_hooks[handle.id] = hook
        return handle

    def __repr__(self) -> str:
        count = len(self.units)
        head = f"{type(self).__name__}({count} cell{'s' * (count != 1)})"
        return f"{head}:\n{pairs_of(self.units.values())}" if count else head

    def _activities(self) -> dict[str, Activity]:
        observed, shared = dict[str, Tensor](), self._is_shared
        for name, unit in self.units.items():
            try:
                observed[name] = unit.mean_rate(shared)
            except NoSpikesError:  # there is nothing to say of it yet
                continue
        return activities(self.units, observed)
