"""Nets and starts, each with what a calibration of it should reach at most."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

STEPS, WIDTH = 20, 100

Neuron = Callable[[int], nn.Module]


def leaky(features: int, beta: float = 0.9) -> nn.Module:
    return snn.Leaky(beta=beta, init_hidden=True, spike_grad=surrogate.fast_sigmoid(slope=25))


def synaptic(features: int) -> nn.Module:
    return snn.Synaptic(alpha=0.8, beta=0.9, init_hidden=True)


def alpha(features: int) -> nn.Module:
    return snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True)


def rleaky(features: int) -> nn.Module:
    return snn.RLeaky(beta=0.9, linear_features=features, init_hidden=True)


def rleaky_one_to_one(features: int) -> nn.Module:
    return snn.RLeaky(beta=0.9, all_to_all=False, V=torch.full((features,), 0.5), init_hidden=True)


def rsynaptic(features: int) -> nn.Module:
    return snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=features, init_hidden=True)


def dense(depth: int = 6, neuron: Neuron = leaky, norm: bool = False) -> nn.Sequential:
    net = nn.Sequential(nn.Flatten())
    for sizes in itertools.pairwise([64] + [WIDTH] * depth):
        net.append(nn.Linear(*sizes))
        if norm:
            net.append(nn.BatchNorm1d(WIDTH))
        net.append(neuron(WIDTH))
    return net


def convolutional(beta: float = 0.9, norm: bool = False) -> nn.Sequential:
    net = nn.Sequential()
    for inputs, outputs, stride in ((1, 8, 1), (8, 16, 2), (16, 16, 1), (16, 16, 1)):
        net.append(nn.Conv2d(inputs, outputs, 3, stride, 1))
        if norm:
            net.append(nn.BatchNorm2d(outputs))
        net.append(leaky(outputs, beta))
    return net


def layers_of(net: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [module for module in net if isinstance(module, nn.Linear | nn.Conv2d)]


@torch.no_grad()
def default(net: nn.Module) -> None:
    """PyTorch's own initialisation."""


@torch.no_grad()
def silent(net: nn.Module) -> None:
    """A tenth of the default weights, no bias."""
    for layer in layers_of(net):
        layer.weight.mul_(0.1)
        layer.bias.zero_()


@torch.no_grad()
def saturated(net: nn.Module) -> None:
    """Weights shifted up, by three thresholds for all inputs together."""
    for layer in layers_of(net):
        layer.weight.add_(3 / layer.weight[0].numel())


@torch.no_grad()
def bias_to_threshold(net: nn.Module) -> None:
    """Neurons that fire at every step without any input."""
    for layer in layers_of(net):
        layer.bias.fill_(1.0)


@torch.no_grad()
def tenfold(net: nn.Module) -> None:
    """Ten times the default weights."""
    for layer in layers_of(net):
        layer.weight.mul_(10)


@torch.no_grad()
def kaiming(net: nn.Module) -> None:
    """Weights that keep the variance of their inputs: Kaiming's, without the gain of a ReLU."""
    for layer in layers_of(net):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        layer.bias.zero_()


@dataclass(frozen=True)
class Start:
    """A net before its calibration, and the limits of what comes out.

    Args:
        name: shown in the table.
        build: makes the net.
        start: spoils its weights.
        target: the rate.
        error: of the farthest layer on unseen images, relative to the target, at most.
        forwards: for a net of so many layers, at most.
    """

    name: str
    build: Callable[[], nn.Sequential]
    start: Callable[[nn.Module], None] = default
    target: float = 0.1
    error: float = 0.05
    forwards: Callable[[int], int] = lambda layers: 2 * layers + 2


def _three(layers: int) -> int:
    return 3 * layers + 2


def _ten(layers: int) -> int:
    return 10


recurrent = functools.partial(Start, error=0.1, forwards=_ten)
STARTS = [
    Start("6 dense, default", dense, error=0.03),
    Start("6 dense, silent", dense, silent, error=0.03),
    Start("6 dense, bias 1", dense, bias_to_threshold, error=0.03),
    Start("6 dense, Kaiming", dense, kaiming, error=0.03),
    Start("6 dense, saturated", dense, saturated, forwards=_three),
    Start("6 dense, weights ×10", dense, tenfold, forwards=_three),
    Start("6 dense, BatchNorm", functools.partial(dense, norm=True)),
    Start("6 dense, target 0.03", dense, target=0.03),
    Start("6 dense, target 0.3", dense, target=0.3),
    Start("6 dense, Synaptic", functools.partial(dense, neuron=synaptic)),
    Start("6 dense, Alpha", functools.partial(dense, neuron=alpha)),
    Start("4 convolutions", convolutional),
    Start("4 convolutions, silent", convolutional, silent),
    Start("4 convolutions, saturated", convolutional, saturated, forwards=_three),
    Start("4 convolutions, β 0.5", functools.partial(convolutional, beta=0.5)),
    Start("4 convolutions, β 0.99", functools.partial(convolutional, beta=0.99)),
    Start("4 convolutions, BatchNorm", functools.partial(convolutional, norm=True)),
    recurrent("3 dense, RLeaky", functools.partial(dense, 3, rleaky)),
    recurrent("6 dense, RLeaky", functools.partial(dense, 6, rleaky)),
    recurrent("3 dense, RLeaky, V 0.5", functools.partial(dense, 3, rleaky_one_to_one)),
    recurrent("3 dense, RSynaptic", functools.partial(dense, 3, rsynaptic)),
]
