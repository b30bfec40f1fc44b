"""The linear rule and the bounds in plain loops and in float64, as the contract states them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from snn_homeostasis import ClampBounds, PowerBounds, SharpBounds

LOW, HIGH = -0.2, 0.3


def power(p, pos, neg):
    return np.maximum(HIGH - p, 0) ** 1.0 * pos - np.maximum(p - LOW, 0) ** 2.0 * neg


def scaled(p, pos, neg):
    width = HIGH - LOW
    return np.maximum(HIGH - p, 0) / width * pos - np.maximum(p - LOW, 0) / width * neg


def sharp(p, pos, neg):
    return np.heaviside(HIGH - p, 1.0) * pos - np.heaviside(p - LOW, 1.0) * neg


def clamp(p, pos, neg):
    return np.minimum(np.maximum(p + pos - neg, LOW), HIGH) - p


BOUNDS = {
    "none": (None, lambda p, pos, neg: pos - neg),
    "power": (PowerBounds(LOW, HIGH, power=(1.0, 2.0)), power),
    "scaled": (PowerBounds(LOW, HIGH, scaled=True), scaled),
    "sharp": (SharpBounds(LOW, HIGH), sharp),
    "clamp": (ClampBounds(LOW, HIGH), clamp),
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
