"""What training makes of a calibration: test accuracy on the digits after 8 epochs."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from snn_homeostasis import LinearHomeostasis

from ..stabilisation import digits
from ..tables import table
from .nets import STEPS, default, kaiming, leaky, saturated, silent

__all__ = ["accuracy_table"]

WIDTH, CLASSES, EPOCHS, BATCH, LEARNING_RATE, TARGET, IMAGES = 128, 10, 8, 64, 1e-3, 0.1, 512


def dense(depth: int) -> nn.Sequential:
    return digits.dense(depth, WIDTH, CLASSES)


def convolutional() -> nn.Sequential:
    """Five convolutions of twelve channels, and a readout."""
    snn.SpikingNeuron.init()
    net = nn.Sequential()
    for inputs in (1, 12, 12, 12, 12):
        net.extend([nn.Conv2d(inputs, 12, 3, padding=1), leaky(12)])
    return net.extend([nn.Flatten(), nn.Linear(12 * 64, CLASSES), leaky(CLASSES)])


@dataclass(frozen=True)
class Row:
    """A net, its start, and what is done to it before and while it is trained.

    Args:
        name: shown in the table.
        build: makes the net.
        start: spoils or replaces its weights.
        calibration: the arguments of `calibrate`, None for none.
        regulated: whether the rule runs during training.
        least: the mean accuracy in per cent that is wanted, None for a row to compare with.
    """

    name: str
    build: Callable[[], nn.Sequential]
    start: Callable[[nn.Module], None] = default
    calibration: dict[str, Any] | None = field(default_factory=dict)
    regulated: bool = False
    least: float | None = None


DEEP = {"scale": 1.0, "gradients": True}


def _rows() -> list[Row]:
    net = {depth: functools.partial(dense, depth) for depth in (2, 4, 6, 8, 12, 16)}
    deep = functools.partial(Row, calibration=DEEP)
    ruled = functools.partial(Row, regulated=True)
    return [
        *(Row(f"{depth} layers, plain", net[depth], calibration=None) for depth in (2, 4, 6, 8, 12)),
        *(Row(f"{depth} layers, Kaiming", net[depth], kaiming, None) for depth in (6, 12)),
        ruled("6 layers, calibrated, rule", net[6], least=93.0),
        ruled("6 layers, silent, calibrated, rule", net[6], silent, least=82.0),
        ruled("6 layers, saturated, calibrated, rule", net[6], saturated, least=88.0),
        ruled("8 layers, calibrated, rule", net[8], least=85.0),
        Row("12 layers, calibrated", net[12]),
        deep("12 layers, scale 1, gradients", net[12], least=92.0),
        deep("16 layers, scale 1, gradients, rule", net[16], regulated=True, least=88.0),
        *(deep(f"{depth} layers, scale 1, gradients", net[depth]) for depth in (2, 4, 6)),
        Row("5 convolutions, plain", convolutional, calibration=None),
        deep("5 convolutions, scale 1, gradients", convolutional, least=88.0),
    ]


def trained(row: Row, seed: int) -> float:
    """The accuracy on the test images, in per cent."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data, net = digits.load(), row.build()
    row.start(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    homeostasis = LinearHomeostasis(target=TARGET, param="bias").attach(net, data.train_x[:2])
    if row.calibration is not None:
        picked = torch.randperm(len(data.train_x), generator=generator)[:IMAGES]
        homeostasis.calibrate(data.train_x[picked], num_steps=STEPS, progress=False, **row.calibration)
    if row.regulated:
        homeostasis.follow(optimizer)
    else:
        homeostasis.remove()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(data.train_x), generator=generator).split(BATCH):
            counts = STEPS * digits.rates_of(net, data.train_x[batch])[-1]
            loss = F.cross_entropy(counts, data.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    output = digits.judged(net, data.test_x)[-1]
    return 100 * (output.argmax(1) == data.test_y).float().mean().item()


def accuracy_table(seeds: Sequence[int], only: str = "") -> str:
    """Mean and sample standard deviation over the seeds."""
    rows = []
    for row in _rows():
        if only not in row.name:
            continue
        found = [trained(row, seed) for seed in seeds]
        mean, spread = statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0
        wanted = "–" if row.least is None else f"{row.least:.0f}"
        met = "–" if row.least is None else "yes" if mean >= row.least else "**no**"
        rows.append([row.name, f"{mean:.1f} ± {spread:.1f}", wanted, met])
        print(rows[-1], flush=True)
    return table(["net, treatment", "accuracy, %", "at least", "met"], rows)
