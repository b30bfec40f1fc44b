"""Whether what a neuron receives is a layer's channels, in their order, and with which sign."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..connections import Connection
from .marks import Source

__all__ = ["Alignment", "align"]

# derivatives are of the order of 1; what a normalisation leaves of them is rounding
CANCELLED = 1e-5


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


def align(connection: Connection, source: Source, received: Tensor) -> Alignment:
    """Compares the channels of a layer with the features of what is received.

    Two vector-Jacobian products tell: where feature f depends on channel f alone, weighting
    the features by c_f weights the derivative of channel f by c_f. Where no gradient
    connects the two, their shapes have to agree.

    Args:
        connection: of the layer; lays out its output, and what is received.
        source: the layer's output, or that of a norm behind it.
        received: ``[B, *N]``.
    """
    try:
        derivatives = _derivatives(connection, source, received)
    except (RuntimeError, IndexError):
        return _mismatch(source, received, "with other features than the layer has channels")
    slope = None if derivatives is None else max(map(_largest, derivatives[:2]))
    if derivatives is None or not slope:
        if _has_layout(source, received):
            return Alignment(slope)
        return _mismatch(source, received, "without a gradient that tells the order")
    if slope < CANCELLED:
        return _mismatch(source, received, "through a normalisation that cancels whatever is added to it")
    plain, weighted, factor = derivatives
    rounding = slope * (5e-2 if plain.dtype in (torch.float16, torch.bfloat16) else 1e-3)
    if _largest(weighted - factor * plain) > rounding:
        return _mismatch(source, received, "with its channels reordered or mixed")
    return Alignment(slope, sign=bool((plain > rounding).any()) - bool((plain < -rounding).any()))


@torch.enable_grad()
def _derivatives(
    connection: Connection, source: Source, received: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Of the sum of what is received, and of that weighted by feature, with the weights."""
    rows = connection.positions(received)
    if source.shift is None or not rows.requires_grad:
        return None
    factor = torch.rand(1, rows.shape[1], 1, device=rows.device, dtype=rows.dtype) + 0.5
    totals = torch.stack([rows.sum(), (rows * factor).sum()])
    grads = [
        torch.autograd.grad(total, source.shift, retain_graph=True, allow_unused=True)[0] for total in totals
    ]
    if grads[0] is None:
        return None
    plain, weighted = map(connection.positions, grads)
    return plain, weighted, factor


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _has_layout(source: Source, received: Tensor) -> bool:
    if source.shape is None or len(source.shape) < received.ndim:
        return False
    pooled = len(source.shape) == received.ndim and source.shape[1] == received.shape[1]
    return pooled or source.shape[1 - received.ndim :] == received.shape[1:]


def _mismatch(source: Source, received: Tensor, how: str) -> Alignment:
    shape = "" if source.shape is None else f", of shape {list(source.shape)},"
    return Alignment(
        problem=f"the output of `{source.path}`{shape} reaches it {how}, as {list(received.shape)}"
    )
