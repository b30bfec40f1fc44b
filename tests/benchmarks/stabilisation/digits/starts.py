"""Starts: what the weights of a net are before anything else is done to it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .nets import BETA, layers_of
from .spikes import TARGET

__all__ = [
    "Start",
    "bias_to_threshold",
    "default",
    "fluctuating",
    "kaiming",
    "saturated",
    "silent",
    "tenfold",
]

Start = Callable[[nn.Sequential, Tensor], None]  # sees a net and the inputs of the training


def default(net: nn.Sequential, inputs: Tensor) -> None:
    """PyTorch's own initialisation."""


@torch.no_grad()
def silent(net: nn.Sequential, inputs: Tensor) -> None:
    """A tenth of the default weights, no bias."""
    for layer in layers_of(net):
        layer.weight.mul_(0.1)
        layer.bias.zero_()


@torch.no_grad()
def saturated(net: nn.Sequential, inputs: Tensor) -> None:
    """Weights shifted up, by three thresholds for all inputs together."""
    for layer in layers_of(net):
        layer.weight.add_(3 / layer.weight[0].numel())


@torch.no_grad()
def bias_to_threshold(net: nn.Sequential, inputs: Tensor) -> None:
    """Neurons that fire at every step without any input."""
    for layer in layers_of(net):
        layer.bias.fill_(1.0)


@torch.no_grad()
def tenfold(net: nn.Sequential, inputs: Tensor) -> None:
    """Ten times the default weights."""
    for layer in layers_of(net):
        layer.weight.mul_(10)


@torch.no_grad()
def kaiming(net: nn.Sequential, inputs: Tensor) -> None:
    """Weights that keep the variance of their inputs: Kaiming's, without the gain of a ReLU."""
    for layer in layers_of(net):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        layer.bias.zero_()


@torch.no_grad()
def fluctuating(net: nn.Sequential, inputs: Tensor) -> None:
    """Weights of mean zero, with which membranes fluctuate by one threshold around rest.

    After Rossbroich, Gygax and Zenke (2022), for layers of `nn.Linear` whose inputs spike at the
    target rate; the inputs of the first are constant currents.
    """
    first, *deeper = layers_of(net)
    powers = [inputs.flatten(1).square().sum(1).mean().item() / (1 - BETA) ** 2]
    powers += [layer.in_features * TARGET / (1 - BETA**2) for layer in deeper]
    for layer, power in zip([first, *deeper], powers, strict=True):
        layer.weight.normal_(0, 1 / math.sqrt(power))
        layer.bias.zero_()
