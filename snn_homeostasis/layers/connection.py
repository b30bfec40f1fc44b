"""A connection: the parameters of a layer, and how data lies against them."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, UnsupportedLayerError
from .limits import Limits
from .parameters import refer
from .presynaptic import InputView, input_view
from .sharded import is_sharded

__all__ = ["Connection", "laid_over", "weight_shape"]


class Connection(ABC):
    """The parameters of a layer, and the view of postsynaptic data that fits them.

    A new kind defines `positions`, and ``names`` if its parameters have other names.

    Args:
        layer: the user's module; it is neither wrapped nor changed.
        norm: a normalisation between the layer and the neuron. It cancels the bias of the layer,
            so its own bias takes that role.
        gates: how many times the rows of the weight repeat the channels of the neuron, 1 by default.

    Attributes:
        references: the parameters by kind: "weight", "bias", "delay", "threshold".
        limits: the range that a parameter never leaves, whatever its bounds, by kind.

    >>> import torch
    >>> from snn_homeostasis import connect
    >>> connection = connect(torch.nn.Conv1d(2, 3, 5))
    >>> connection.postsyn_receptive(torch.rand(4, 3, 7)).shape  # [B, F, 1, 1, L]
    torch.Size([4, 3, 1, 1, 7])
    """

    names: ClassVar[dict[str, str]] = {"weight": "weight", "bias": "bias"}
    gates = 1
    dt = 1.0  # inferno's trainers read these two: time is in steps, and spikes arrive at once
    delayedby = None

    def __init__(self, layer: nn.Module, norm: nn.Module | None = None, gates: int | None = None) -> None:
        self.layer, self.norm = layer, norm
        self.gates = gates or self.gates
        owners = {kind: (layer, name) for kind, name in self.names.items()}
        if norm is not None:
            owners["bias"] = (norm, "bias")
        references = {kind: refer(*owner) for kind, owner in owners.items()}
        self.references = {kind: ref for kind, ref in references.items() if ref is not None}
        self.limits: dict[str, Limits] = {}
        self._require_norm_fits()

    @property
    def weight(self) -> Tensor | None:
        """The weight, None if the layer has none."""
        return self._parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias, the norm's if there is one; None if there is neither."""
        return self._parameter("bias")

    @property
    def delay(self) -> Tensor | None:
        """The delay, None if the layer has none."""
        return self._parameter("delay")

    @property
    def threshold(self) -> Tensor | None:
        """The threshold of the neuron, None if it has none that can change."""
        return self._parameter("threshold")

    @cached_property
    def features(self) -> int:
        """Number of postsynaptic units (neurons or channels) with parameters of their own."""
        return weight_shape(self)[0] // self.gates

    @property
    def fan_in(self) -> int:
        """Number of weights of one postsynaptic unit, for each gate."""
        return weight_shape(self).numel() // (self.features * self.gates)

    @abstractmethod
    def positions(self, x: Tensor) -> Tensor:
        """Reshapes data ``[B, *N]`` to ``[B, features, L]``; raises RuntimeError if it does not fit."""

    def postsyn_receptive(self, x: Tensor) -> Tensor:
        """Lays data of the shape of the neurons out against the weight.

        Args:
            x: ``[B, *N]``.

        Returns:
            ``[B, ..., L]``: ``...`` broadcasts with the weight, and L positions share one parameter.
        """
        rows = self.positions(x)
        if self.gates > 1:
            rows = rows.repeat(1, self.gates, 1)
        return rows.reshape(*rows.shape[:2], *self._trailing, rows.shape[2]) if self._trailing else rows

    def receptive(self, param: str, x: Tensor) -> Tensor:
        """Lays data ``[B, *N]`` out against a parameter by kind, ``[B, ..., L]``."""
        if param != "threshold":
            return self.postsyn_receptive(x)
        shape = self.references["threshold"].shape
        try:
            # snntorch takes thresholds with a place for the batch, too
            laid = laid_over(x, shape[1:] if len(shape) == x.ndim and shape[0] == 1 else shape)
            return laid.reshape(len(x), *shape, -1)
        except RuntimeError:
            raise ArgumentError(
                f"`threshold` should broadcast to the neurons, {list(x.shape[1:])}. Found shape "
                f"{list(shape)}. Use size 1 where neurons share a threshold, as in (C, 1, 1)."
            ) from None

    def presyn_receptive(self, x: Tensor) -> Tensor:
        """Lays data of the shape of the layer's input out against the weight.

        A postsynaptic spike at position l meets the input that the weight sees for that position. A
        rule with both sides multiplies this view by `postsyn_receptive` and sums over L.

        Args:
            x: ``[B, *in]``.

        Returns:
            ``[B, ..., L]``: ``...`` broadcasts with the weight, L are the positions of
            `postsyn_receptive`.

        Raises:
            UnsupportedLayerError: for a kind of layer without such a view.
        """
        return self.input_view(x)

    @cached_property
    def input_view(self) -> InputView:
        """What `presyn_receptive` calls; raises UnsupportedLayerError for a kind of layer without one."""
        return input_view(self.layer)

    def like_bias(self, k: Tensor) -> Tensor:
        """Reduced receptive data (without B and L) in the shape of the bias."""
        return k.reshape(-1)

    def shaped_for(self, param: str, k: Tensor) -> Tensor:
        """Reduced receptive data (without B and L) in the shape of a parameter by kind."""
        if param in ("weight", "threshold") or (param == "delay" and len(self.references["delay"].shape) > 1):
            return k
        return self.like_bias(k)

    def require_output(self, shape: torch.Size) -> None:
        """Raises ArgumentError if spikes ``[B, *N]`` cannot come from this layer."""
        try:
            self.positions(torch.empty(shape, device="meta"))
        except (RuntimeError, IndexError):
            raise ArgumentError(
                f"`neuron` should have the {self.features} features of {type(self.layer).__name__}, "
                f"as [B, *N]. Found spikes of shape {list(shape)}. Pair the neuron with the "
                f"layer that drives it, and give the model a batch dimension.{self._about_pieces}"
            ) from None

    @property
    def _about_pieces(self) -> str:
        gather = (
            " A layer that is split over processes has to gather its output: `output_layouts=Replicate()`."
        )
        return gather if is_sharded(self.weight) else ""

    @cached_property
    def _trailing(self) -> tuple[int, ...]:
        return (1,) * (len(weight_shape(self)) - 1 if "weight" in self.references else 0)

    def _parameter(self, kind: str) -> Tensor | None:
        return self.references[kind].tensor if kind in self.references else None

    def _require_norm_fits(self) -> None:
        bias = self.references.get("bias")
        if self.norm is None or bias is None:
            return
        if (found := bias.shape.numel()) != self.features * self.gates:
            raise ArgumentError(
                f"`norm` should have the {self.features} features of {type(self.layer).__name__}. "
                f"Found {type(self.norm).__name__} with {found}. Pair the neuron with the "
                "norm itself: Cell(norm, neuron)."
            )


