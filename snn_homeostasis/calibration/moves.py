"""Moves: what is done to one population on the ground of a recording."""

import torch

from ..errors import NonFiniteError
from .changing import Ledger
from .goals import errors_of
from .populations import Population
from .replay import Replay
from .shifts import shift_of, threshold_of
from .surrogates import surrogate_of
from .weights import centred_weights, factor_of, scales_of

__all__ = [
    "is_as_predicted",
    "is_faithful",
    "repair_weights",
    "set_slope",
    "shift",
]

SETTLED = 0.02  # of the target: a difference that is not worth another forward
UNFAITHFUL = "the neuron alone does not repeat its spikes: it depends on more than its arguments and buffers"
UNMOVED = "its input does not move with the parameter"


def is_faithful(population: Population, replay: Replay) -> bool:
    """Whether the replay repeats the recording; if not, the population is left alone.

    Raises:
        NonFiniteError: if NaN or infinity reaches the neuron.
    """
    if not all(tape.is_finite for tape in replay.tapes):
        raise NonFiniteError(
            f"what reaches the neuron of cell {population.units[0].name!r} should be finite. Found NaN or "
            "infinity. Look at `inputs`, and at the weights of the layers before it."
        )
    played = replay.rates(torch.zeros(replay.rows.count, device=replay.rows.index.device))
    if float(replay.rows.mean((played - replay.recorded).abs()).mean()) > 1e-4:
        population.leave_alone(UNFAITHFUL)
    return bool(population.drivers)


def is_as_predicted(population: Population, within: float = SETTLED) -> bool:
    """Whether the rates came out as the last shift was to bring them, within a share of the target."""
    if population.predicted is None:
        return True
    rate = population.rates[-1]
    obtained = errors_of(population, rate, population.rows(rate.shape[1:]))
    return float((obtained - population.predicted).abs().mean()) <= within


def repair_weights(population: Population, replay: Replay, ledger: Ledger, wanted: float | None) -> bool:
    """Takes the common mode out of the weights, or scales them; false if they stay as they are.

    Args:
        population: whose weights.
        replay: of the last recording.
        ledger: writes the parameters.
        wanted: the free std; None to change only what cannot work.
    """
    if not population.is_centred and (centred := centred_weights(population)):
        for reference, weight in centred:
            ledger.write(reference, weight)
        population.is_centred = True
        return True
    factor = factor_of(population.free_std, wanted)
    references = scales_of(population, norms=wanted is not None)
    if factor == 1.0 or population.scale != 1.0 or not references:
        return False
    for reference in references:
        ledger.write(reference, reference.tensor.detach() * factor)
    population.scale = factor
    return True


def set_slope(population: Population, ledger: Ledger, is_wanted: bool) -> None:
    """Looks at the slope of the surrogate, and sets it if that is wanted."""
    neuron, surrogate = population.neuron, surrogate_of(population.neuron)
    if surrogate is None:
        return
    slope = surrogate.slope
    if is_wanted:
        slope = surrogate.wanted(threshold_of(neuron))
        ledger.replace_surrogate(neuron, surrogate.with_slope(slope))
    population.slopes = surrogate.slope, slope


def shift(population: Population, replay: Replay, ledger: Ledger, fraction: float) -> bool:
    """Shifts the parameters by a fraction of what brings the neuron to its target.

    Returns:
        Whether the neuron was farther from its target than need be.
    """
    if not bool(replay.gain.count_nonzero()):
        population.leave_alone(UNMOVED)
        return False
    start = errors_of(population, replay.recorded, replay.rows)
    wanted = shift_of(population, replay, start)
    spread = replay.rows.spread((wanted * fraction).float())
    for unit in population.drivers:
        added = ledger.shift(unit.slot, population.change(unit, spread))
        population.shifts[unit.name] = population.shifts.get(unit.name, 0.0) + float(added.mean())
    assert population.predicted is not None
    return float((start - population.predicted).abs().mean()) > SETTLED
