"""Compares what a neuron receives with a layer's channels: their order, and the sign."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ..layers import ChannelConnection, Connection, is_sharded
from .links import quoted
from .provenance import Source

__all__ = ["Alignment", "align"]

# Half precision leaves an error of up to 2e-2 of a derivative. A norm that cancels a derivative
# leaves less than 1e-4 of it.
ROUNDING = 2e-2
CANCELLED = 1e-4

OTHER_FEATURES = "with other features than the layer has channels"
OF_ONE_PROCESS = (
    "with the channels of this process alone (gather them with `ColwiseParallel(output_layouts=Replicate())`)"
)
NO_BATCH = "without a batch dimension (give the example one)"


@dataclass(frozen=True)
class Alignment:
    """How the input of a neuron, or of a norm, follows the output of a layer."""

    slope: float | None = None  # the largest derivative; None if no gradient connects the two
    sign: int = 1  # 1 if the input rises with the output, -1 if it falls, 0 if both occur
    problem: str | None = None
    is_open: bool = False  # whether nothing contradicts a user who names the layer

    @classmethod
    def of_all(cls, calls: Sequence[Self]) -> Self:
        """The alignment that several calls of a neuron show together."""
        slopes = [each.slope for each in calls if each.slope is not None]
        signs = {each.sign for each in calls if each.slope != 0.0}
        first = next((each for each in calls if each.problem is not None), cls())
        sign = signs.pop() if len(signs) == 1 else 0
        return cls(max(slopes, default=None), sign, first.problem, first.is_open)


@torch.enable_grad()
def align(received: Tensor, connection: Connection, sources: Sequence[Source]) -> list[Alignment]:
    """Compares the channels of layers of one layout with the features of an input ``[B, *N]``."""
    # Three derivatives by each source: of the sum over the input, of the sum weighted by w, random
    # for each entry, and by c·w, with c random for each feature. If feature f depends on channel f
    # alone, the third is c times the second. If only the first is zero, a norm cancels additions.
    try:
        rows = connection.positions(received)
    except (RuntimeError, IndexError):
        return [_mismatch(received, source, _why_other_features(connection, source)) for source in sources]
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
    grads: dict[Tensor | None, Tensor | None] = {}
    if shifts and rows.requires_grad:
        with suppress(RuntimeError):  # reentrant checkpoints refuse `grad`
            values = torch.autograd.grad(rows.sum(), shifts, retain_graph=True, allow_unused=True)
            grads |= zip(shifts, values, strict=True)
    return [grads.get(source.shift) for source in sources]


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
        return replace(_mismatch(received, source, "without a gradient that shows the order"), is_open=True)
    slope = max(map(_largest, grads))
    if slope == 0.0:
        return Alignment(0.0)
    if _lacks_batch(connection, source):
        if received.ndim <= grads[0].ndim:
            return _mismatch(received, source, NO_BATCH)
        grads = [each.unsqueeze(0) for each in grads]  # for instance of spikes that start as zeros [N]
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


def _why_other_features(connection: Connection, source: Source) -> str:
    if _lacks_batch(connection, source):
        return NO_BATCH
    channels = () if source.shape is None else source.shape[1:]
    is_split = is_sharded(connection.weight) and connection.features not in channels
    return OF_ONE_PROCESS if is_split else OTHER_FEATURES


def _lacks_batch(connection: Connection, source: Source) -> bool:
    """Whether a layer put out a single sample, without a batch dimension."""
    weight = connection.weight if isinstance(connection, ChannelConnection) else None
    axes = 1 if weight is None else weight.ndim - 1
    return source.shape is not None and len(source.shape) == axes


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
    through = f" through {quoted(source.through)}" if source.through else ""
    return Alignment(
        problem=f"the output of `{source.path}`{shape} reaches it{through} {how}, as {list(received.shape)}"
    )
