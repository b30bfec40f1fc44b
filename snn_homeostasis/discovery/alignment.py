"""Compares what a neuron receives with a layer's channels: their order, and the sign."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Connection
from .provenance import Source

__all__ = ["Alignment", "align"]

# Half precision leaves an error of up to 2e-2 of a derivative. A norm that cancels a derivative
# leaves less than 1e-4 of it.
ROUNDING = 2e-2
CANCELLED = 1e-4

OTHER_FEATURES = "with other features than the layer has channels"


@dataclass(frozen=True)
class Alignment:
    """How the input of a neuron, or of a norm, follows the output of a layer.

    Attributes:
        slope: the largest derivative; 0 if the input does not change with the output, None if no
            gradient connects the two.
        sign: 1 if the input rises with the output, -1 if it falls, 0 if both occur.
        problem: why the input does not show the layer's channels in order, or None.
    """

    slope: float | None = None
    sign: int = 1
    problem: str | None = None

    @classmethod
    def of_all(cls, calls: Sequence[Alignment]) -> Alignment:
        """The alignment that several calls of a neuron show together."""
        slopes = [each.slope for each in calls if each.slope is not None]
        signs = {each.sign for each in calls if each.slope != 0.0}
        problem = next((each.problem for each in calls if each.problem is not None), None)
        return cls(max(slopes, default=None), signs.pop() if len(signs) == 1 else 0, problem)


def align(received: Tensor, drivers: Sequence[tuple[Connection, Source]]) -> list[Alignment]:
    """Compares the channels of layers with the features of an input ``[B, *N]``.

    Three derivatives are taken by the output of each layer, or of the norm behind it: of the sum
    over the input, of the sum with a random weight w for each entry, and with c·w, where c is
    random for each feature. If feature f depends on channel f alone, the third derivative is c
    times the second. If the first is zero and the second is not, a normalisation cancels what is
    added to the output. The first gives the sign.

    Returns:
        One alignment for each driver.
    """
    layouts: dict[tuple[type, int], list[int]] = defaultdict(list)
    for index, (connection, _) in enumerate(drivers):
        layouts[type(connection), connection.features].append(index)
    aligned: dict[int, Alignment] = {}
    for indices in layouts.values():
        connection, sources = drivers[indices[0]][0], [drivers[index][1] for index in indices]
        aligned |= zip(indices, _align_layout(received, connection, sources), strict=True)
    return [aligned[index] for index in range(len(drivers))]


@torch.enable_grad()
def _align_layout(received: Tensor, connection: Connection, sources: Sequence[Source]) -> list[Alignment]:
    try:
        rows = connection.positions(received)
    except (RuntimeError, IndexError):
        return [_mismatch(received, source, OTHER_FEATURES) for source in sources]
    factor = torch.rand(1, rows.shape[1], 1, device=rows.device).to(rows.dtype) + 0.5
    weight = torch.rand(rows.shape, device=rows.device).to(rows.dtype) + 0.5
    sums = (_derivatives(each, sources) for each in (rows, weight * rows, factor * weight * rows))
    return [
        _judge(received, source, connection, factor, derivatives)
        for source, *derivatives in zip(sources, *sums, strict=True)
    ]


def _derivatives(rows: Tensor, sources: Sequence[Source]) -> list[Tensor | None]:
    """The derivative of the sum of the rows by the shift of each source."""
    shifts = [source.shift for source in sources if source.shift is not None]
    grads: Sequence[Tensor | None] = [None] * len(shifts)
    if shifts and rows.requires_grad:
        with suppress(RuntimeError):  # reentrant checkpoints refuse `grad`
            grads = torch.autograd.grad(rows.sum(), shifts, retain_graph=True, allow_unused=True)
    known = dict(zip(map(id, shifts), grads, strict=True))
    return [known.get(id(source.shift)) for source in sources]


def _judge(
    received: Tensor,
    source: Source,
    connection: Connection,
    factor: Tensor,
    derivatives: Sequence[Tensor | None],
) -> Alignment:
    grads = [each for each in derivatives if each is not None]
    if len(grads) < len(derivatives):
        if _has_layout(received, source):
            return Alignment()
        return _mismatch(received, source, "without a gradient that shows the order")
    slope = max(map(_largest, grads))
    if slope == 0.0:
        return Alignment(0.0)
    try:
        summed, weighted, refactored = map(connection.positions, grads)
    except (RuntimeError, IndexError):
        return _mismatch(received, source, OTHER_FEATURES)
    rounding = ROUNDING * slope
    # `not <=` also refuses NaN
    if not _largest(refactored - factor * weighted) <= rounding:
        return _mismatch(received, source, "with its channels reordered or mixed")
    if _largest(summed) < CANCELLED * slope:
        return _mismatch(received, source, "through a normalisation that cancels whatever is added to it")
    return Alignment(slope, sign=bool((summed > rounding).any()) - bool((summed < -rounding).any()))


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _has_layout(received: Tensor, source: Source) -> bool:
    """Whether an input has the shape of a layer's output, or of the output after pooling."""
    if source.shape is None or len(source.shape) < received.ndim:
        return False
    pooled = len(source.shape) == received.ndim and source.shape[1] == received.shape[1]
    return pooled or source.shape[1 - received.ndim :] == received.shape[1:]


def _mismatch(received: Tensor, source: Source, how: str) -> Alignment:
    shape = "" if source.shape is None else f", of shape {list(source.shape)},"
    return Alignment(
        problem=f"the output of `{source.path}`{shape} reaches it {how}, as {list(received.shape)}"
    )
