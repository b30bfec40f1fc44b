"""The receptive view of each kind of layer.

A rule sees a layer only through its connection: `Connection.postsyn_receptive` lays data of the
shape of the neurons out against the weight, `Connection.like_bias` against the bias. One
registration adds a layer class::

    @connect.register(MyLayer)
    class MyConnection(Connection): ...
"""

from functools import cached_property, singledispatch
from typing import ClassVar

import torch
from snntorch._neurons import rleaky, rsynaptic  # their RecurrentOneToOne has no public name
from torch import Tensor, nn

from ..errors import UnsupportedLayerError
from .connection import Connection, laid_over, weight_shape
from .presynaptic import InputView

__all__ = ["ChannelConnection", "Connection", "DenseConnection", "OneToOneConnection", "connect", "is_layer"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class DenseConnection(Connection):
    """Features on the last axis: ``[B, N]``, ``[B, ..., N]``, or N folded into several axes.

    >>> DenseConnection(nn.Linear(3, 2)).postsyn_receptive(torch.rand(5, 2)).shape
    torch.Size([5, 2, 1, 1])
    """

    def positions(self, x: Tensor) -> Tensor:
        features = self.features
        if x.ndim == 2 or (x.shape[-1] != features and x[0].numel() == features):
            return x.reshape(x.shape[0], features, 1)
        return x.reshape(*x.shape[:-1], features, 1).movedim(-2, 1).flatten(2)


class ChannelConnection(Connection):
    """Channels on the first axis: ``[B, F, *positions]``, also flattened to ``[B, F·L]``.

    >>> ChannelConnection(nn.Conv2d(3, 2, 3)).postsyn_receptive(torch.rand(5, 2, 4, 4)).shape
    torch.Size([5, 2, 1, 1, 1, 16])
    """

    def positions(self, x: Tensor) -> Tensor:
        if x.ndim > 2 and x.shape[1] != self.features:
            raise RuntimeError("channels differ")
        return x.reshape(x.shape[0], self.features, -1)


class TransposedConvConnection(ChannelConnection):
    """Weight ``(in, out/g, ...)``: an output channel has one entry for each input of its group.

    With one group the view broadcasts over the inputs. With several it is copied for each of them.
    """

    layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

    @cached_property
    def features(self) -> int:
        return self.layer.out_channels

    def postsyn_receptive(self, x: Tensor) -> Tensor:
        rows = self.positions(x)
        groups, inputs = self.layer.groups, self.layer.in_channels
        rows = rows.reshape(len(x), groups, 1, -1, *self._trailing[1:], rows.shape[2])
        if groups == 1:
            return rows.squeeze(1)
        return rows.expand(-1, -1, inputs // groups, *rows.shape[3:]).flatten(1, 2)

    def like_bias(self, k: Tensor) -> Tensor:
        groups = self.layer.groups
        return k.reshape(groups, -1, self.features // groups)[:, 0].reshape(-1)


class OneToOneConnection(Connection):
    """A weight that multiplies the input of each neuron; neurons share it where its shape is 1.

    >>> layer = nn.Module()
    >>> layer.weight = nn.Parameter(torch.ones(2))
    >>> OneToOneConnection(layer).postsyn_receptive(torch.rand(5, 2)).shape
    torch.Size([5, 2, 1])
    """

    @cached_property
    def features(self) -> int:
        return weight_shape(self).numel()

    def positions(self, x: Tensor) -> Tensor:
        return self.postsyn_receptive(x).reshape(len(x), self.features, -1)

    def postsyn_receptive(self, x: Tensor) -> Tensor:
        return laid_over(x, torch.Size(weight_shape(self)))

    @property
    def input_view(self) -> InputView:
        return self.postsyn_receptive


class RecurrentOneToOneConnection(OneToOneConnection):
    """The ``V`` of snntorch's RLeaky and RSynaptic with ``all_to_all=False``."""

    names: ClassVar[dict[str, str]] = {"weight": "V"}


class LSTMCellConnection(DenseConnection):
    """The input weights of an LSTM cell; each neuron has one row in each of the four gates."""

    names: ClassVar[dict[str, str]] = {"weight": "weight_ih", "bias": "bias_ih"}
    gates = 4


class RNNConnection(DenseConnection):
    """The input weights of a one-layer, one-way `nn.RNN`."""

    names: ClassVar[dict[str, str]] = {"weight": "weight_ih_l0", "bias": "bias_ih_l0"}

    def __init__(self, layer: nn.RNN, norm: nn.Module | None = None) -> None:
        if layer.num_layers != 1 or layer.bidirectional:
            raise UnsupportedLayerError(
                "`layer` should be an RNN with one layer and one direction. Found "
                f"`num_layers = {layer.num_layers}, bidirectional = {layer.bidirectional}`. "
                "Split it into single RNNs."
            )
        super().__init__(layer, norm)


@singledispatch
def connect(layer: nn.Module, norm: nn.Module | None = None) -> Connection:
    """Builds the connection of a layer with a norm behind it or none. The class of the layer chooses it.

    Raises:
        UnsupportedLayerError: if the class is not registered.

    >>> type(connect(nn.Linear(3, 2))).__name__
    'DenseConnection'
    """
    raise UnsupportedLayerError(
        f"`layer` should be a layer whose receptive view is known. Found `layer = {type(layer).__name__}`"
        f"{_hint(layer)}. Supported are Linear, Bilinear, Conv1d to 3d, ConvTranspose1d to 3d, "
        "LSTMCell, RNN, BatchNorm and LayerNorm (bias), the layers inside snntorch's neurons, and "
        "subclasses; make your own class known with `connect.register(YourLayer, YourConnection)`."
    )


for _layer, _connection in (
    (nn.Linear, DenseConnection),
    (nn.Bilinear, DenseConnection),
    *((kind, ChannelConnection) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    *((kind, TransposedConvConnection) for kind in TRANSPOSED),
    (rleaky.RecurrentOneToOne, RecurrentOneToOneConnection),
    (rsynaptic.RecurrentOneToOne, RecurrentOneToOneConnection),
    (nn.LSTMCell, LSTMCellConnection),
    (nn.RNN, RNNConnection),
):
    connect.register(_layer, _connection)


def is_layer(module: nn.Module) -> bool:
    """Whether `connect` knows the class of a module."""
    return connect.dispatch(type(module)) is not connect.dispatch(object)


def _hint(layer: nn.Module) -> str:
    if "quantized" in type(layer).__module__:
        return ", a quantised layer: regulate the float model before quantising it"
    if isinstance(layer, torch.jit.ScriptModule):
        return ", a scripted module: attach before scripting"
    return ""
