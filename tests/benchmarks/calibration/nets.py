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

from ..stabilisation.digits import starts

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


@dataclass(frozen=True)
class Scene:
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
    start: starts.Start = starts.default
    target: float = 0.1
    error: float = 0.05
    forwards: Callable[[int], int] = lambda layers: 2 * layers + 2


def _three(layers: int) -> int:
    return 3 * layers + 2


def _ten(layers: int) -> int:
    return 10


recurrent = functools.partial(Scene, error=0.1, forwards=_ten)
SCENES = [
    Scene("6 dense, default", dense, error=0.03),
    Scene("6 dense, silent", dense, starts.silent, error=0.03),
    Scene("6 dense, bias 1", dense, starts.bias_to_threshold, error=0.03),
    Scene("6 dense, Kaiming", dense, starts.kaiming, error=0.03),
    Scene("6 dense, saturated", dense, starts.saturated, forwards=_three),
    Scene("6 dense, weights ×10", dense, starts.tenfold, forwards=_three),
    Scene("6 dense, BatchNorm", functools.partial(dense, norm=True)),
    Scene("6 dense, target 0.03", dense, target=0.03),
    Scene("6 dense, target 0.3", dense, target=0.3),
    Scene("6 dense, Synaptic", functools.partial(dense, neuron=synaptic)),
    Scene("6 dense, Alpha", functools.partial(dense, neuron=alpha)),
    Scene("4 convolutions", convolutional),
    Scene("4 convolutions, silent", convolutional, starts.silent),
    Scene("4 convolutions, saturated", convolutional, starts.saturated, forwards=_three),
    Scene("4 convolutions, β 0.5", functools.partial(convolutional, beta=0.5)),
    Scene("4 convolutions, β 0.99", functools.partial(convolutional, beta=0.99)),
    Scene("4 convolutions, BatchNorm", functools.partial(convolutional, norm=True)),
    recurrent("3 dense, RLeaky", functools.partial(dense, 3, rleaky)),
    recurrent("6 dense, RLeaky", functools.partial(dense, 6, rleaky)),
    recurrent("3 dense, RLeaky, V 0.5", functools.partial(dense, 3, rleaky_one_to_one)),
    recurrent("3 dense, RSynaptic", functools.partial(dense, 3, rsynaptic)),
]
