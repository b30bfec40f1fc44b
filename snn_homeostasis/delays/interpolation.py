"""Delays as convolution kernels over time: each kernel holds a weight at the lag of its delay."""

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
    """Returns k_l = w · (1 - |l - φ(d)|)₊ at each lag l, the oldest first, along a new ``dim`` < 0.

    >>> delay_kernel(torch.tensor([2.0]), torch.tensor([1.5]), 2, "linear", dim=-1)
    tensor([[1., 1., 0.]])
    """
    limited = delay + (delay.clamp(0, max_delay) - delay).detach()  # `clamp` alone stops the gradient
    sampled = INTERPOLATIONS[interpolation](limited)
    kernel: Tensor = _LinearKernel.apply(weight, sampled, max_delay, dim)  # type: ignore[no-untyped-call]
    return kernel


class _LinearKernel(torch.autograd.Function):
    """The kernel with the centred gradient at integers; a one-sided one may point away from a target."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, delay: Tensor, max_delay: int, dim: int) -> Tensor:
        # bfloat16 holds whole numbers up to 256 only.
        delay = delay.to(torch.promote_types(delay.dtype, torch.float32)).unsqueeze(dim)
        lags = torch.arange(max_delay, -1, -1, device=delay.device, dtype=delay.dtype)
        kernel = delay - lags.reshape(-1, *(1,) * (-1 - dim))
        return kernel.abs_().neg_().add_(1).clamp_min_(0).mul_(weight.unsqueeze(dim)).to(weight.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
        weight, delay, ctx.max_delay, ctx.dim = inputs
        ctx.save_for_backward(weight, delay)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weight, delay = ctx.saved_tensors

        def at(lag: Tensor) -> Tensor:
            return grad.gather(ctx.dim, (ctx.max_delay - lag).long().unsqueeze(ctx.dim)).squeeze(ctx.dim)

        for_weight = for_delay = None
        newer, older = delay.floor(), delay.ceil()
        if ctx.needs_input_grad[0]:
            share = delay - newer
            for_weight = at(newer) * (1 - share) + at(older) * share
        if ctx.needs_input_grad[1]:
            before, after = (older - 1).clamp_min(0), (newer + 1).clamp_max(ctx.max_delay)
            for_delay = weight * (at(after) - at(before)) / (after - before).clamp_min(1)
        return for_weight, for_delay, None, None
