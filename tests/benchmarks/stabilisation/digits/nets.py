"""Plain snntorch nets."""

import itertools
from collections.abc import Callable

import snntorch as snn
from snntorch import surrogate
from torch import nn

__all__ = ["BETA", "convolutional", "dense", "layers_of", "neuron", "neurons_of"]

BETA = 0.9


def neuron(features: int | None = None) -> snn.Leaky:
    return snn.Leaky(beta=BETA, init_hidden=True, spike_grad=surrogate.fast_sigmoid(slope=25))


def dense(
    hidden: int,
    width: int,
    outputs: int | None = None,
    *,
    inputs: int = 64,
    inner: Callable[[int], nn.Module] = neuron,
) -> nn.Sequential:
    """Fully connected layers, each with its neurons; those of hidden layers are made by ``inner``."""
    snn.SpikingNeuron.init()  # snntorch's reset visits every neuron ever built: forget those of older nets
    net = nn.Sequential(nn.Flatten())
    for sizes in itertools.pairwise([inputs] + [width] * hidden):
        net.extend([nn.Linear(*sizes), inner(width)])
    return net if outputs is None else net.extend([nn.Linear(width, outputs), neuron()])


def convolutional() -> nn.Sequential:
    """Four convolutions, each with its neurons."""
    snn.SpikingNeuron.init()
    layers = [
        nn.Conv2d(1, 8, 3, padding=1),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1),
    ]
    return nn.Sequential(*itertools.chain.from_iterable((layer, neuron()) for layer in layers))


def layers_of(net: nn.Sequential) -> list[nn.Linear | nn.Conv2d]:
    return [module for module in net if isinstance(module, nn.Linear | nn.Conv2d)]


def neurons_of(net: nn.Sequential) -> list[snn.SpikingNeuron]:
    return [module for module in net if isinstance(module, snn.SpikingNeuron)]