def weight_shape(connection: Connection) -> torch.Size:
    """Returns the shape of the weight; raises UnsupportedLayerError if the layer has none."""
    if "weight" not in connection.references:
        raise UnsupportedLayerError(
            f"`layer` should have a weight. Found {type(connection.layer).__name__} without a "
            "Parameter of that name. If it is a buffer, make it an nn.Parameter."
        )
    return connection.references["weight"].shape


def laid_over(x: Tensor, shape: torch.Size) -> Tensor:
    """Lays data ``[B, *N]`` over a shape that broadcasts with ``[*N]``: ``[B, *shape, L]``.

    Raises:
        RuntimeError: if it does not broadcast.
    """
    neurons = x.shape[1:]
    padded = (1,) * (len(neurons) - len(shape)) + tuple(shape)
    sizes = zip(padded, neurons, strict=False)
    if len(padded) != len(neurons) or any(size not in (1, wanted) for size, wanted in sizes):
        raise RuntimeError(f"{list(shape)} does not broadcast to the neurons, {list(neurons)}")
    axes = range(1, x.ndim)
    shared = [axis for axis in axes if padded[axis - 1] == 1]
    rows = [axis for axis in axes if axis not in shared]
    return x.permute(0, *rows, *shared).reshape(len(x), *shape, -1)
