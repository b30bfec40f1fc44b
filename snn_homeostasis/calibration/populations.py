"""Populations: a neuron, and the cells that drive it. A shift of its input goes into their parameters."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..cells import Unit
from ..delays import DelayedLayer
from ..layers import inner_layers, is_distributed

__all__ = ["Population", "Rows", "populations_of"]

RECURRENT = "it is recurrent; another layer of its neuron takes the shift"
OTHER = "another parameter of its neuron takes the shift"
DELAY = "a delay hardly moves a rate"
SHARED = "its parameter drives other neurons too"
REMEMBERS = "its layer remembers past inputs, so its weight cannot be tried out"
REPARAMETRISED = "its weight is computed from other parameters; regulate the bias"
SPREAD = "its parameter is spread over processes"


@dataclass(frozen=True)
class Rows:
    """Which entry of a parameter, its row, drives each neuron.

    Args:
        index: ``[*N]``, the row of each neuron.
        count: the number of rows.
    """

    index: Tensor
    count: int

    def mean(self, x: Tensor) -> Tensor:
        """Averages data ``[B, *N]`` over the samples and the neurons of each row: ``[count]``."""
        flat = x.double().mean(0).flatten()
        index = self.index.flatten()
        total = torch.zeros(self.count, dtype=flat.dtype, device=flat.device).index_add_(0, index, flat)
        return total / torch.bincount(index, minlength=self.count).clamp_min(1)

    def spread(self, rows: Tensor) -> Tensor:
        """Gives each neuron the value of its row: ``[count]`` to ``[*N]``."""
        return rows[self.index]


@dataclass
class Population:
    """A neuron, the units that drive it, and what has been done to them.

    Attributes:
        neuron: the user's neuron.
        units: all of its units.
        left_alone: the reason for each unit, by name, that takes no part of the shift.
        rates: ``[B, *N]`` before and after, as counted.
        steps: in one sequence.
        predicted: the distance to the target that each row is to have after the last shift.
        is_reached: for each row, whether a shift can bring it to the target.
        shifts: the mean of what was added to the parameter of each unit, by name.
        scale: the factor of the weights.
        is_centred: whether the mean of each row was taken out of the weights.
        free_std: of the membrane, in thresholds; None if unseen.
        slopes: of the surrogate, before and after; None if it has none.
    """

    neuron: nn.Module
    units: list[Unit]
    left_alone: dict[str, str] = field(default_factory=dict)
    rates: list[Tensor] = field(default_factory=list)
    steps: int = 0
    predicted: Tensor | None = None
    is_reached: Tensor | None = None
    shifts: dict[str, float] = field(default_factory=dict)
    scale: float = 1.0
    is_centred: bool = False
    free_std: float | None = None
    slopes: tuple[float, float] | None = None

    @property
    def drivers(self) -> list[Unit]:
        """The units whose parameters take the shift."""
        return [unit for unit in self.units if unit.name not in self.left_alone]

    @property
    def recurrent_layers(self) -> list[nn.Module]:
        """The layers inside the neuron that bring its spikes back to it, unless they take the shift."""
        regulated = [unit.connection.layer for unit in self.drivers]
        names = [name for name, inner in inner_layers(self.neuron).items() if inner.recurrent]
        return [layer for name in names if (layer := getattr(self.neuron, name)) not in regulated]

    def leave_alone(self, reason: str) -> None:
        """Takes no further part in the calibration."""
        for unit in self.drivers:
            self.left_alone[unit.name] = reason

    def rows(self, shape: torch.Size) -> Rows:
        """Returns the rows of neurons of shape ``[*N]``."""
        unit = (self.drivers or self.units)[0]
        device = unit.slot.reference.tensor.device
        if unit.state.population:
            return Rows(torch.zeros(shape, dtype=torch.int64, device=device), 1)
        numbers = torch.arange(shape.numel(), device=device).reshape(1, *shape)
        of_row = unit.connection.positions(numbers)[0]  # [features, L]
        index = torch.empty(shape.numel(), dtype=torch.int64, device=device)
        index[of_row.flatten()] = torch.arange(len(of_row), device=device).repeat_interleave(of_row.shape[1])
        return Rows(index.reshape(shape), len(of_row))


def is_inside(unit: Unit) -> bool:
    """Whether a neuron carries the regulated parameter."""
    return any(unit.slot.reference.module is module for module in unit.hook.module.modules())


def in_shape_of_parameter(unit: Unit, shift: Tensor) -> Tensor:
    """Lays a shift of each neuron, ``[*N]``, out as a change of the regulated parameter."""
    receptive = unit.connection.postsyn_receptive(shift.unsqueeze(0))[0, ..., 0]
    return unit.connection.shaped_for(unit.state.param, receptive)


def populations_of(units: Sequence[Unit]) -> list[Population]:
    """Groups units by their neuron, and says which of them take no shift, and why."""
    by_neuron: dict[nn.Module, list[Unit]] = {}
    for unit in units:
        by_neuron.setdefault(unit.hook.module, []).append(unit)
    populations = [Population(neuron, each) for neuron, each in by_neuron.items()]
    for population in populations:
        others = [unit for unit in units if unit.hook.module is not population.neuron]
        _choose(population, {id(unit.slot.reference.leaf) for unit in others})
    return populations


def _choose(population: Population, taken: set[int]) -> None:
    for unit in population.units:
        reason = _unsuited(unit, taken)
        if reason is not None:
            population.left_alone[unit.name] = reason
    outside = [unit for unit in population.drivers if not is_inside(unit)]
    for unit in population.drivers if outside else []:
        if is_inside(unit):
            population.left_alone[unit.name] = RECURRENT if unit.connection.layer is not None else OTHER
    kinds = [unit.state.param for unit in population.drivers]
    preferred = "bias" if "bias" in kinds else next(iter(kinds), None)
    for unit in population.drivers:
        if unit.state.param != preferred:
            population.left_alone[unit.name] = OTHER


def _unsuited(unit: Unit, taken: set[int]) -> str | None:
    """Why the parameter of a unit cannot take a shift, or None."""
    reference = unit.slot.reference
    if unit.state.param == "delay":
        return DELAY
    if id(reference.leaf) in taken:
        return SHARED
    if is_distributed(reference.leaf):
        return SPREAD
    if unit.state.param == "weight" and not is_inside(unit):
        if isinstance(unit.connection.layer, DelayedLayer):
            return REMEMBERS
        if reference.plain is None:
            return REPARAMETRISED
    return None
