"""Linear and convolutional layers with one trainable delay for each weight."""

from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import DelayedLayer, DelayInit

__all__ = ["DelayedConv2d", "DelayedLinear"]


class DelayedLinear(DelayedLayer, nn.Linear):
    r"""A linear layer with a delay for each weight.

    .. math:: y_o(t) = b_o + \sum_i w_{oi} \, x_i(t - d_{oi}), \qquad x(t < 0) = 0

    with x the inputs, y the outputs, w the weight, b the bias and d the delay in steps.

    Gradients train the delays (with ``interpolation="linear"``), or a rule with ``param="delay"``
    regulates them. The rule keeps them within ``[0, max_delay]``; an optimizer needs
    `clamp_delay_` for this. ``snntorch.utils.reset`` does not know this layer, so call `reset`
    too. For backpropagation `step` keeps ``max_delay + 1`` inputs per step, `sequence` one.

    A rule shifts the delays of a neuron together. This changes when spikes arrive, not how many.
    With a target of 0.1 and 64 Poisson inputs at 1/16 spikes per step the rate hardly moved, from
    0.042 to 0.044. With the same inputs in volleys, every 16 steps, it rose from 0.044 to 0.099. A
    rule on delays cannot lower a rate: the delays gather at the longest, so spikes coincide.

    Args:
        in_features, out_features, bias, device, dtype: as in `nn.Linear`.
        max_delay: the longest delay, in steps; 0 gives `nn.Linear`.
        interpolation: at a fractional delay: "linear", "previous" (the older sample) or "nearest".
            Only "linear" has a gradient in the delay; at an integer it is the centred difference.
        delay_init: in steps, a number, a tensor that broadcasts with the weight, or a function of
            the delay such as `nn.init.ones_`. None draws uniformly from ``[0, max_delay]``.
        step_mode: whether ``layer(x)`` is `step` (True) or `sequence` (False).

    Raises:
        ArgumentError: if ``max_delay``, ``interpolation`` or ``delay_init`` cannot work.

    >>> layer = DelayedLinear(1, 1, max_delay=2, bias=False, delay_init=1.5)
    >>> _ = nn.init.ones_(layer.weight)
    >>> spikes = torch.tensor([1.0, 0.0, 0.0, 0.0]).reshape(4, 1, 1)  # [T, B, in_features]
    >>> layer.sequence(spikes).flatten().tolist()
    [0.0, 0.5, 0.5, 0.0]
    >>> [layer(spike).item() for spike in spikes]
    [0.0, 0.5, 0.5, 0.0]
    >>> layer.reset()
    """

    time_dim = -1
    shape = "[..., in_features]"
    copies = "in_features out_features"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        max_delay: int,
        bias: bool = True,
        *,
        interpolation: str = "linear",
        delay_init: DelayInit | None = None,
        step_mode: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._take_delays(max_delay, interpolation, delay_init, step_mode)

    @classmethod
    def from_linear(
        cls,
        layer: nn.Linear,
        max_delay: int,
        *,
        interpolation: str = "linear",
        delay_init: DelayInit = 0.0,
        step_mode: bool = True,
    ) -> Self:
        """Builds a delayed layer that shares the Parameters of ``layer``; see the constructor.

        Raises:
            ArgumentError: if an argument cannot work, or if ``layer`` lacks plain Parameters.

        >>> plain = nn.Linear(3, 5)
        >>> DelayedLinear.from_linear(plain, max_delay=4).weight is plain.weight
        True
        """
        return cls._from_plain(layer, max_delay, interpolation, delay_init, step_mode)

    def _respond(self, window: Tensor, kernel: Tensor) -> Tensor:
        return functional.linear(window.flatten(-2), kernel.flatten(1), self.bias)

    def _convolve(self, window: Tensor, kernel: Tensor) -> Tensor:
        outputs = functional.conv1d(window.reshape(-1, *window.shape[-2:]), kernel, self.bias)
        return outputs.reshape(*window.shape[:-2], *outputs.shape[-2:])

    def _accepts(self, shape: torch.Size) -> bool:
        return shape[-1] == self.in_features


class DelayedConv2d(DelayedLayer, nn.Conv2d):
    r"""A convolution over two dimensions with a delay for each entry of its weight.

    .. math:: y_f(t, p) = b_f + \sum_{c, q} w_{fcq} \, x_c(t - d_{fcq}, s p + q)

    with x the inputs of the channels c, y the outputs of the filters f, w the weight, b the bias,
    d the delay in steps, p a position of the output, q of the kernel, and s the stride.

    Args:
        max_delay, interpolation, delay_init, step_mode: as in `DelayedLinear`, with its errors.
        in_channels and the others: as in `nn.Conv2d`.

    >>> layer = DelayedConv2d(2, 3, kernel_size=3, max_delay=4, padding=1)
    >>> layer(torch.rand(8, 2, 5, 5)).shape, layer.sequence(torch.rand(10, 8, 2, 5, 5)).shape
    (torch.Size([8, 3, 5, 5]), torch.Size([10, 8, 3, 5, 5]))
    """

    time_dim = -3
    shape = "[B, C, H, W] or [C, H, W]"
    copies = "in_channels out_channels kernel_size stride padding dilation groups padding_mode"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        max_delay: int,
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        interpolation: str = "linear",
        delay_init: DelayInit | None = None,
        step_mode: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = (stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, *options)
        self._take_delays(max_delay, interpolation, delay_init, step_mode)

    @classmethod
    def from_conv2d(
        cls,
        layer: nn.Conv2d,
        max_delay: int,
        *,
        interpolation: str = "linear",
        delay_init: DelayInit = 0.0,
        step_mode: bool = True,
    ) -> Self:
        """Builds a delayed layer as `DelayedLinear.from_linear` does.

        >>> plain = nn.Conv2d(4, 6, kernel_size=3, stride=2)
        >>> DelayedConv2d.from_conv2d(plain, max_delay=4).weight is plain.weight
        True
        """
        return cls._from_plain(layer, max_delay, interpolation, delay_init, step_mode)

    def _respond(self, window: Tensor, kernel: Tensor) -> Tensor:
        # `functional.conv2d` could replace `_conv_forward` if it knew the modes of padding.
        outputs: Tensor = self._conv_forward(window.flatten(-4, -3), kernel.flatten(1, 2), self.bias)
        return outputs

    def _convolve(self, window: Tensor, kernel: Tensor) -> Tensor:
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        # `nn.Conv2d` works out padding="same" for itself alone, so its result has no public name.
        frames = functional.pad(window.flatten(-4, -3), self._reversed_padding_repeated_twice, mode)
        padded = frames.reshape(*window.shape[:-2], *frames.shape[-2:])
        steps = {"stride": (1, *self.stride), "dilation": (1, *self.dilation)}
        return functional.conv3d(padded, kernel, self.bias, **steps, groups=self.groups)

    def _accepts(self, shape: torch.Size) -> bool:
        return len(shape) in (3, 4) and shape[-3] == self.in_channels
