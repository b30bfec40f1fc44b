"""What training makes of a calibration: test accuracy on the digits, beside other ways to begin."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from ..stabilisation import digits
from ..stabilisation.digits import starts
from ..stabilisation.report import mean_and_spread
from ..tables import table
from . import rivals
from .nets import leaky

__all__ = ["accuracy_table"]

EPOCHS, IMAGES = 8, 512

Prepare = Callable[[nn.Sequential, Tensor], Any]  # sees a net and the images to calibrate on


def dense(depth: int) -> nn.Sequential:
    return digits.dense(depth, digits.WIDTH, digits.CLASSES)


def convolutional() -> nn.Sequential:
    """Five convolutions of twelve channels, and a readout."""
    snn.SpikingNeuron.init()
    net = nn.Sequential()
    for inputs in (1, 12, 12, 12, 12):
        net.extend([nn.Conv2d(inputs, 12, 3, padding=1), leaky(12)])
    return net.extend([nn.Flatten(), nn.Linear(12 * 64, digits.CLASSES), leaky(digits.CLASSES)])


@dataclass(frozen=True)
class Way:
    """What is done to a net before and while it is trained."""

    before: Prepare | None = None
    rule: digits.Rule | None = None


def by_gradient(learning_rate: float) -> dict[str, Way]:
    """A calibration by gradients, with and without the two lines after it."""
    before = functools.partial(rivals.by_gradient, learning_rate=learning_rate)
    name = f"gradient calibration {learning_rate:g}"
    return {name: Way(before), f"{name}, two lines": Way(before, digits.two_lines)}


DEEP = functools.partial(digits.calibrate, scale=1.0, gradients=True)
PLAIN = {"plain": Way(), "two lines": Way(None, digits.two_lines)}
OURS = {"calibrated": Way(digits.calibrate), "calibrated, two lines": Way(digits.calibrate, digits.two_lines)}
OF_DEEP_NETS = {"scale 1, gradients": Way(DEEP), "scale 1, gradients, two lines": Way(DEEP, digits.two_lines)}
CONSTANT = functools.partial(digits.constant_plasticity, plasticity=0.001)
BY_HAND = {"λ by hand": Way(rivals.by_hand), "λ by hand, then 0.001": Way(rivals.by_hand, CONSTANT)}
# the best of 0.001, 0.003, 0.01 and 0.03 on six layers, seeds 10 and 11, from PyTorch's start and from others
BY_GRADIENT, FROM_SPOILED = by_gradient(0.003), by_gradient(0.01)
STARTS = {"silent": starts.silent, "saturated": starts.saturated}
INITIALISATIONS = {"Kaiming": starts.kaiming, "fluctuation-driven": starts.fluctuating}


@dataclass(frozen=True)
class Row:
    """A net, its start, and what is done to it; the name is shown in the table."""

    name: str
    build: Callable[[], nn.Sequential]
    start: starts.Start
    way: Way


def rows_of(depth: int, ways: Mapping[str, Way], start: str = "") -> list[Row]:
    build, known = functools.partial(dense, depth), {"": starts.default} | STARTS | INITIALISATIONS
    name = f"{depth} layers, {start}, " if start else f"{depth} layers, "
    return [Row(name + ending, build, known[start], way) for ending, way in ways.items()]


def compared(depth: int) -> list[Row]:
    """Every way to begin at one depth."""
    return [
        *rows_of(depth, PLAIN | OURS | BY_GRADIENT | BY_HAND),
        *(row for start in INITIALISATIONS for row in rows_of(depth, PLAIN, start)),
    ]


def spoiled(depth: int) -> list[Row]:
    """The same from weights that cannot work."""
    ways = PLAIN | OURS | FROM_SPOILED | BY_HAND
    return [row for start in STARTS for row in rows_of(depth, ways, start)]


def rows() -> list[Row]:
    return [
        *compared(6),
        *spoiled(6),
        *compared(8),
        *compared(12),
        *(row for depth in (2, 4) for row in rows_of(depth, PLAIN)),
        *(row for depth in (2, 4, 6, 12, 16) for row in rows_of(depth, OF_DEEP_NETS)),
        Row("5 convolutions, plain", convolutional, starts.default, Way()),
        Row("5 convolutions, scale 1, gradients", convolutional, starts.default, Way(DEEP)),
    ]


LEAST = {  # the accuracy in per cent that is wanted
    "6 layers, calibrated, two lines": 93,
    "6 layers, silent, calibrated, two lines": 82,
    "6 layers, saturated, calibrated, two lines": 88,
    "8 layers, calibrated, two lines": 85,
    "12 layers, scale 1, gradients": 92,
    "16 layers, scale 1, gradients, two lines": 88,
    "5 convolutions, scale 1, gradients": 88,
}


def trained(row: Row, seed: int, epochs: int = EPOCHS) -> float:
    """The accuracy on the test images, in per cent."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data, net = digits.load(), row.build()
    row.start(net, data.train_x)
    if row.way.before is not None:
        picked = torch.randperm(len(data.train_x), generator=generator)[:IMAGES]
        row.way.before(net, data.train_x[picked])
    digits.train(net, data, epochs, generator, row.way.rule)
    return 100 * digits.accuracy(digits.judged(net, data.test_x)[-1], data.test_y)


def accuracy_table(seeds: Sequence[int], only: str, quick: bool) -> str:
    """Mean and sample standard deviation over the seeds."""
    epochs, chosen = (1, compared(1)) if quick else (EPOCHS, rows())
    shown = []
    for row in chosen:
        if not row.name.startswith(only):
            continue
        found = [trained(row, seed, epochs) for seed in seeds]
        least = LEAST.get(row.name)
        met = "–" if least is None else "yes" if statistics.mean(found) >= least else "**no**"
        shown.append([row.name, mean_and_spread(found, ".1f"), "–" if least is None else str(least), met])
        print(shown[-1], flush=True)
    return table(["net, treatment", "accuracy, %", "at least", "met"], shown)
