"""From what was done to the report."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..cells import Band, Unit
from ..monitoring import EVERY_STEP
from .goals import errors_of, target_of
from .moves import is_as_predicted
from .populations import Population
from .report import CalibratedCell, CalibrationReport
from .settling import Settling
from .shifts import threshold_of
from .surrogates import surrogate_of

__all__ = ["report_of"]

JUMP = 0.05  # of the target
FEW = 10  # spikes that a parameter should see
MEASURED = ("before", "after", "distance", "error", "silent", "saturated")
UNMEASURED: dict[str, Any] = {"target": math.nan} | dict.fromkeys(MEASURED, math.nan)
DEEP, STEEP = 8, 4.0  # layers; times the slope that they want
MANY = 100  # samples


def report_of(settling: Settling, seconds: float) -> CalibrationReport:
    """Reports on all populations; equal in all processes, of which the slowest tells the time."""
    cells = [cell for population in settling.populations for cell in _cells(population, settling.gradients)]
    samples, forwards, undo = settling.samples, settling.present.forwards, settling.ledger.undo
    seconds = max(settling.processes.of_each("the seconds", seconds))
    return CalibrationReport(tuple(cells), forwards, samples, seconds, _notes_of(settling, samples), undo)


def _notes_of(settling: Settling, samples: int) -> tuple[str, ...]:
    """What should be said of the model as a whole."""
    notes = []
    if samples < MANY:
        notes.append(f"Rates may differ on others than these {samples} samples: pass some hundreds.")
    if len(settling.populations) > DEEP and any(map(_is_steep, settling.active)):
        notes.append(
            "Gradients may not reach the first of so many layers, since surrogates are steep. Pass "
            "`gradients=True`."
        )
    return tuple(notes)


def _is_steep(population: Population) -> bool:
    surrogate = surrogate_of(population.neuron)
    if surrogate is None:
        return False
    return surrogate.slope > STEEP * surrogate.wanted(threshold_of(population.neuron))


def _cells(population: Population, wants_slope: bool) -> list[CalibratedCell]:
    notes = _notes(population)
    if wants_slope and population.slopes is None:
        notes.append("its surrogate has no slope that could be set")
    return [
        CalibratedCell(
            name=unit.name,
            **(_measured(population, unit) if population.rates else UNMEASURED),
            shift=population.shifts.get(unit.name, 0.0),
            scale=population.scale if unit in population.drivers else 1.0,
            free_std=population.free_std,
            slopes=population.slopes,
            note=population.left_alone.get(unit.name) or "; ".join(notes),
        )
        for unit in population.units
    ]


def _measured(population: Population, unit: Unit) -> dict[str, Any]:
    before, after = population.rates[0], population.rates[-1]
    target, rows = target_of(population), population.rows(after.shape[1:])
    everything = replace(rows, index=torch.zeros_like(rows.index), count=1)
    numbers = torch.arange(rows.index.numel(), device=rows.index.device)
    each = replace(rows, index=numbers, count=len(numbers)).mean(after)
    if isinstance(target, Tensor):
        target = float(everything.mean(target.expand(after.shape)))
    figures = (
        unit.in_units(everything.mean(before)),
        unit.in_units(everything.mean(after)),
        errors_of(population, after, everything),
        errors_of(population, after, rows).abs().mean(),
        _share(each == 0),
        _share(each >= EVERY_STEP),
    )
    named = {"target": target if unit.state.dt is None else target * (1 / unit.state.dt)}
    return named | dict(zip(MEASURED, map(float, figures), strict=True))


def _share(is_so: Tensor) -> Tensor:
    return is_so.float().mean()


def _notes(population: Population) -> list[str]:
    notes = []
    if population.is_centred:
        notes.append("the mean of each row was subtracted from its weights")
    reached, predicted = population.is_reached, population.predicted
    if reached is None or predicted is None:
        return notes
    if out := int((~reached).sum()):
        notes.append(f"{out} of {len(reached)} cannot reach the target by this parameter")
    if jumps := int((reached & (predicted.abs() > JUMP)).sum()):
        notes.append(f"the rate of {jumps} of {len(reached)} jumps past the target")
    if not is_as_predicted(population, within=JUMP):
        notes.append("its rate is not what the neuron alone predicts: more than its layer moves its input")
    if (spikes := _spikes(population)) < FEW:
        notes.append(f"only {spikes:.1f} spikes for each parameter: give more samples")
    return notes


def _spikes(population: Population) -> float:
    """The spikes that one entry of the parameter sees at the target."""
    rate, target = population.rates[-1], target_of(population)
    rows = population.rows(rate.shape[1:])
    least = (target.low or target.high or 0.0) if isinstance(target, Band) else target
    spikes = rows.mean(torch.as_tensor(least).to(rate).expand(rate.shape)).mean()
    return float(spikes) * population.presented * rows.index.numel() / rows.count
