"""The neuron classes of snntorch by name: older and newer releases lack some of them."""

from collections.abc import Callable
from typing import Any, TypeVar

import snntorch as snn

__all__ = ["register"]

F = TypeVar("F", bound=Callable[..., Any])


def register(dispatcher: Any, *names: str) -> Callable[[F], F]:
    """Registers a function for those classes of snntorch that the installed release has.

    >>> import functools, torch
    >>> @functools.singledispatch
    ... def steps(neuron):
    ...     return "one"
    >>> @register(steps, "LeakyParallel", "ClassOfALaterRelease")
    ... def _(neuron):
    ...     return "all"
    >>> steps(snn.LeakyParallel(2, 3)), steps(snn.Leaky(beta=0.9))
    ('all', 'one')
    """

    def add(function: F) -> F:
        for name in names:
            if (kind := getattr(snn, name, None)) is not None:
                dispatcher.register(kind, function)
        return function

    return add
