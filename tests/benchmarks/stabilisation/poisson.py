"""Shared by the experiments with one neuron: Poisson inputs, and a simulation in steps of 1 ms."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

STEPS_PER_SECOND = 1000
DT = 1 / STEPS_PER_SECOND


def poisson(hertz: Tensor, seconds: float, generator: torch.Generator) -> Tensor:
    """Spike trains ``[T, N]`` of independent inputs with the given rates ``[N]``."""
    steps = round(seconds * STEPS_PER_SECOND)
    return torch.bernoulli(hertz.expand(steps, -1) / STEPS_PER_SECOND, generator=generator)


@torch.no_grad()
def simulate(
    drive: nn.Module, neuron: nn.Module, inputs: Tensor, after_step: Callable[[int], None]
) -> Tensor:
    """The spikes ``[T]`` of one neuron; ``after_step`` is told how many steps have passed."""
    spikes = torch.empty(len(inputs))
    for step, x in enumerate(inputs.split(1)):
        spikes[step] = neuron(drive(x))
        after_step(step + 1)
    return spikes


def rate(spikes: Tensor) -> float:
    """The mean rate in Hz."""
    return spikes.mean().item() * STEPS_PER_SECOND


def smooth(spikes: Tensor, seconds: float = 1.0) -> Tensor:
    """The rate in Hz over a sliding window; entry t covers the steps from t on."""
    window = min(round(seconds * STEPS_PER_SECOND), len(spikes))
    total = torch.cat([torch.zeros(1), spikes]).cumsum(0)
    return (total[window:] - total[:-window]) * (STEPS_PER_SECOND / window)


def curve(spikes: Tensor, seconds: float = 1.0) -> tuple[Tensor, Tensor]:
    """`smooth`, with the middle of each window in seconds, thinned out for a picture."""
    rates = smooth(spikes, seconds)[::50]
    return seconds / 2 + torch.arange(len(rates)) * (50 / STEPS_PER_SECOND), rates
