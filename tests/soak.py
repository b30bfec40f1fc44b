"""Trains a small net for long: memory must not grow, and the reported rate not drift.

python tests/soak.py [iterations] [device]
"""

from __future__ import annotations

import gc
import io
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from nets import bytes_of, leaky, spikes
from snntorch import utils
from torch import Tensor, nn

from snn_homeostasis import ClampBounds, CumulativeRate, LinearHomeostasis

EPOCH = 100


@dataclass(frozen=True)
class Soaked:
    """What a run ended with.

    Attributes:
        drift: the largest relative difference between a reported and a recounted rate.
        growth: of the memory from the middle of the run to its end, in MiB.
        state: bytes of the state of the homeostasis at the end.
    """

    drift: float
    growth: float
    state: int


def build() -> tuple[nn.Module, torch.optim.Optimizer, LinearHomeostasis]:
    net = nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 3), leaky()).float()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    homeostasis = LinearHomeostasis(1e-3, 0.2, rate=CumulativeRate, bounds=ClampBounds(-2.0, 2.0)).attach(net)
    return net, optimizer, homeostasis.follow(optimizer)


def round_trip(homeostasis: LinearHomeostasis) -> None:
    file = io.BytesIO()
    torch.save(homeostasis.state_dict(), file)
    file.seek(0)
    homeostasis.load_state_dict(torch.load(file, weights_only=True))


def memory() -> float:
    """MiB: of the process, or, where the net is on a GPU, of its device."""
    gc.collect()
    if torch.get_default_device().type == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class MeanOverSteps:
    """The rate by its definition in double precision: batches weigh by their steps, not their size."""

    def __init__(self, neuron: nn.Module) -> None:
        self.total: Tensor | float = 0.0
        self.steps = 0
        neuron.register_forward_hook(self._add)

    def _add(self, neuron: nn.Module, args: object, output: Tensor) -> None:
        self.total = self.total + output.detach().double().mean(0)
        self.steps += 1


def soak(iterations: int, steps: int = 2) -> Soaked:
    torch.manual_seed(0)
    net, optimizer, homeostasis = build()
    recounts = {path: MeanOverSteps(net[int(path)]) for path in homeostasis.cells}
    warm = 0.0
    for iteration in range(iterations):
        utils.reset(net)
        batch = 1 + iteration % 7
        output = sum(net(2 * spikes(batch, 6)) for _ in range(steps))
        optimizer.zero_grad()
        (output / steps - 0.3).square().mean().backward()
        optimizer.step()
        if iteration % EPOCH == EPOCH - 1:
            round_trip(homeostasis)
        if iteration == iterations // 2:
            warm = memory()
    drifts = [
        ((rate - recounts[name].total / recounts[name].steps).abs() / rate).max().item()
        for name, rate in homeostasis.rates().items()
    ]
    return Soaked(max(drifts), memory() - warm, bytes_of(homeostasis.state_dict()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_device(sys.argv[2] if len(sys.argv) > 2 else "cpu")
    print(soak(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))
