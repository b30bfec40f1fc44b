"""What lies in the value that a model returns, and in its attributes."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Opaque", "leaves"]

WITHOUT_DATA = (str, bytes, bool, type(None), torch.Size, type, nn.Module)


class Opaque:
    """A number, an array or the like: data whose origin cannot be followed."""


def leaves(value: Any, into_objects: bool = False) -> Iterator[Tensor | Opaque]:
    """The tensors in nested containers, and with ``into_objects`` in the attributes of objects too."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, WITHOUT_DATA):
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, Mapping):
            waiting.extend(each.values())
        elif isinstance(each, list | tuple | set | frozenset | deque):
            waiting.extend(each)
        elif into_objects and _attributes(each):
            waiting.extend(_attributes(each))
        else:
            yield Opaque()


def _attributes(value: Any) -> list[Any]:
    """The values of an object's attributes; none for numbers and arrays."""
    names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    slots = [getattr(value, name) for name in names if isinstance(name, str) and hasattr(value, name)]
    return [*getattr(value, "__dict__", {}).values(), *slots]
