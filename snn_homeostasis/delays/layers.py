"""Layers whose synapses have delays: one trainable delay for each weight."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.common_types import _size_2_t

from .base import DelayedLayer, DelayInit

__all__ = ["DelayedConv2d", "DelayedLinear"]


class DelayedLinear(DelayedLayer, nn.Linear):
    r"""A linear layer with a delay for each synapse.

    .. math:: y_o(t) = b_o + \sum_i w_{oi} \, x_i(t - d_{oi}), \qquad x(t < 0) = 0

    with w the weight, b the bias and d the delay in steps. A fractional delay reads between
    two samples.

    The delays are trained by gradients (with ``interpolation="linear"``), or regulated by a
    rule with ``param="delay"``, which keeps them within ``[0, max_delay]``; an optimizer needs
    `clamp_delay_` for that. ``snntorch.utils.reset`` does not know this layer: call `reset`
    beside it. For backpropagation `step` keeps ``max_delay + 1`` inputs at each step, `sequence`
    one.

    A rule shifts the delays of a neuron together, which changes when spikes arrive and not how
    many. On stationary input that hardly moves a rate: 64 Poisson inputs at 1/16 spikes per
    step, target 0.1, took the mean delay from 8.0 to 0.1 steps and the rate from 0.042 to 0.044.
    On volleys it does: the same inputs at once, every 16 steps, took them from 8.0 to 1.7 and
    from 0.044 to 0.099. A rate that is too high it cannot lower: delays gather at the longest,
    spikes coincide, and the rate rises.

    Args:
        in_features: number of inputs.
        out_features: number of outputs.
        max_delay: the longest delay, in steps; with 0 this is `nn.Linear`.
        bias: whether there is one.
        interpolation: "linear"; "previous", the older of two samples; or "nearest". Only the
            first has a gradient in the delay (at an integer the centred one), for the
            others it is zero.
        delay_init: a number, a tensor that broadcasts with the weight, or a function of the
            delay such as ``lambda d: nn.init.normal_(d, 4.0).clamp_(0, 16)``. None draws
            uniformly from ``[0, max_delay]``.
        step_mode: whether ``layer(x)`` is `step` (True) or `sequence`.
        device: of the Parameters.
        dtype: of the Parameters.

    Raises:
        ArgumentError: for a value that cannot work.

    >>> layer = DelayedLinear(1, 1, max_delay=2, bias=False, delay_init=1.5)
    >>> _ = nn.init.ones_(layer.weight)
    >>> spikes = torch.tensor([1.0, 0.0, 0.0, 0.0]).reshape(4, 1, 1)  # [T, B, in]
    >>> layer.sequence(spikes).flatten().tolist()
    [0.0, 0.5, 0.5, 0.0]
    >>> [layer(spike).item() for spike in spikes]
    [0.0, 0.5, 0.5, 0.0]
    >>> layer.reset()
    """

    time_dim = -1
    shape = "[..., in_features]"

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
        """A delayed layer with the Parameter objects of ``layer``; delays are 0 unless given.

        Raises:
            ArgumentError: if the layer's weight or bias is no plain Parameter.
        """
        return cls._around(
            layer,
            delay_init,
            in_features=layer.in_features,
            out_features=layer.out_features,
            max_delay=max_delay,
            interpolation=interpolation,
            step_mode=step_mode,
        )

    def _respond(self, window: Tensor, kernel: Tensor) -> Tensor:
        return functional.linear(window.flatten(-2), kernel.flatten(1), self.bias)

    def _convolve(self, window: Tensor, kernel: Tensor) -> Tensor:
        outputs = functional.conv1d(window.reshape(-1, *window.shape[-2:]), kernel, self.bias)
        return outputs.reshape(*window.shape[:-2], *outputs.shape[-2:])

    def _fits(self, shape: torch.Size) -> bool:
        return shape[-1] == self.in_features


class DelayedConv2d(DelayedLayer, nn.Conv2d):
    r"""A convolution over two dimensions with a delay for each entry of its weight.

    .. math:: y_f(t, p) = b_f + \sum_{c, q} w_{fcq} \, x_c(t - d_{fcq}, s p + q)

    with p a position of the output, q of the kernel and s the stride; see `DelayedLinear`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: as in `nn.Conv2d`, like all that is not described here.
        max_delay: the longest delay, in steps; with 0 this is `nn.Conv2d`.
        stride: of the convolution.
        padding: of the input, a number, a pair, "same" or "valid".
        dilation: of the kernel.
        groups: of channels.
        bias: whether there is one.
        padding_mode: what the padding is made of.
        interpolation: as in `DelayedLinear`.
        delay_init: as in `DelayedLinear`.
        step_mode: whether ``layer(x)`` is `step` (True) or `sequence`.
        device: of the Parameters.
        dtype: of the Parameters.

    Raises:
        ArgumentError: for a value that cannot work.

    >>> layer = DelayedConv2d(2, 3, kernel_size=3, max_delay=4, padding=1)
    >>> layer(torch.rand(8, 2, 5, 5)).shape, layer.sequence(torch.rand(10, 8, 2, 5, 5)).shape
    (torch.Size([8, 3, 5, 5]), torch.Size([10, 8, 3, 5, 5]))
    """

    time_dim = -3
    shape = "[B, C, H, W] or [C, H, W]"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        max_delay: int,
        stride: _size_2_t = 1,
        padding: str | _size_2_t = 0,
        dilation: _size_2_t = 1,
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
        """A delayed layer with the Parameter objects of ``layer``; delays are 0 unless given.

        Raises:
            ArgumentError: if the layer's weight or bias is no plain Parameter.
        """
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        return cls._around(
            layer,
            delay_init,
            max_delay=max_delay,
            interpolation=interpolation,
            step_mode=step_mode,
            **{name: getattr(layer, name) for name in (*names, "padding_mode")},
        )

    def _respond(self, window: Tensor, kernel: Tensor) -> Tensor:
        outputs: Tensor = self._conv_forward(window.flatten(-4, -3), kernel.flatten(1, 2), self.bias)
        return outputs

    def _convolve(self, window: Tensor, kernel: Tensor) -> Tensor:
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        frames = functional.pad(window.flatten(-4, -3), self._reversed_padding_repeated_twice, mode)
        padded = frames.reshape(*window.shape[:-2], *frames.shape[-2:])
        stride, dilation = (1, *self.stride), (1, *self.dilation)
        return functional.conv3d(padded, kernel, self.bias, stride, 0, dilation, self.groups)

    def _fits(self, shape: torch.Size) -> bool:
        return len(shape) in (3, 4) and shape[-3] == self.in_channels
