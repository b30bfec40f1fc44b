"""Named errors in one mould (what should be, what was found, what to do), and the checks that raise them."""

import sys
import warnings
from numbers import Real
from pathlib import Path
from typing import TypeGuard

__all__ = [
    "ArgumentError",
    "HomeostasisError",
    "HomeostasisWarning",
    "NoSpikesError",
    "NonFiniteError",
    "ProcessMismatchError",
    "RemovedCellError",
    "ReplacedModuleError",
    "UnpairedNeuronError",
    "UnsupportedLayerError",
    "UnsupportedNeuronError",
    "WaitingGraphError",
    "is_number",
    "require",
    "warn",
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


class ReplacedModuleError(HomeostasisError, RuntimeError):
    """A layer or a neuron was replaced in the model after it was attached."""


class HomeostasisWarning(UserWarning):
    """The rule can run, but its premise or its target is doubtful."""


def require(
    condition: bool, name: str, expected: str, found: object, remedy: str, *, show: str | None = None
) -> None:
    """Raises ArgumentError unless a condition holds: "`name` should expected. Found show. remedy".

    Without ``show`` it prints ``name = found``.
    """
    if not condition:
        seen = show if show is not None else f"`{name} = {found!r}`"
        raise ArgumentError(f"`{name}` should {expected}. Found {seen}. {remedy}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, of Python or NumPy; True and False are none here."""
    return isinstance(value, Real) and not isinstance(value, bool)


def warn(message: str) -> None:
    """Warns with a HomeostasisWarning that points at the line of the user."""
    package, level = str(Path(__file__).parent), 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, HomeostasisWarning, stacklevel=level)
