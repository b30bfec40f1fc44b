"""What one looks at in a cell: its rate, its silent and saturated neurons, its distance from the target."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cells import Band, Rate, Target, Unit

__all__ = ["EVERY_STEP", "Activity", "activities", "metrics_of"]

EVERY_STEP = 1.0 - 1e-6  # a mean over samples is rounded


@dataclass(frozen=True)
class Activity:
    """The activity of the neurons of one cell. The mean over the batch comes first.

    Attributes:
        rate: mean over the neurons, in spikes per step, or in Hz with `dt`.
        silent: the share of neurons that never fired, 0 to 1.
        saturated: the share of neurons that fired at every step, 0 to 1.
        error: ``|r* - r| / r*``, mean over the neurons, with r* the nearest rate of a band; None without
            a target.
        neurons: how many they are; in a convolution, a channel at a position is a neuron.
        population: tells cells of the same neurons.
    """

    rate: float
    silent: float
    saturated: float
    error: float | None
    neurons: int
    population: int


def activities(units: Mapping[str, Unit], rates: Mapping[str, Tensor]) -> dict[str, Activity]:
    """Reads rates ``[*N]`` against the targets of their cells; waits for the device once."""
    if not rates:
        return {}
    device = next(iter(rates.values())).device
    targets = {name: _known(units[name].state.target) for name in rates}
    mosts = {name: EVERY_STEP / (units[name].state.dt or 1.0) for name in rates}
    rows = [_figures(rate, targets[name], mosts[name]).to(device) for name, rate in rates.items()]
    figures = torch.stack(rows)
    return {
        name: Activity(
            rate,
            silent,
            saturated,
            None if targets[name] is None else error,
            rates[name].numel(),
            id(units[name].hook.module),
        )
        for name, (rate, silent, saturated, error) in zip(rates, figures.tolist(), strict=True)
    }


def metrics_of(seen: Mapping[str, Activity]) -> dict[str, float]:
    """Flattens activities: ``"name/rate"`` and so on, and over all neurons, each counted once."""
    metrics: dict[str, float] = {}
    for name, each in seen.items():
        metrics |= {f"{name}/{figure}": value for figure, value in _values(each).items()}
    populations = {each.population: each for each in seen.values()}.values()
    return metrics | _joint(populations)


def _joint(populations: Iterable[Activity]) -> dict[str, float]:
    sums: dict[str, float] = {}
    neurons: dict[str, int] = {}
    for each in populations:
        for figure, value in _values(each).items():
            sums[figure] = sums.get(figure, 0.0) + value * each.neurons
            neurons[figure] = neurons.get(figure, 0) + each.neurons
    return {figure: total / neurons[figure] for figure, total in sums.items()}


def _values(each: Activity) -> dict[str, float]:
    values = {"rate": each.rate, "silent": each.silent, "saturated": each.saturated}
    return values if each.error is None else values | {"error": each.error}


def _known(target: Target | None) -> Rate | Band | None:
    """Returns a target, but None for one that is not drawn yet."""
    return target if isinstance(target, Tensor | Band | float) else None


def _figures(rate: Tensor, target: Rate | Band | None, most: float) -> Tensor:
    error = torch.zeros_like(rate) if target is None else _error(rate, target)
    return torch.stack((rate, rate == 0, rate >= most, error)).flatten(1).mean(1)


def _error(rate: Tensor, target: Rate | Band) -> Tensor:
    if isinstance(target, Band):
        nearest = target.nearest(rate)
        return torch.where(nearest == rate, 0.0, (1.0 - rate / nearest).abs())
    if isinstance(target, Tensor) and target.ndim > rate.ndim:
        target = target.mean(0)  # over the batch
    target = target.to(rate.device) if isinstance(target, Tensor) else target
    return (1.0 - rate / target).abs()
