"""Shared by the experiments with networks: scikit-learn's digits, plain snntorch nets, their spikes."""

import itertools
from typing import NamedTuple

import snntorch as snn
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from snntorch import surrogate, utils
from torch import Tensor, nn

STEPS, TARGET = 20, 0.1
BETA = 0.9


class Digits(NamedTuple):
    """Images ``[samples, 1, 8, 8]`` from 0 to 1, and their labels."""

    train_x: Tensor
    test_x: Tensor
    train_y: Tensor
    test_y: Tensor


def load() -> Digits:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(x, torch.tensor(labels), test_size=1 / 3, random_state=0, stratify=labels)
    return Digits(*parts)


def neuron() -> snn.Leaky:
    return snn.Leaky(beta=BETA, init_hidden=True, spike_grad=surrogate.fast_sigmoid(slope=25))


def dense(hidden: int, width: int, outputs: int | None = None) -> nn.Sequential:
    """Fully connected layers, each with its neurons."""
    snn.SpikingNeuron.init()  # snntorch's reset visits every neuron ever built: forget those of older nets
    widths = [64, *[width] * hidden, *([] if outputs is None else [outputs])]
    layers = [nn.Linear(*sizes) for sizes in itertools.pairwise(widths)]
    return nn.Sequential(nn.Flatten(), *itertools.chain.from_iterable((layer, neuron()) for layer in layers))


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


def neurons_of(net: nn.Sequential) -> list[snn.Leaky]:
    return [module for module in net if isinstance(module, snn.Leaky)]


def rates_of(net: nn.Sequential, images: Tensor) -> list[Tensor]:
    """Spikes per step ``[B, *N]`` of each layer, counted by hand from a fresh state; differentiable."""
    utils.reset(net)
    counts = [torch.zeros(()) for _ in neurons_of(net)]
    for _ in range(STEPS):
        x, spikes = images, []
        for module in net:
            x = module(x)
            if isinstance(module, snn.Leaky):
                spikes.append(x)
        counts = [count + spike for count, spike in zip(counts, spikes, strict=True)]
    return [count / STEPS for count in counts]


@torch.no_grad()
def judged(net: nn.Sequential, images: Tensor) -> list[Tensor]:
    """`rates_of` with homeostasis frozen."""
    net.eval()
    rates = rates_of(net, images)
    net.train()
    return rates


def silent(rates: list[Tensor]) -> float:
    """The share of neurons that no image makes fire."""
    return torch.cat([(rate.sum(0) == 0).float().flatten() for rate in rates]).mean().item()


def batches(x: Tensor, rounds: int, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random images for some rounds."""
    return x[torch.randint(len(x), (rounds, size), generator=generator)].unbind()
