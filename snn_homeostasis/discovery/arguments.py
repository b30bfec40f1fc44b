"""The arguments of one call of a model, as users pass them."""

from typing import Any

__all__ = ["arguments_of"]


def arguments_of(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns arguments by position and by name: a dict names them, a tuple lists them, else it is one.

    >>> arguments_of(("x", "y")), arguments_of({"x": 1}), arguments_of("x")
    ((('x', 'y'), {}), ((), {'x': 1}), (('x',), {}))
    """
    if isinstance(given, dict):
        return (), given
    return given if isinstance(given, tuple) else (given,), {}
