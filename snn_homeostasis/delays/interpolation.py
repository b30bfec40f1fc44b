"""Delays as convolution kernels over time: the weight of a synapse, put at its delay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["INTERPOLATIONS", "Interpolation", "delay_kernel"]

Interpolation = Callable[[Tensor], Tensor]

# Which delay a fractional one stands for. Rounding has a gradient of zero.
INTERPOLATIONS: dict[str, Interpolation] = {
    "linear": lambda delay: delay,
    "previous": torch.ceil,
    "nearest": lambda delay: (delay + 0.5).floor(),
}


def delay_kernel(
    weight: Tensor, delay: Tensor, taps: int, interpolation: Interpolation, *, dim: int
) -> Tensor:
    r"""The kernel over time of a layer whose synapses have delays.

    It has one tap per step from ``taps - 1`` steps ago to now, the oldest first, so that it
    correlates with a window of inputs in the order of time:

    .. math:: k_l = w \, (1 - |l - d|)_+

    at lag l, for a weight w and its delay d. At an integer delay the two one-sided slopes
    differ. The gradient is their mean, the centred difference, since either alone would
    point away from a target on the other side; at the limits it is the slope inwards.

    Args:
        weight: of any shape.
        delay: of the same shape, in steps. Outside ``[0, taps - 1]`` it acts as the limit,
            and its gradient is the limit's, so that it can come back.
        taps: ``max_delay + 1``.
        interpolation: one of `INTERPOLATIONS`.
        dim: where the taps stand in the kernel, counted from behind.

    Returns:
        The weight's shape with ``taps`` inserted at ``dim``.
    """
    limited = delay + (delay.clamp(0, taps - 1) - delay).detach()
    kernel: Tensor = _LinearKernel.apply(weight, interpolation(limited), taps, dim)  # type: ignore[no-untyped-call]
    return kernel


class _LinearKernel(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, delay: Tensor, taps: int, dim: int) -> Tensor:
        delay = delay.to(torch.promote_types(delay.dtype, torch.float32)).unsqueeze(dim)
        lags = torch.arange(taps - 1, -1, -1, device=delay.device, dtype=delay.dtype)
        kernel = delay - lags.reshape(-1, *(1,) * (-1 - dim))
        kernel = kernel.abs_().neg_().add_(1).clamp_min_(0).mul_(weight.unsqueeze(dim))
        return kernel.to(weight.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
        weight, delay, ctx.taps, ctx.dim = inputs
        ctx.save_for_backward(weight, delay)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weight, delay = ctx.saved_tensors
        oldest, dim = ctx.taps - 1, ctx.dim

        def at(lag: Tensor) -> Tensor:
            return grad.gather(dim, (oldest - lag).long().unsqueeze(dim)).squeeze(dim)

        for_weight = for_delay = None
        newer, older = delay.floor(), delay.ceil()
        if ctx.needs_input_grad[0]:
            share = delay - newer
            for_weight = at(newer) * (1 - share) + at(older) * share
        if ctx.needs_input_grad[1]:
            before, after = (older - 1).clamp_min(0), (newer + 1).clamp_max(oldest)
            for_delay = weight * (at(after) - at(before)) / (after - before).clamp_min(1)
        return for_weight, for_delay, None, None
