"""Random settings of a cell, each with what it means in plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import numpy as np
import torch
from oracle import Estimate, clamp, free, power, sharp
from torch import Tensor

from snn_homeostasis import (
    ClampBounds,
    CumulativeRate,
    ExponentialRate,
    PowerBounds,
    RateEstimator,
    SharpBounds,
    WindowedRate,
)

LIMITS = {"weight": (-0.25, 0.375), "bias": (-0.25, 0.375), "delay": (0.5, 1.5)}  # exact in float32


@dataclass(frozen=True)
class Pair:
    """A thing of the package, and the same in plain loops."""

    text: str
    real: Any
    plain: Any


class RateAfterTheStart(RateEstimator):
    """A user's own estimator: the mean over the steps after the first ``skipped`` ones."""

    def __init__(self, skipped: int) -> None:
        super().__init__()
        self.skipped = skipped

    def update(self, spikes: Tensor) -> None:
        late = spikes[max(0, self.skipped - self.steps) :]
        self.total_for(spikes[0]).add_(late.sum(0, dtype=torch.float32))
        self.count(len(spikes), spikes.device)

    @property
    def weight(self) -> float:
        return max(1, self.steps - self.skipped)


def estimator(draw: Random) -> Pair:
    number = draw.randint(1, 12)
    return draw.choice(
        [
            Pair("cumulative", CumulativeRate, partial(Estimate, lambda step, steps: 1.0)),
            Pair(
                f"exponential {number}",
                partial(ExponentialRate, tau=float(number)),
                partial(Estimate, lambda step, steps: math.exp((step + 1 - steps) / number)),
            ),
            Pair(
                f"window {number}",
                partial(WindowedRate, number),
                partial(Estimate, lambda step, steps: float(step >= steps - number)),
            ),
            Pair(
                f"after {number}",
                partial(RateAfterTheStart, number),
                partial(Estimate, lambda step, steps: float(step >= number)),
            ),
        ]
    )


REDUCTIONS = [
    Pair("default", None, np.mean),
    Pair("mean", torch.mean, np.mean),
    Pair("sum", torch.sum, np.sum),
    Pair("amax", torch.amax, np.max),
    Pair("amin", torch.amin, np.min),
    Pair("norm", lambda part, dim: part.square().sum(dim).sqrt(), lambda ks: math.hypot(*ks)),
    Pair("largest", lambda part, dim: part.abs().amax(dim), lambda ks: max(map(abs, ks))),
]
SAVED_REDUCTIONS = ("default", "mean", "sum")


def half(param: Any, pos: Any, neg: Any) -> Any:
    return 0.5 * pos - 0.25 * neg


def of_its_sign(param: Any, pos: Any, neg: Any) -> Any:
    """A callable that looks at the parameter, in a way that tensors and arrays both have."""
    return (param > 0) * (pos - neg)


def bounds(draw: Random, kind: str) -> Pair:
    low, high = LIMITS[kind]
    if kind != "delay":
        low, high = draw.choice([(low, high), (low, high), (None, high), (low, None)])
    upper, lower = draw.choice([(2.0, 2.0), (2.0, 1.0), (0.5, 3.0), (1.5, 0.5)])
    scaled = low is not None and high is not None and draw.random() < 0.5
    text = f"[{low}, {high}]{' scaled' if scaled else ''}"
    uneven = Pair(
        f"power {upper} {lower} {text}",
        PowerBounds(low, high, power=(upper, lower), scaled=scaled),
        power(low, high, upper, lower, scaled=scaled),
    )
    even = Pair(f"linear {text}", PowerBounds(low, high, scaled=scaled), power(low, high, scaled=scaled))
    return draw.choice(
        [
            uneven,
            uneven,
            even,
            Pair("none", None, free),
            Pair(f"sharp {text}", SharpBounds(low, high), sharp(low, high)),
            Pair(f"clamp {text}", ClampBounds(low, high), clamp(low, high)),
            Pair("own half", half, half),
            Pair("own sign", of_its_sign, of_its_sign),
        ]
    )


def plasticity(draw: Random) -> float:
    return draw.choice([0.04, 0.03, 0.01])


def target(draw: Random, shape: tuple[int, ...], batch: int | None = None) -> float | Tensor:
    """A number or a tensor that broadcasts to the neurons, or to all samples of a batch."""
    kinds: list[Callable[[], float | Tensor]] = [
        lambda: draw.choice([0.1, 0.25, 0.6]),
        lambda: rates(*shape),
        lambda: rates(1, *shape),
        lambda: rates(*(draw.choice([1, size]) for size in shape)).double(),
    ]
    if batch is not None:
        kinds.append(lambda: rates(batch, *shape))
    return draw.choice(kinds)()


def rates(*shape: int) -> Tensor:
    return 0.1 + 0.5 * torch.rand(*shape)
