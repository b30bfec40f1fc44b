"""Whether what a neuron receives is a layer's channels, in their order, and with which sign."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.connections import Connection
from .marks import Source

__all__ = ["Alignment", "align"]

# what rounding may leave of a derivative: of one in half precision, and of one that a norm cancels
ROUNDING = 2e-2
CANCELLED = 1e-4

OTHER_FEATURES = "with other features than the layer has channels"

Triple = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Alignment:
    """How what a neuron, or a norm, receives follows the output of a layer.

    Attributes:
        slope: the largest derivative; 0 if nothing of the output is seen to arrive, None if no
            gradient connects the two.
        sign: 1 if it rises with the output, -1 if it falls, 0 if that differs.
        problem: why the layer's channels are not to be found in it, or None.
    """

    slope: float | None = None
    sign: int = 1
    problem: str | None = None

    @classmethod
    def of_all(cls, calls: Sequence[Alignment]) -> Alignment:
        """What several calls of a neuron show together."""
        slopes = [each.slope for each in calls if each.slope is not None]
        signs = {each.sign for each in calls if each.slope != 0.0}
        problems = [each.problem for each in calls if each.problem is not None]
        return cls(
            max(slopes, default=None),
            signs.pop() if len(signs) == 1 else 0,
            problems[0] if problems else None,
        )


def align(received: Tensor, drivers: Sequence[tuple[Connection, Source]]) -> list[Alignment]:
    """Compares the channels of layers with the features of what is received.

    Vector-Jacobian products tell, for all layers of one layout together. Where feature f depends
    on channel f alone, weighting the features by c_f weights the derivative of channel f by c_f,
    whatever other weights the entries have. Where those weights matter but their mean does not, a
    normalisation cancels what is added. The sum of all entries gives the sign.

    Args:
        received: ``[B, *N]``.
        drivers: connection of each layer, and its output, or that of a norm behind it.

    Returns:
        One alignment for each driver.
    """
    layouts: dict[tuple[type, int], list[int]] = defaultdict(list)
    for index, (connection, _) in enumerate(drivers):
        layouts[type(connection), connection.features].append(index)
    aligned: dict[int, Alignment] = {}
    for indices in layouts.values():
        connection, sources = drivers[indices[0]][0], [drivers[index][1] for index in indices]
        aligned |= zip(indices, _align(received, connection, sources), strict=True)
    return [aligned[index] for index in range(len(drivers))]


@torch.enable_grad()
def _align(received: Tensor, connection: Connection, sources: Sequence[Source]) -> list[Alignment]:
    try:
        rows = connection.positions(received)
    except (RuntimeError, IndexError):
        return [_mismatch(received, source, OTHER_FEATURES) for source in sources]
    factor = torch.rand(1, rows.shape[1], 1, device=rows.device).to(rows.dtype) + 0.5
    weight = torch.rand(rows.shape, device=rows.device).to(rows.dtype) + 0.5
    found = zip(
        *(_derivatives(weighted, sources) for weighted in (rows, weight * rows, factor * weight * rows)),
        strict=True,
    )
    return [
        _judge(received, source, connection, factor, derivatives)
        for source, derivatives in zip(sources, found, strict=True)
    ]


def _derivatives(rows: Tensor, sources: Sequence[Source]) -> list[Tensor | None]:
    """Of the sum of the rows, by what was added to each source."""
    shifts = [source.shift for source in sources if source.shift is not None]
    if not shifts or not rows.requires_grad:
        return [None] * len(sources)
    try:
        grads = torch.autograd.grad(rows.sum(), shifts, retain_graph=True, allow_unused=True)
    except RuntimeError:  # a graph that is not meant to be read
        return [None] * len(sources)
    known = dict(zip(map(id, shifts), grads, strict=True))
    return [known.get(id(source.shift)) for source in sources]


def _judge(
    received: Tensor,
    source: Source,
    connection: Connection,
    factor: Tensor,
    derivatives: tuple[Tensor | None, ...],
) -> Alignment:
    grads = [each for each in derivatives if each is not None]
    if len(grads) < len(derivatives):
        if _has_layout(received, source):
            return Alignment()
        return _mismatch(received, source, "without a gradient that tells the order")
    slope = max(map(_largest, grads))
    if slope == 0.0:
        return Alignment(0.0)
    try:
        summed, weighted, refactored = map(connection.positions, grads)
    except (RuntimeError, IndexError):
        return _mismatch(received, source, OTHER_FEATURES)
    if not _largest(refactored - factor * weighted) <= ROUNDING * slope:
        return _mismatch(received, source, "with its channels reordered or mixed")
    if _largest(summed) < CANCELLED * slope:
        return _mismatch(received, source, "through a normalisation that cancels whatever is added to it")
    rounding = ROUNDING * slope
    return Alignment(slope, sign=bool((summed > rounding).any()) - bool((summed < -rounding).any()))


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _has_layout(received: Tensor, source: Source) -> bool:
    if source.shape is None or len(source.shape) < received.ndim:
        return False
    pooled = len(source.shape) == received.ndim and source.shape[1] == received.shape[1]
    return pooled or source.shape[1 - received.ndim :] == received.shape[1:]


def _mismatch(received: Tensor, source: Source, how: str) -> Alignment:
    shape = "" if source.shape is None else f", of shape {list(source.shape)},"
    return Alignment(
        problem=f"the output of `{source.path}`{shape} reaches it {how}, as {list(received.shape)}"
    )
