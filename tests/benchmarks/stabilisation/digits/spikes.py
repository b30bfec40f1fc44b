"""Spikes of a net, counted by hand."""

from collections.abc import Callable

import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn

from .nets import neurons_of

__all__ = [
    "STEPS",
    "TARGET",
    "Present",
    "constant",
    "judged",
    "rate_loss",
    "rates_of",
    "rates_over",
    "silent",
]

STEPS, TARGET = 20, 0.1

Present = Callable[[Tensor], Tensor]  # samples ``[B, ...]`` -> what enters the net, ``[T, B, ...]``


def constant(x: Tensor) -> Tensor:
    """Each number as a current that does not change, for all steps."""
    return x.expand(STEPS, *x.shape)


def rates_over(net: nn.Sequential, frames: Tensor) -> list[Tensor]:
    """Spikes per step ``[B, *N]`` of each layer from a fresh state; differentiable."""
    utils.reset(net)
    counts = [torch.zeros(()) for _ in neurons_of(net)]
    for x in frames:
        spikes = []
        for module in net:
            x = module(x)
            if isinstance(module, snn.SpikingNeuron):
                spikes.append(x)
        counts = [count + spike for count, spike in zip(counts, spikes, strict=True)]
    return [count / len(frames) for count in counts]


def rates_of(net: nn.Sequential, images: Tensor) -> list[Tensor]:
    """`rates_over` constant currents."""
    return rates_over(net, constant(images))


@torch.no_grad()
def judged(net: nn.Sequential, x: Tensor, present: Present = constant) -> list[Tensor]:
    """`rates_over` what a net is presented, with homeostasis frozen."""
    net.eval()
    rates = rates_over(net, present(x))
    net.train()
    return rates


def silent(rates: list[Tensor]) -> float:
    """The share of neurons that no image makes fire."""
    return torch.cat([(rate.sum(0) == 0).float().flatten() for rate in rates]).mean().item()


def rate_loss(rates: list[Tensor], target: float = TARGET) -> Tensor:
    """The squared relative error of each neuron's mean rate; the sum of the means of all layers."""
    return sum(((rate.mean(0) / target - 1) ** 2).mean() for rate in rates)
