"""What a user does before training where there is no `calibrate`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..stabilisation import digits

__all__ = ["by_gradient", "by_hand"]

BATCH, ITERATIONS, ROUNDS = 64, 100, 60
PLASTICITY = 0.01  # on six layers, seeds 10 and 11: 0.02 and 0.05 end with less from two of three starts


def by_gradient(net: nn.Sequential, images: Tensor, learning_rate: float) -> None:
    """Adam on the squared relative rate error of all layers, by backpropagation through the surrogates."""
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    for x in digits.batches(images, ITERATIONS, BATCH, torch.default_generator):
        optimizer.zero_grad()
        digits.rate_loss(digits.rates_of(net, x)).backward()
        optimizer.step()


@torch.no_grad()
def by_hand(net: nn.Sequential, images: Tensor) -> None:
    """A loop of one's own: show a batch, `step` with a constant plasticity, and so on."""
    homeostasis = digits.constant_plasticity(net, PLASTICITY)
    for x in digits.batches(images, ROUNDS, BATCH, torch.default_generator):
        digits.rates_of(net, x)
        homeostasis.step()
    homeostasis.remove()
