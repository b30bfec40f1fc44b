"""The layers inside snntorch's neurons, and the connection of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, singledispatch

from torch import nn

from .connections import ChannelConnection, Connection, connect
from .upstream import register

__all__ = ["InnerLayer", "connect_cell", "inner_layers"]


@dataclass(frozen=True)
class InnerLayer:
    """A layer that a neuron carries inside, and how to connect it, which depends on the neuron."""

    connect: Callable[..., Connection]  # (layer, norm) → connection
    recurrent: bool = False  # whether the layer brings the spikes of the neuron back to it


@singledispatch
def inner_layers(neuron: nn.Module) -> dict[str, InnerLayer]:
    """Returns the layers inside a neuron, by attribute; none by default."""
    return {}


@register(inner_layers, "RLeaky", "RSynaptic")
def _(neuron: nn.Module) -> dict[str, InnerLayer]:
    return {"recurrent": InnerLayer(connect, recurrent=True)}


for _neuron, _attribute, _factory in (
    ("SLSTM", "lstm_cell", connect),
    ("SConv2dLSTM", "conv", partial(ChannelConnection, gates=4)),
    ("LinearLeaky", "linear", connect),
    ("LeakyParallel", "rnn", connect),
    ("AssociativeLeaky", "to_v", ChannelConnection),
):
    register(inner_layers, _neuron)(lambda neuron, inner={_attribute: InnerLayer(_factory)}: inner)


def connect_cell(layer: nn.Module, neuron: nn.Module, norm: nn.Module | None = None) -> Connection:
    """Builds the connection between a layer and a neuron, which may carry the layer inside."""
    for name, inner in inner_layers(neuron).items():
        if layer is getattr(neuron, name):
            return inner.connect(layer, norm)
    return connect(layer, norm)
