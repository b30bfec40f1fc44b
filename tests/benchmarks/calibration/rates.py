"""The rates after a calibration, counted by hand on images that it has not seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_homeostasis import LinearHomeostasis

from ..stabilisation import digits
from ..tables import table
from .nets import SCENES, STEPS, Scene

__all__ = ["rates_table"]

IMAGES = 512
HEADS = ("net, start", "farthest layer", "at most", "per neuron", "silent", "forwards", "at most", "s", "met")


@dataclass(frozen=True)
class Judged:
    """One calibrated net, on unseen images.

    Args:
        layer: the error of the farthest layer, relative to the target.
        parameter: the mean error over what has a bias of its own: neurons or channels.
        quiet: the share of these that never fire.
        forwards: that the calibration took.
        seconds: of the processor.
    """

    layer: float
    parameter: float
    quiet: float
    forwards: int
    seconds: float


def judge(scene: Scene, seed: int) -> Judged:
    torch.manual_seed(seed)
    snn.SpikingNeuron.init()
    net, data = scene.build(), digits.load()
    scene.start(net, data.train_x)
    picked = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    homeostasis = LinearHomeostasis(0.01, scene.target, "bias").attach(net, data.train_x[:2])
    before = time.process_time()
    report = homeostasis.calibrate(data.train_x[picked], num_steps=STEPS, progress=False)
    seconds = time.process_time() - before
    homeostasis.remove()
    rates = counted(net, data.test_x)
    errors = torch.cat([(rate - scene.target).abs() / scene.target for rate in rates])
    return Judged(
        max(abs(float(rate.mean()) - scene.target) / scene.target for rate in rates),
        float(errors.mean()),
        float(torch.cat([rate == 0 for rate in rates]).float().mean()),
        report.forwards,
        seconds,
    )


@torch.no_grad()
def counted(net: nn.Sequential, images: Tensor) -> list[Tensor]:
    """The rate of each neuron or channel, by layer, from fresh membranes."""
    neurons = [module for module in net if isinstance(module, snn.SpikingNeuron)]
    for neuron in neurons:
        neuron.reset_mem()
    counts = [torch.zeros(()) for _ in neurons]
    for _ in range(STEPS):
        x, layer = images, 0
        for module in net:
            x = module(x)
            if isinstance(module, snn.SpikingNeuron):
                fired = (x != 0).double()
                counts[layer] = counts[layer] + fired.mean([axis for axis in range(x.ndim) if axis != 1])
                layer += 1
    return [count / STEPS for count in counts]


def rates_table(seeds: Sequence[int], quick: bool) -> str:
    """The worst over the seeds, beside what is wanted at most."""
    rows = []
    for scene in SCENES[: 1 if quick else None]:
        judged = [judge(scene, seed) for seed in seeds]
        layers = len([module for module in scene.build() if isinstance(module, snn.SpikingNeuron)])
        worst, forwards = max(each.layer for each in judged), max(each.forwards for each in judged)
        most = scene.forwards(layers)
        rows.append(
            [
                scene.name,
                f"{worst:.1%}",
                f"{scene.error:.0%}",
                f"{sum(each.parameter for each in judged) / len(judged):.1%}",
                f"{max(each.quiet for each in judged):.1%}",
                str(forwards),
                str(most),
                f"{sum(each.seconds for each in judged) / len(judged):.1f}",
                "yes" if worst <= scene.error and forwards <= most else "**no**",
            ]
        )
    return table(HEADS, rows)
