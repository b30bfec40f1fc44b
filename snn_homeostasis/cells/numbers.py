"""What counts as a number where a user gives one."""

from numbers import Real
from typing import TypeGuard

__all__ = ["is_number"]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, of Python or NumPy; True and False are none here."""
    return isinstance(value, Real) and not isinstance(value, bool)
