"""What a weight sees of the input of its layer, for rules that need both sides of a synapse."""

from collections.abc import Callable
from functools import partial, singledispatch

from torch import Tensor, nn
from torch.nn.functional import pad

from ..errors import UnsupportedLayerError

__all__ = ["InputView", "input_view"]

InputView = Callable[[Tensor], Tensor]
Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


@singledispatch
def input_view(layer: nn.Module) -> InputView:
    """Returns what lays the input ``[B, *in]`` of a layer out against its weight: ``[B, ..., L]``.

    One registration adds a class of layers.

    Raises:
        UnsupportedLayerError: for a class that is not registered.
    """
    raise UnsupportedLayerError(
        "`layer` should be a Linear, a Conv1d to 3d or one-to-one for a rule that needs its input. Found "
        f"`layer = {type(layer).__name__}`. Regulate it by a rule that needs only the rate."
    )


@input_view.register
def _(layer: nn.Linear) -> InputView:
    return lambda x: x.reshape(len(x), 1, -1, x.shape[-1]).movedim(2, 3)


@input_view.register(nn.Conv1d)
@input_view.register(nn.Conv2d)
@input_view.register(nn.Conv3d)
def _(layer: Conv) -> InputView:
    return partial(_channels, layer)


def _channels(layer: Conv, x: Tensor) -> Tensor:
    seen = _patches(layer, _padded(layer, x))
    if layer.groups == 1:
        return seen.unsqueeze(1)
    # each filter sees the channels of its group alone; they are copied for each filter
    filters, rest = layer.out_channels // layer.groups, seen.shape[2:]
    grouped = seen.reshape(len(x), layer.groups, 1, -1, *rest)
    return grouped.expand(-1, -1, filters, *grouped.shape[3:]).flatten(1, 2)


def _patches(layer: Conv, x: Tensor) -> Tensor:
    """Returns the input that each output position sees: ``[B, C, *kernel, L]``."""
    dims = len(layer.kernel_size)
    sizes = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for dim, (size, stride, dilation) in enumerate(sizes, start=2):
        x = x.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return x.movedim(tuple(range(2, 2 + dims)), tuple(range(-dims, 0))).flatten(-dims)


def _padded(layer: Conv, x: Tensor) -> Tensor:
    widths: list[int] = []  # from the last axis to the first, as `pad` wants them
    for axis in reversed(range(len(layer.kernel_size))):
        if layer.padding == "same":  # an odd rest goes to the right
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            widths += [total // 2, total - total // 2]
        else:
            width = 0 if isinstance(layer.padding, str) else int(layer.padding[axis])
            widths += [width, width]
    return pad(x, widths, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
