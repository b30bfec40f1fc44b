"""Named errors, all in one mould: what should be, what was found, what to do."""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "HomeostasisError",
    "HomeostasisWarning",
    "NoSpikesError",
    "NonFiniteError",
    "ProcessMismatchError",
    "RemovedCellError",
    "UnpairedNeuronError",
    "UnsupportedLayerError",
    "UnsupportedNeuronError",
    "WaitingGraphError",
]


class HomeostasisError(Exception):
    """Base of every error raised by this package."""


class ArgumentError(HomeostasisError, ValueError):
    """An argument has a value that cannot work."""


class UnsupportedLayerError(HomeostasisError, TypeError):
    """A layer has no connection, or a parameter that cannot be changed in place."""


class UnsupportedNeuronError(HomeostasisError, TypeError):
    """A neuron emits no spikes, or its output is not known to this package."""


class UnpairedNeuronError(HomeostasisError, ValueError):
    """The layer that drives a neuron cannot be known from the model."""


class NoSpikesError(HomeostasisError, RuntimeError):
    """A rate is needed before any spike was observed."""


class NonFiniteError(HomeostasisError, RuntimeError):
    """A rate, a membrane or an update is NaN or infinite."""


class WaitingGraphError(HomeostasisError, RuntimeError):
    """A parameter would be changed that a graph still needs for its backward."""


class ProcessMismatchError(HomeostasisError, RuntimeError):
    """Processes that train one model are not at the same point, or one is gone."""


class RemovedCellError(HomeostasisError, RuntimeError):
    """A cell is used after it was removed."""


class HomeostasisWarning(UserWarning):
    """The rule can run, but its premise or its target is doubtful."""
