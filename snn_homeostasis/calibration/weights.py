"""Weights that cannot work: their common mode drowns the rest, or their scale is far off."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..cells import Unit
from ..distributed import Processes
from ..layers import ParameterReference, is_distributed, refer
from ..observe import spikes_of
from .populations import Population, is_inside
from .recording import Tape
from .replay import Replay

__all__ = ["centred_weights", "factor_of", "free_std", "scales_of"]

COMMON_MODE = 3.0  # of mean · √fan-in / std in a row; 0.5 to 0.9 in usual initialisations
# of the free std, in thresholds: below and above these weights cannot work; where they go then
DEAD, RESTLESS, QUIET, MODERATE = 0.1, 3.0, 0.3, 1.0
DEAD_ZONE = 0.1
LARGEST_FACTOR = 100.0


def free_std(replay: Replay) -> float | None:
    """Returns how far the free membrane differs between samples, in thresholds.

    The membrane is free with the threshold at infinity. The variance is taken over the samples, of
    all batches and processes, at each step of the second half, since over time it would count the
    charging by a constant bias. None where the membrane cannot be seen, or there is only one sample.
    """
    threshold = getattr(replay.population.neuron, "threshold", None)
    if not isinstance(threshold, Tensor) or bool((threshold.abs() < 1e-3).any()) or replay.layers_inside:
        return None
    moments: list[Tensor] = []
    with _raised(threshold) as before:
        for tape in replay.tapes:
            for step, membrane in enumerate(_membranes(replay, tape)):
                if membrane is None:
                    return None
                new = _moments_of(membrane / before)
                moments[step : step + 1] = [moments[step] + new if step < len(moments) else new]
    return _std_of(moments, replay.rows.processes) if moments else None


def _moments_of(x: Tensor) -> Tensor:
    """Returns the number of samples, their sum, and that of their squares: ``[B, *N]`` to ``[3, *N]``."""
    exact = x.double()
    total = exact.sum(0)
    return torch.stack([torch.full_like(total, len(x)), total, exact.square().sum(0)])


def _std_of(moments: Sequence[Tensor], processes: Processes) -> float | None:
    """Returns the root of the mean variance over all steps; sequences may be longer in one process."""
    steps = int(max(processes.of_each("the steps of free membranes", len(moments))))
    padded = [*moments, *[torch.zeros_like(moments[0])] * (steps - len(moments))]
    samples, total, squares = processes.sum("free membranes", torch.stack(padded)).unbind(1)
    variances = (squares - total.square() / samples) / (samples - 1)
    seen = variances[samples > 1]
    return float(seen.mean().clamp_min(0.0).sqrt()) if len(seen) else None


def scales_of(population: Population, norms: bool) -> list[ParameterReference]:
    """Returns what scales the input of a neuron: the weights of its layers, or of their norms.

    A norm has set the scale on purpose: without ``norms`` there is nothing to scale behind one.
    """
    units = _with_weights_outside(population)
    if not norms and any(unit.connection.norm is not None for unit in units):
        return []
    references = {id(each.leaf): each for unit in units if (each := _scale_of(unit, population)) is not None}
    return list(references.values())


def centred_weights(population: Population) -> list[tuple[ParameterReference, Tensor]]:
    """Returns the weights with the mean of each row subtracted, where these means drown the rest."""
    centred = []
    for unit in [] if population.is_relative else _with_weights_outside(population):
        reference = _scale_of(unit, population)
        if reference is not None and unit.connection.norm is None:
            new = _centred(unit, reference.tensor)
            if new is not None:
                centred.append((reference, new))
    return centred


def _with_weights_outside(population: Population) -> list[Unit]:
    units = [unit for unit in population.units if "weight" in unit.connection.references]
    return [unit for unit in units if not is_inside(unit, "weight")]


def factor_of(std: float | None, wanted: float | None) -> float:
    """Returns the factor that brings a free std to a wanted one, or, without one, out of the bad range."""
    if std is None or std < 1e-6:
        return 1.0
    if wanted is None:
        wanted = QUIET if std < DEAD else MODERATE if std > RESTLESS else std
    factor = wanted / std
    if abs(factor - 1) <= DEAD_ZONE:
        return 1.0
    return min(factor, LARGEST_FACTOR)


def _scale_of(unit: Unit, population: Population) -> ParameterReference | None:
    """The weight of a unit's layer, or of the norm behind it, if it may change and drives no other neuron."""
    connection = unit.connection
    if "weight" in unit.slots and unit.slots["weight"].bounds is not None:
        return None
    norm = connection.norm
    reference = connection.references.get("weight") if norm is None else refer(norm, "weight")
    if reference is None or reference.plain is None or is_distributed(reference.leaf):
        return None
    may_change = reference.leaf.requires_grad and id(reference.leaf) not in population.others
    return reference if may_change else None


def _centred(unit: Unit, weight: Tensor) -> Tensor | None:
    index = _row_of_each_entry(unit, weight).cpu()  # a GPU adds in another order each time
    counts = torch.bincount(index)
    fan_in = int(counts.min())
    if fan_in < 4:
        return None

    def mean(x: Tensor) -> Tensor:
        return torch.zeros(len(counts), dtype=x.dtype, device=x.device).index_add_(0, index, x) / counts

    flat = weight.detach().double().flatten().cpu()
    means = mean(flat)
    std = (mean((flat - means[index]).square()) * fan_in / (fan_in - 1)).sqrt()
    if bool((std <= 1e-3 * means.abs()).all()):
        return None  # nothing else is there
    if float((means.abs() * fan_in**0.5 / std.clamp_min(1e-12)).mean()) <= COMMON_MODE:
        return None
    return (flat - means[index]).reshape(weight.shape).to(weight)


def _row_of_each_entry(unit: Unit, weight: Tensor) -> Tensor:
    features = unit.connection.features
    numbers = torch.arange(features, device=weight.device)
    receptive = unit.connection.postsyn_receptive(numbers.reshape(1, features))[0, ..., 0]
    return receptive.expand(weight.shape).flatten()


@contextmanager
def _raised(threshold: Tensor) -> Iterator[Tensor]:
    """Puts a threshold out of reach, and yields what it was."""
    before = threshold.detach().clone()
    try:
        threshold.fill_(_out_of_reach(before.dtype))
        yield before
    finally:
        threshold.copy_(before)


def _out_of_reach(dtype: torch.dtype) -> float:
    if not dtype.is_floating_point:
        return 2.0**30
    # spikes are float32, and their product with a float64 threshold may be, too: 0 times infinity is NaN
    return min(torch.finfo(dtype).max, torch.finfo(torch.float32).max) / 4


def _membranes(replay: Replay, tape: Tape) -> Iterator[Tensor | None]:
    """Yields the membranes ``[B, *N]`` of the second half of a sequence."""
    steps = 0
    still = torch.zeros_like(replay.rows.index, dtype=torch.float32)
    for output in replay.outputs(tape, still):
        is_step = isinstance(spikes_of(tape.neuron, output), tuple)
        for membrane in _membranes_in(tape.neuron, output, is_step):
            steps += 1
            if 2 * steps > tape.counter.steps:
                yield membrane


def _membranes_in(neuron: nn.Module, output: Any, is_step: bool) -> Iterable[Tensor | None]:
    if is_step:
        membrane = getattr(neuron, "mem", None)
        return [membrane if isinstance(membrane, Tensor) else None]
    return output[1] if isinstance(output, tuple) and len(output) == 2 else [None]
