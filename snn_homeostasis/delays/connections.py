"""How a cell finds its delays: in its layer, or in a module between the layer and the neuron."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..errors import ArgumentError, require
from ..layers import ChannelConnection, Connection, DenseConnection, connect, refer
from .layers import DelayedConv2d, DelayedLinear

__all__ = ["delay_channels"]


class DelayedConnection(Connection):
    """The connection of a layer with a delay for each weight."""

    names: ClassVar[dict[str, str]] = {"weight": "weight", "bias": "bias", "delay": "delay"}
    layer: DelayedLinear | DelayedConv2d

    def __init__(self, layer: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__(layer, norm)
        self.limits["delay"] = (0.0, self.layer.max_delay)


@connect.register(DelayedLinear)
class DelayedDenseConnection(DelayedConnection, DenseConnection):
    """The connection of a `DelayedLinear`."""


@connect.register(DelayedConv2d)
class DelayedChannelConnection(DelayedConnection, ChannelConnection):
    """The connection of a `DelayedConv2d`."""


def delay_channels(connection: Connection, delay: nn.Module) -> None:
    """Adds the delays of a module that delays each channel of a layer's output.

    Args:
        connection: the connection of the layer.
        delay: the module, such as SynapticDelay of snntorch. It has ``max_delay`` in steps and a
            Parameter ``delay``, ``[C]`` in steps, with C the number of channels.

    Raises:
        ArgumentError: if the module lacks one of these, or if the layer has delays itself.
    """
    kind, channels = type(delay).__name__, connection.features
    show = f"`delay = {kind}` behind {type(connection.layer).__name__}"
    remedy = "Leave it out: the rule then regulates the delays of the layer."
    alone = "delay" not in connection.references
    require(alone, "delay", "be None for a layer with its own delays", None, remedy, show=show)
    value, longest = getattr(delay, "delay", None), getattr(delay, "max_delay", None)
    if (
        not isinstance(value, nn.Parameter)
        or value.shape != (channels,)
        or not isinstance(longest, int | float)
    ):
        found = "no `delay`" if value is None else f"`delay` of shape {list(getattr(value, 'shape', ()))}"
        found += "" if isinstance(value, nn.Parameter) else ", no Parameter"
        raise ArgumentError(
            f"`delay` should have a Parameter `delay` of shape {[channels]}, and a number `max_delay`. Found "
            f"{kind} with {found}, and `max_delay = {longest!r}`. "
            f"Build SynapticDelay with `channels={channels}, learn_delay=True`."
        )
    reference = refer(delay, "delay")
    assert reference is not None
    connection.references["delay"] = reference
    connection.limits["delay"] = (0.0, float(longest))
