"""Goals: how far rates are from the targets of a population."""

from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from ..cells import Band, Rate
from .populations import Population, Rows

__all__ = ["errors_of", "target_of"]


def target_of(population: Population) -> Rate | Band:
    """The target of a population, that of its first unit, in spikes per step."""
    return population.units[0].target_for(population.rates[0], None)


def errors_of(population: Population, rate: Tensor, rows: Rows) -> Tensor:
    """How far each row is from the target, relative to it: positive if it is too quiet.

    Args:
        population: gives the target.
        rate: ``[B, *N]`` in spikes per step.
        rows: of the regulated parameter.
    """
    return _errors(target_of(population), rate, rows)


@singledispatch
def _errors(target: Any, rate: Tensor, rows: Rows) -> Tensor:
    return rows.mean((target - rate) / target)


@_errors.register
def _(target: Band, rate: Tensor, rows: Rows) -> Tensor:
    mean = rows.mean(rate)
    nearest = target.nearest(mean)
    return torch.where(nearest == mean, 0.0, (nearest - mean) / nearest)
