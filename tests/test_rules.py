"""The linear rule against plain loops in float64, and what it promises around the formula."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import snntorch as snn
import torch
from cases import PARAMS, case
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ClampBounds,
    CumulativeRate,
    ExponentialRate,
    HomeostasisWarning,
    LinearHomeostasis,
    NonFiniteError,
    PowerBounds,
    SharpBounds,
)

BATCH, UPDATES, PLASTICITY = 3, 20, 0.02
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
TARGETS = {
    "scalar": lambda shape: 0.25,
    "neurons": lambda shape: 0.05 + 0.5 * torch.rand(*shape, dtype=torch.float64),
    "samples": lambda shape: 0.05 + 0.5 * torch.rand(BATCH, *shape, dtype=torch.float64),
}


class SpikeCounter:
    """A plain hook that counts the spikes of a neuron by itself."""

    def __init__(self, each, neuron):
        self.each, self.counts, self.steps = each, 0.0, 0
        neuron.register_forward_hook(self)

    def __call__(self, neuron, args, output):
        spikes = self.each.spikes(output).double().cpu().numpy()
        self.counts, self.steps = self.counts + spikes.sum(0), self.steps + len(spikes)

    @property
    def rate(self):
        return self.counts / self.steps


class Oracle:
    """The rule in plain loops over parameters, samples and positions."""

    def __init__(self, each, kind, size, *, plasticity=PLASTICITY, reduce=np.mean):
        self.size, self.plasticity, self.reduce = size, plasticity, reduce
        self.sets = {index: tuple(each.drivers[kind](index)) for index in np.ndindex(*size)}

    def parts(self, rate, target):
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


def registered(each, built, kind, **settings):
    """A rule with this one cell."""
    homeostasis = LinearHomeostasis(PLASTICITY, param=kind)
    cancelled = kind == "weight" and built.norm is not None
    with pytest.warns(HomeostasisWarning, match="cancels") if cancelled else nullcontext():
        homeostasis.register_cell("cell", built.cell(), **settings)
    return homeostasis


def as_array(tensor):
    return tensor.detach().cpu().double().numpy().copy() if isinstance(tensor, torch.Tensor) else tensor


def assert_follows(each, kind, bounds, target, *, reduction=None, **oracle_settings):
    """Checks every one of some updates against the oracle."""
    built = each.build()
    homeostasis = registered(
        each, built, kind, target=target, bounds=BOUNDS[bounds][0], batch_reduction=reduction
    )
    counter = SpikeCounter(each, built.neuron)
    before = first = as_array(built.parameter(kind))
    oracle = Oracle(each, kind, before.shape, **oracle_settings)
    rounding = torch.finfo(built.parameter(kind).dtype).eps
    for _ in range(UPDATES):
        with torch.no_grad():
            built.run(BATCH)
        homeostasis.step()
        expected = BOUNDS[bounds][1](before, *oracle.parts(counter.rate, as_array(target)))
        after = as_array(built.parameter(kind))
        # the sum is rounded to the dtype of the parameter, which is far larger than its change
        allowed = 1e-6 * np.abs(expected).max() + rounding * np.abs(after).max()
        assert np.abs(after - before - expected).max() <= allowed
        before = after
    assert np.abs(before - first).max() > 0.01


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize(("each", "kind"), PARAMS, ids=str)
def test_rule_agrees_with_plain_loops(each, kind, bounds, target):
    assert_follows(each, kind, bounds, TARGETS[target](each.shape))
