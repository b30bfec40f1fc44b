"""What it costs to find the cells of a model, in plain forwards, and how the cost grows with depth."""

from __future__ import annotations

import time

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from snn_homeostasis import find_cells

from .timing import CONTROL, Timings, repeated, side_by_side

pytestmark = pytest.mark.benchmark(timer=time.thread_time)

FORWARDS = 20


class Quickstart(nn.Module):
    """A net with a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 128), snn.Leaky(beta=0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(128, 10), snn.Leaky(beta=0.9, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


class Chain(nn.Module):
    """Many layers, called one after the other."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(depth))
        self.neurons = nn.ModuleList(snn.Leaky(beta=0.9, init_hidden=True) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer, neuron in zip(self.layers, self.neurons, strict=True):
            x = neuron(layer(x))
        return x


def against_forwards(net: nn.Module, example: Tensor, rounds: int = 20) -> Timings:
    """Times `find_cells` over the plain forwards that it may cost."""
    net(example)
    forwards = repeated(lambda: net(example), FORWARDS)
    calls = {"forwards": forwards, CONTROL: forwards, "find": lambda: find_cells(net, example)}
    return side_by_side(calls, rounds=rounds)


def judged(benchmark, timings: Timings, **figures: float) -> None:
    benchmark.pedantic(lambda: None)
    benchmark.extra_info.update({"control": timings.control, **figures})
    timings.skip_if_void()


def test_the_quickstart_takes_some_forwards(benchmark):
    net, example = Quickstart(), torch.rand(16, 64)
    assert [(each.layer, each.neuron) for each in find_cells(net, example)] == [
        ("fc1", "lif1"),
        ("fc2", "lif2"),
    ]
    timings = against_forwards(net, example)
    judged(benchmark, timings, forwards=FORWARDS * timings.ratio("find"))
    assert timings.ratio("find") <= 1


def test_growth_from_50_to_200_layers(benchmark):
    nets = {depth: Chain(depth) for depth in (50, 200)}
    timings = side_by_side(
        {str(depth): lambda net=net: find_cells(net, torch.rand(4, 16)) for depth, net in nets.items()},
        rounds=5,
    )
    benchmark.pedantic(lambda: None)
    growth = timings.ratio("200", "50")
    benchmark.extra_info.update(growth=growth)
    assert growth <= 4 * 1.5
