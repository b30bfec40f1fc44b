"""Shortcuts: quicker ways to a result, which a subclass that means another result must not inherit."""

from __future__ import annotations

__all__ = ["is_current"]


def is_current(cls: type, short: str, *long: str) -> bool:
    """Whether a class has not redefined what a short way stands for without redefining that way.

    Args:
        cls: the class.
        short: name of the method that is the short way.
        long: names of the methods that it stands for.
    """

    def depth(name: str) -> int:
        return next(level for level, base in enumerate(cls.__mro__) if name in vars(base))

    return depth(short) <= min(map(depth, long))
