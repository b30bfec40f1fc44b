"""Whether what a neuron receives is a layer's channels, in their order, and with which sign."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..connections import Connection
from .marks import Source

__all__ = ["Alignment", "align"]

# derivatives are of the order of 1; what a normalisation leaves of them is rounding
CANCELLED = 1e-5
OTHER_FEATURES = "with other features than the layer has channels"


@dataclass(frozen=True)
class Alignment:
    """How what a neuron, or a norm, receives follows the output of a layer.

    Attributes:
        slope: the largest derivative; 0 if none of the output is seen to arrive, None if no
            gradient connects the two.
        sign: 1 if it rises with the output, -1 if it falls, 0 if that differs or is unknown.
        problem: why the layer's channels are not to be found in it, or None.
    """

    slope: float | None = None
    sign: int = 1
    problem: str | None = None


def align(received: Tensor, drivers: Sequence[tuple[Connection, Source]]) -> list[Alignment]:
    """Compares the channels of layers with the features of what is received.

    Two vector-Jacobian products tell, for all layers of one layout together: where feature f
    depends on channel f alone, weighting the features by c_f weights the derivative of channel
    f by c_f. Where no gradient connects the two, their shapes have to agree.

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
    derivatives = zip(_derivatives(rows, sources), _derivatives(rows * factor, sources), strict=True)
    return [
        _judge(received, source, connection, factor, grads)
        for source, grads in zip(sources, derivatives, strict=True)
    ]


def _derivatives(rows: Tensor, sources: Sequence[Source]) -> list[Tensor | None]:
    """Of the sum of the rows, by what was added to each source."""
    shifts = [source.shift for source in sources if source.shift is not None]
    if not shifts or not rows.requires_grad:
        return [None] * len(sources)
    grads = torch.autograd.grad(rows.sum(), shifts, retain_graph=True, allow_unused=True)
    known = dict(zip(map(id, shifts), grads, strict=True))
    return [known.get(id(source.shift)) for source in sources]


def _judge(
    received: Tensor,
    source: Source,
    connection: Connection,
    factor: Tensor,
    grads: tuple[Tensor | None, Tensor | None],
) -> Alignment:
    slope = None if grads[0] is None else max(_largest(each) for each in grads if each is not None)
    if not slope:
        if _has_layout(received, source):
            return Alignment(slope)
        return _mismatch(received, source, "without a gradient that tells the order")
    if slope < CANCELLED:
        return _mismatch(received, source, "through a normalisation that cancels whatever is added to it")
    try:
        plain, weighted = (connection.positions(each) for each in grads if each is not None)
    except (RuntimeError, IndexError):
        return _mismatch(received, source, OTHER_FEATURES)
    rounding = slope * (5e-2 if plain.dtype in (torch.float16, torch.bfloat16) else 1e-3)
    if _largest(weighted - factor * plain) > rounding:
        return _mismatch(received, source, "with its channels reordered or mixed")
    return Alignment(slope, sign=bool((plain > rounding).any()) - bool((plain < -rounding).any()))


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
