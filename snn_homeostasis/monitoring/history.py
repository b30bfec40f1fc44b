"""A history: the metrics of each step, in bounded memory."""

import weakref
from array import array
from math import nan
from typing import Any

from ..errors import require
from ..following import when_collected
from .reports import Reports

__all__ = ["RateHistory"]


class RateHistory:
    """Records the metrics of a homeostasis after each of its steps.

    It keeps at most ``size`` records. When it is full it drops every second one and records half as
    often from then on, so a run of any length fits, evenly spaced.

    Args:
        homeostasis: is read after each `step`, or each `update`.
        every: record after every so many steps. Each record waits for the device once.
        size: how many records to keep at most.

    Raises:
        ArgumentError: for numbers that cannot work.

    >>> import snntorch as snn, torch
    >>> from snn_homeostasis import LinearHomeostasis, RateHistory
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
    >>> homeostasis = LinearHomeostasis(0.01, target=0.1, param="bias").attach(net)
    >>> history = RateHistory(homeostasis)
    >>> for _ in range(3):
    ...     spikes = net(torch.zeros(16, 4))
    ...     homeostasis.step()
    >>> history.to_dict()["step"], len(history.to_dict()["1/silent"])
    ([1, 2, 3], 3)
    """

    def __init__(self, homeostasis: Reports, every: int = 1, size: int = 2048) -> None:
        for name, value, least in (("every", every, 1), ("size", size, 2)):
            is_right = isinstance(value, int) and value >= least
            require(is_right, name, f"be an integer ≥ {least}", value, "Leave it out for the default.")
        self.homeostasis, self.every, self.size = homeostasis, every, size
        self.step = 0
        self._columns: dict[str, array[float]] = {"step": array("d")}
        history = weakref.ref(self)  # the hook does not keep the history alive

        def record(_: Any) -> None:
            if (recorder := history()) is not None:
                recorder._record()

        handle = homeostasis.register_step_post_hook(record)
        self._release = when_collected(self, handle.remove)

    def _record(self) -> None:
        self.step += 1
        if len(self) == self.size and not self.step % self.every:
            self.every *= 2
            for name, column in self._columns.items():
                self._columns[name] = column[1::2]
        if not self.step % self.every:
            self._append({"step": self.step, **self.homeostasis.metrics()})

    def _append(self, record: dict[str, float]) -> None:
        before = len(self)
        for name in record.keys() - self._columns.keys():
            self._columns[name] = array("d", [nan] * before)
        for name, column in self._columns.items():
            column.append(record.get(name, nan))

    def __len__(self) -> int:
        return len(self._columns["step"])

    def close(self) -> None:
        """Records nothing more; what was recorded stays."""
        self._release()

    def to_dict(self) -> dict[str, list[float]]:
        """Returns columns of equal length: ``"step"``, and one for each metric; NaN where it is missing."""
        columns = {name: column.tolist() for name, column in self._columns.items()}
        return columns | {"step": [int(step) for step in columns["step"]]}

    def state_dict(self) -> dict[str, Any]:
        """Returns all that `load_state_dict` needs to go on."""
        return {"step": self.step, "every": self.every, "columns": self.to_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where a saved history stopped."""
        self.step, self.every = state["step"], state["every"]
        self._columns = {name: array("d", column) for name, column in state["columns"].items()}
