"""Classes that differ in spike times alone: Randman, after Zenke and Vogels (2021)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..stabilisation.digits import Data

__all__ = ["CLASSES", "INPUTS", "STEPS", "load", "spike_trains"]

CLASSES, INPUTS, STEPS = 10, 100, 50
DIMENSIONS, SMOOTHNESS, FREQUENCIES = 2, 2.0, 32
TRAINING, TEST = 200, 100  # samples of each class


def load(seed: int, training: int = TRAINING, test: int = TEST) -> Data:
    """Spike times ``[samples, inputs]``, whole steps below `STEPS`, and labels.

    Each class is a smooth random manifold: a few hidden coordinates say when each input spikes.
    Every input spikes once, at any time, in every class: its rate says nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    manifolds = [_manifold(training + test, generator) for _ in range(CLASSES)]
    times = torch.stack(manifolds).mul(STEPS).long().clamp_max(STEPS - 1)
    labels = torch.arange(CLASSES)[:, None].expand(-1, training + test)
    parts = [part.flatten(0, 1) for part in times.split([training, test], 1)]
    return Data(*parts, *(part.flatten() for part in labels.split([training, test], 1)))


def _manifold(samples: int, generator: torch.Generator) -> Tensor:
    """Random points of a random manifold, ``[samples, inputs]``, each input from 0 to 1.

    Along each coordinate an input is a Fourier series whose coefficients fall with the frequency;
    the series of all coordinates are multiplied.
    """
    points = torch.rand(samples, 1, DIMENSIONS, 1, generator=generator)
    strength, stretch, phase = torch.rand(3, INPUTS, DIMENSIONS, FREQUENCIES, generator=generator)
    frequency = torch.arange(1.0, FREQUENCIES + 1)
    waves = torch.sin(2 * math.pi * (frequency * stretch * points + phase))
    values = (strength * frequency**-SMOOTHNESS * waves).sum(-1).prod(-1)
    values = values - values.amin(0)
    return values / values.amax(0)


def spike_trains(times: Tensor) -> Tensor:
    """Spikes ``[T, B, N]`` of spike times ``[B, N]``."""
    return F.one_hot(times, STEPS).movedim(-1, 0).float()
