"""How a cell finds its delays: in its layer, or in a module between the layer and the neuron."""

from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import UnsupportedLayerError, require
from ..layers import (
    ChannelConnection,
    Connection,
    DenseConnection,
    InputView,
    Limits,
    connect,
    input_view,
    is_layer,
    refer,
)
from .base import DelayedLayer
from .layers import DelayedConv2d, DelayedLinear

__all__ = ["delay_channels", "is_delay", "is_trainable_delay"]


def delay_limits(longest: float) -> Limits:
    """The range of delays, in steps."""
    return Limits(
        0.0,
        longest,
        "All delays of a neuron in {cell} are at a limit, and the rule pushes them on: they cannot bring its "
        "rate to the target. Regulate the weight or the bias; or, if they are too short or too long for it, "
        "build the layer with another `max_delay`.",
    )


class DelayedConnection(Connection):
    """The connection of a layer with a delay for each weight."""

    names: ClassVar[dict[str, str]] = {"weight": "weight", "bias": "bias", "delay": "delay"}
    layer: DelayedLayer

    def __init__(self, layer: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__(layer, norm)
        self.limits["delay"] = delay_limits(self.layer.max_delay)


@connect.register(DelayedLinear)
class DelayedDenseConnection(DelayedConnection, DenseConnection):
    """The connection of a `DelayedLinear`."""


@connect.register(DelayedConv2d)
class DelayedChannelConnection(DelayedConnection, ChannelConnection):
    """The connection of a `DelayedConv2d`."""


@input_view.register
def _(layer: DelayedLayer) -> InputView:
    raise UnsupportedLayerError(
        "`layer` should have no delays for a rule that needs its input. Found "
        f"`layer = {type(layer).__name__}`, where spikes arrive at another time at each weight. Take a plain "
        "layer, or a rule that needs only the rate."
    )


def is_delay(module: nn.Module) -> bool:
    """Whether a module delays its input, channel by channel, as SynapticDelay does."""
    delay, longest = getattr(module, "delay", None), getattr(module, "max_delay", None)
    is_short = isinstance(delay, Tensor) and delay.ndim < 2
    return is_short and isinstance(longest, int | float) and not is_layer(module)


def is_trainable_delay(delay: nn.Module, layer: nn.Module) -> bool:
    """Whether a cell of a layer may take a module as its delay: one Parameter for each channel."""
    value = getattr(delay, "delay", None)
    return isinstance(value, nn.Parameter) and value.ndim == 1 and not isinstance(layer, DelayedLayer)


def delay_channels(connection: Connection, delay: nn.Module) -> None:
    """Adds the delays ``[C]``, in steps, of a module behind a layer with C channels, as SynapticDelay."""
    kind, channels = type(delay).__name__, connection.features
    alone = "delay" not in connection.references
    show = f"`delay = {kind}` behind {type(connection.layer).__name__}"
    remedy = "Leave it out: the rule then regulates the delays of the layer."
    require(alone, "delay", "be None for a layer with its own delays", None, remedy, show=show)
    value = getattr(delay, "delay", None)
    longest: Any = getattr(delay, "max_delay", None)
    found = "no `delay`" if value is None else f"`delay` of shape {list(getattr(value, 'shape', ()))}"
    found += "" if isinstance(value, nn.Parameter) else ", no Parameter"
    fits = isinstance(value, nn.Parameter) and value.shape == (channels,) and isinstance(longest, int | float)
    expected = f"have a Parameter `delay` of shape {[channels]}, and a number `max_delay`"
    show = f"{kind} with {found}, and `max_delay = {longest!r}`"
    remedy = f"Build SynapticDelay with `channels={channels}, learn_delay=True`."
    require(fits, "delay", expected, None, remedy, show=show)
    reference = refer(delay, "delay")
    assert reference is not None
    connection.references["delay"] = reference
    connection.limits["delay"] = delay_limits(float(longest))
