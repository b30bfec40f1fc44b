"""What a user does before training where there is no `calibrate`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..stabilisation import digits

__all__ = ["by_gradient", "by_hand"]

# the best of those that were tried, on seeds that no table shows
BATCH, ITERATIONS, LEARNING_RATE = 64, 100, 1e-2
ROUNDS, PLASTICITY = 60, 0.02


def by_gradient(net: nn.Sequential, images: Tensor, learning_rate: float = LEARNING_RATE) -> None:
    """Adam on the squared relative rate error of all layers, by backpropagation through the surrogates."""
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    for x in digits.batches(images, ITERATIONS, BATCH, torch.default_generator):
        optimizer.zero_grad()
        digits.rate_loss(digits.rates_of(net, x)).backward()
        optimizer.step()


@torch.no_grad()
def by_hand(net: nn.Sequential, images: Tensor, plasticity: float = PLASTICITY) -> None:
    """A loop of one's own: show a batch, `step` with a constant plasticity, and so on."""
    homeostasis = digits.constant_plasticity(net, plasticity)
    for x in digits.batches(images, ROUNDS, BATCH, torch.default_generator):
        digits.rates_of(net, x)
        homeostasis.step()
    homeostasis.remove()
