"""Passes: a change of a parameter as operations in place, which allocate nothing of its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

__all__ = ["Delta", "Pass", "affine", "blockwise", "make_from"]

Pass = Callable[[], object]
"""One operation in place; it adds one to the parameter's ``_version``."""
Delta = Callable[[Tensor, Tensor, Tensor], Tensor]

# entries of a block: on a CPU what stays in its cache, elsewhere what fills the device
ON_CPU, ELSEWHERE = 2**16, 2**24


def affine(param: Tensor, toward: Tensor, slope: Tensor, rest: Tensor | float = 0.0) -> list[Pass]:
    """``param + toward - slope * param + rest`` in two passes.

    ``1 - slope`` is rounded, and ``toward`` with it, so that the point at which the two cancel
    stays where it is.
    """
    kept = 1 - slope
    rounded = ((1 - kept) / slope).nan_to_num_(1.0)
    return [partial(param.mul_, kept), partial(param.add_, toward * rounded + rest)]


def blockwise(delta: Delta, param: Tensor, pos: Tensor, neg: Tensor) -> list[Pass]:
    """Adds ``delta(param, pos, neg)``, which has to be elementwise, to one block of rows after another."""
    if param.ndim == 0:
        return [partial(_add, delta, param, pos, neg)]
    size = ON_CPU if param.device.type == "cpu" else ELSEWHERE
    rows = max(1, size // max(1, param[0].numel())) if len(param) else 1
    count = -(-len(param) // rows)
    blocks = zip(*(_blocks(each, param, rows, count) for each in (param, pos, neg)), strict=True)
    return [partial(_add, delta, *each) for each in blocks]


def make_from(passes: Sequence[Pass], param: Tensor, version: int) -> None:
    """Makes all passes, or, if some were made since that version of the parameter, the rest."""
    for each in passes[param._version - version :]:
        each()


def _add(delta: Delta, param: Tensor, pos: Tensor, neg: Tensor) -> None:
    param.add_(delta(param, pos, neg))


def _blocks(part: Tensor, param: Tensor, rows: int, count: int) -> Sequence[Tensor]:
    shared = part.ndim < param.ndim or len(part) < len(param)
    return [part] * count if shared else torch.split(part, rows)
