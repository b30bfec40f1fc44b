"""Delays as convolution kernels over time: each kernel holds a weight at the lag of its delay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["INTERPOLATIONS", "delay_kernel"]

# The delay that a fractional one stands for. A rounded delay has a gradient of zero.
INTERPOLATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda delay: delay,
    "previous": torch.ceil,
    "nearest": lambda delay: (delay + 0.5).floor(),
}


def delay_kernel(weight: Tensor, delay: Tensor, max_delay: int, interpolation: str, *, dim: int) -> Tensor:
    r"""Returns the kernel over time of synapses with delays.

    .. math:: k_l = w \, (1 - |l - \phi(d)|)_+

    with k_l the tap at lag l in steps, w the weight, d its delay and φ the interpolation. The
    oldest tap comes first, so the kernel correlates with a window of inputs in the order of time.

    At an integer delay the gradient is the centred difference, since either one-sided slope points
    away from a target on the other side. At the limits the gradient is the slope inwards.

    Args:
        weight: ``[...]``, any shape.
        delay: ``[...]``, in steps. Outside ``[0, max_delay]`` it acts as the limit and gets the
            gradient of the limit, so an optimizer can bring it back.
        max_delay: the longest delay, in steps.
        interpolation: a name in `INTERPOLATIONS`.
        dim: the dimension of the taps in the kernel, negative.

    Returns:
        ``[...]`` with ``max_delay + 1`` inserted at ``dim``.

    >>> delay_kernel(torch.tensor([2.0]), torch.tensor([1.5]), 2, "linear", dim=-1)
    tensor([[1., 1., 0.]])
    """
    limited = delay + (delay.clamp(0, max_delay) - delay).detach()  # `clamp` alone stops the gradient
    sampled = INTERPOLATIONS[interpolation](limited)
    kernel: Tensor = _LinearKernel.apply(weight, sampled, max_delay, dim)  # type: ignore[no-untyped-call]
    return kernel


class _LinearKernel(torch.autograd.Function):
    """The kernel with the centred gradient at integers, which autograd does not give."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, delay: Tensor, max_delay: int, dim: int) -> Tensor:
        # bfloat16 holds whole numbers up to 256 only.
        delay = delay.to(torch.promote_types(delay.dtype, torch.float32)).unsqueeze(dim)
        lags = torch.arange(max_delay, -1, -1, device=delay.device, dtype=delay.dtype)
        kernel = delay - lags.reshape(-1, *(1,) * (-1 - dim))
        kernel = kernel.abs_().neg_().add_(1).clamp_min_(0).mul_(weight.unsqueeze(dim))
        return kernel.to(weight.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
        weight, delay, ctx.max_delay, ctx.dim = inputs
        ctx.save_for_backward(weight, delay)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weight, delay = ctx.saved_tensors
        oldest, dim = ctx.max_delay, ctx.dim

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
