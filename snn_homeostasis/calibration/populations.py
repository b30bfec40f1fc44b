"""Populations: a neuron, and the cells that drive it. A shift of its input goes into their parameters."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..cells import Unit
from ..distributed import Processes
from ..layers import inner_layers

__all__ = ["Population", "Rows", "is_inside"]

LEAST_SHARE = -0.9


@dataclass(frozen=True)
class Rows:
    """Which entry of a parameter, its row, drives each neuron.

    Args:
        index: ``[*N]``, the row of each neuron.
        count: the number of rows.
        processes: those that train the model; each has samples of its own.
    """

    index: Tensor
    count: int
    processes: Processes

    def mean(self, x: Tensor) -> Tensor:
        """Averages data ``[B, *N]`` over all samples and the neurons of each row: ``[count]``.

        The samples are those of all processes, which get the same mean to the bit. What they do next
        depends on such means alone, so that all of them do the same.
        """
        flat, index = x.double().sum(0).flatten(), self.index.flatten()
        total = torch.zeros(self.count + 1, dtype=flat.dtype, device=flat.device).index_add_(0, index, flat)
        total[-1] = len(x)
        total = self.processes.sum("the mean of rows", total)
        return total[:-1] / total[-1] / torch.bincount(index, minlength=self.count).clamp_min(1)

    def spread(self, rows: Tensor) -> Tensor:
        """Gives each neuron the value of its row: ``[count]`` to ``[*N]``."""
        return rows[self.index]


@dataclass
class Population:
    """A neuron, the units that drive it, and what has been done to them.

    Attributes:
        neuron: the user's neuron.
        units: all of its units.
        is_relative: whether a shift is a share of the size of each entry, as in synaptic scaling.
        processes: those that train the model.
        others: the ids of parameters in the layers of other neurons.
        left_alone: the reason for each unit, by name, that takes no part of the shift.
        rates: ``[B, *N]`` before and after, as counted.
        presented: the steps of all samples together.
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
    is_relative: bool
    processes: Processes
    others: set[int] = field(default_factory=set)
    left_alone: dict[str, str] = field(default_factory=dict)
    rates: list[Tensor] = field(default_factory=list)
    presented: float = 0.0
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
            return Rows(torch.zeros(shape, dtype=torch.int64, device=device), 1, self.processes)
        numbers = torch.arange(shape.numel(), device=device).reshape(1, *shape)
        of_row = unit.connection.positions(numbers)[0]  # [rows, L]
        if unit.state.param == "threshold":
            of_row = unit.connection.receptive("threshold", numbers)[0]
            of_row = of_row.reshape(-1, of_row.shape[-1])
        index = torch.empty(shape.numel(), dtype=torch.int64, device=device)
        index[of_row.flatten()] = torch.arange(len(of_row), device=device).repeat_interleave(of_row.shape[1])
        return Rows(index.reshape(shape), len(of_row), self.processes)

    def allowed(self, shift: Tensor) -> Tensor:
        """Returns the shift that is taken in place of one; a relative one leaves a tenth of each entry."""
        return shift.clamp_min(LEAST_SHARE) if self.is_relative else shift

    def change(self, unit: Unit, shift: Tensor) -> Tensor:
        """Lays a shift of each neuron, ``[*N]``, out as a change of a unit's parameter."""
        param, connection = unit.state.param, unit.connection
        receptive = connection.receptive(param, self.allowed(shift).unsqueeze(0))[0, ..., 0]
        change = connection.shaped_for(param, receptive)
        return change * unit.slot.reference.tensor.detach().abs() if self.is_relative else change


def is_inside(unit: Unit, kind: str | None = None) -> bool:
    """Whether a neuron carries a parameter of its unit, by default the regulated one."""
    module = unit.connection.references[kind or unit.state.param].module
    return any(module is each for each in unit.hook.module.modules())
