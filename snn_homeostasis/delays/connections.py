"""Where the delays of a cell are: in its layer, or in a module between layer and neuron."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..errors import require
from ..layers.connections import ChannelConnection, Connection, DenseConnection, connect
from ..layers.parameters import refer
from .layers import DelayedConv2d, DelayedLinear

__all__ = ["delay_channels"]


class DelayedConnection(Connection):
    """A layer with a delay for each weight."""

    names: ClassVar[dict[str, str]] = {"weight": "weight", "bias": "bias", "delay": "delay"}
    layer: DelayedLinear | DelayedConv2d

    def __init__(self, layer: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__(layer, norm)
        self.limits["delay"] = (0.0, self.layer.max_delay)


@connect.register(DelayedLinear)
class DelayedDenseConnection(DelayedConnection, DenseConnection):
    """A `DelayedLinear`."""


@connect.register(DelayedConv2d)
class DelayedChannelConnection(DelayedConnection, ChannelConnection):
    """A `DelayedConv2d`."""


def delay_channels(connection: Connection, delay: nn.Module) -> None:
    """Gives a connection the delays of a module that delays each channel of the layer's output.

    Args:
        connection: of the layer in front of it.
        delay: has ``delay``, a Parameter with an entry for each channel, and ``max_delay``, both
            in steps, like snntorch's SynapticDelay.

    Raises:
        ArgumentError: if it has not, or if the layer has delays of its own.
    """
    kind = type(delay).__name__
    value, longest = getattr(delay, "delay", None), getattr(delay, "max_delay", None)
    require(
        "delay" not in connection.references,
        "delay",
        "be None for a layer that has delays of its own",
        None,
        "Leave it out: the delays of the layer are regulated.",
        show=f"`delay = {kind}` behind {type(connection.layer).__name__}",
    )
    fits = isinstance(value, nn.Parameter) and value.shape == (connection.features,)
    found = "no `delay`" if value is None else f"`delay` of shape {list(value.shape)}"
    require(
        fits and isinstance(longest, int | float),
        "delay",
        f"have a Parameter `delay` of shape {[connection.features]}, and `max_delay`",
        None,
        f"Build SynapticDelay with `channels={connection.features}, learn_delay=True`.",
        show=f"{kind} with {found}{'' if isinstance(value, nn.Parameter) else ', no Parameter'}",
    )
    reference = refer(delay, "delay")
    assert reference is not None
    assert isinstance(longest, int | float)
    connection.references["delay"] = reference
    connection.limits["delay"] = (0.0, float(longest))
