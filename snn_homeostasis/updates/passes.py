"""Passes: a change of a tensor as operations in place, which allocate nothing of its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, split

__all__ = ["Pass", "Passes", "add_product", "adding", "blockwise", "nearing"]

Pass = Callable[[], object]
"""One operation in place; it adds one to the tensor's ``_version``."""
Delta = Callable[[Tensor, Tensor, Tensor], Tensor]
Operations = Callable[[Tensor, Tensor, Tensor], Sequence[Pass]]

# entries of a block: on a CPU what stays in its cache, elsewhere what fills the device
ON_CPU, ELSEWHERE = 2**17, 2**24


class Passes:
    """Operations on one tensor, each made once, however often `make` is interrupted and called again.

    Args:
        tensor: what they change. Others may share its ``_version``, if they are changed in turn.
        operations: in their order.
    """

    def __init__(self, tensor: Tensor, operations: Sequence[Pass]) -> None:
        self.tensor, self.operations = tensor, operations
        self.renew()

    def renew(self) -> None:
        """Lets the next `make` begin anew."""
        self._start: int | None = None

    def make(self) -> None:
        """Makes what was not made yet."""
        if self._start is None:
            self._start = self.tensor._version
        for operation in self.operations[self.tensor._version - self._start :]:
            operation()


def adding(delta: Delta) -> Operations:
    """Adds ``delta(param, pos, neg)``."""

    def add(param: Tensor, pos: Tensor, neg: Tensor) -> None:
        param.add_(delta(param, pos, neg))

    return lambda *block: [partial(add, *block)]


def add_product(param: Tensor, factor: Tensor | None, part: Tensor, sign: int = 1) -> None:
    """Adds ``sign * factor * part``, in one operation; no factor is 1."""
    if factor is None:
        param.add_(part, alpha=sign)
    else:
        param.addcmul_(factor, part, value=sign)


def nearing(param: Tensor, center: Tensor, share: Tensor) -> list[Pass]:
    """Goes a share of the way to a center."""

    def near() -> None:
        # `lerp_` does the same, and is slow for what broadcasts
        param.addcmul_(center - param, share)

    return [near]


def blockwise(operations: Operations, param: Tensor, one: Tensor, two: Tensor) -> list[Pass]:
    """What is made elementwise of a tensor and two that broadcast with it, block of rows after block."""
    if param.ndim == 0:
        return list(operations(param, one, two))
    size = ON_CPU if param.device.type == "cpu" else ELSEWHERE
    rows = max(1, size // max(1, param[0].numel())) if len(param) else 1
    count = -(-len(param) // rows)
    blocks = zip(*(_blocks(each, param, rows, count) for each in (param, one, two)), strict=True)
    return [operation for block in blocks for operation in operations(*block)]


def _blocks(part: Tensor, param: Tensor, rows: int, count: int) -> Sequence[Tensor]:
    shared = part.ndim < param.ndim or len(part) < len(param)
    blocks: Sequence[Tensor] = [part] * count if shared else split(part, rows)
    return blocks
