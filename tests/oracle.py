"""The linear rule, the bounds and the estimators in plain loops and float64, as the contract states them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from snn_homeostasis import ClampBounds, PowerBounds, SharpBounds

LOW, HIGH = -0.2, 0.3


def free(p, pos, neg):
    return pos - neg


def power(low, high, upper=1.0, lower=1.0, *, scaled=False):
    """A limit of None leaves its side free."""
    width = high - low if scaled else 1.0

    def delta(p, pos, neg):
        above = 1.0 if high is None else (np.maximum(high - p, 0) / width) ** upper
        below = 1.0 if low is None else (np.maximum(p - low, 0) / width) ** lower
        return above * pos - below * neg

    return delta


def sharp(low, high):
    def delta(p, pos, neg):
        up = 1.0 if high is None else np.heaviside(high - p, 1.0)
        down = 1.0 if low is None else np.heaviside(p - low, 1.0)
        return up * pos - down * neg

    return delta


def clamp(low, high):
    low, high = (-np.inf if low is None else low), (np.inf if high is None else high)
    return lambda p, pos, neg: np.minimum(np.maximum(p + pos - neg, low), high) - p


BOUNDS = {
    "none": (None, free),
    "power": (PowerBounds(LOW, HIGH, power=(1.0, 2.0)), power(LOW, HIGH, 1.0, 2.0)),
    "scaled": (PowerBounds(LOW, HIGH, scaled=True), power(LOW, HIGH, scaled=True)),
    "sharp": (SharpBounds(LOW, HIGH), sharp(LOW, HIGH)),
    "clamp": (ClampBounds(LOW, HIGH), clamp(LOW, HIGH)),
}


class SpikeCounter:
    """A plain hook that counts the spikes of the neuron of a case."""

    def __init__(self, each, neuron: nn.Module) -> None:
        self.each, self.counts, self.steps = each, 0.0, 0
        neuron.register_forward_hook(self)

    def __call__(self, neuron, args, output) -> None:
        spikes = self.each.spikes(output).double().cpu().numpy()
        self.counts, self.steps = self.counts + spikes.sum(0), self.steps + len(spikes)

    @property
    def rate(self) -> np.ndarray:
        return self.counts / self.steps


class Estimate:
    """Any estimator, as a weighted mean of all steps that it has seen.

    Args:
        weigh: gives the weight of a step from its number, from 0 on, and the number of steps.
    """

    def __init__(self, weigh: Callable[[int, int], float]) -> None:
        self.weigh, self.frames = weigh, []

    def observe(self, frame: np.ndarray) -> None:
        """Takes in one step ``[B, *N]``; in a batch of another size each sample has the mean past."""
        if self.frames and len(self.frames[0]) != len(frame):
            self.frames = [np.broadcast_to(past.mean(0), frame.shape) for past in self.frames]
        self.frames.append(frame)

    @property
    def steps(self) -> int:
        return len(self.frames)

    @property
    def rate(self) -> np.ndarray:
        weights = [self.weigh(number, self.steps) for number in range(self.steps)]
        total = sum(weight * frame for weight, frame in zip(weights, self.frames, strict=True))
        return total / (sum(weights) or 1.0)


class Oracle:
    """The linear rule in plain loops over parameters, samples and positions.

    Args:
        each: the case, which names the neurons that share each parameter.
        kind: "weight", "bias" or "delay".
        size: the shape of the parameter.
        plasticity: the factor of the term, negative for delays.
        reduce: reduces a list over the batch.
    """

    def __init__(self, each, kind: str, size, *, plasticity: float, reduce=np.mean) -> None:
        self.size, self.plasticity, self.reduce = size, plasticity, reduce
        self.sets = {index: tuple(each.drivers[kind](index)) for index in np.ndindex(*size)}

    def parts(self, rate: np.ndarray, target: Any) -> np.ndarray:
        """The magnitudes pos and neg of every entry, from rates ``[B, *N]``."""
        target = np.broadcast_to(np.asarray(target, dtype=np.float64), rate.shape)
        rate, target = (values.reshape(len(rate), -1).tolist() for values in (rate, target))
        shared = {positions: self._parts_of(positions, rate, target) for positions in self.sets.values()}
        both = np.zeros((2, *self.size))
        for index, positions in self.sets.items():
            both[(slice(None), *index)] = shared[positions]
        return both

    def _parts_of(self, positions, rate, target):
        ks = []
        for r, t in zip(rate, target, strict=True):
            total = 0.0
            for n in positions:
                total += (t[n] - r[n]) / t[n]
            ks.append(self.plasticity * total / len(positions))
        pos, neg = [max(k, 0.0) for k in ks], [min(k, 0.0) for k in ks]
        return self.reduce(pos), abs(self.reduce(neg))


def as_array(value: torch.Tensor | float) -> np.ndarray | float:
    return value.detach().cpu().double().numpy().copy() if isinstance(value, torch.Tensor) else value
