"""Which of the parameters that drive a neuron take its shift, and why the others do not."""

from collections.abc import Sequence

from torch import nn

from ..cells import Unit
from ..delays import DelayedLayer
from ..distributed import Processes
from ..layers import inner_layers, is_distributed
from .populations import Population, is_inside

__all__ = ["populations_of"]

RECURRENT = "it is recurrent; another layer of its neuron takes the shift"
OTHER = "another parameter of its neuron takes the shift"
SAME = "another cell has the same parameter, and takes the shift"
DELAY = "a delay hardly moves a rate"
SHARED = "its parameter drives other neurons too"
REMEMBERS = "its layer remembers past inputs, so its weight cannot be tried out"
REPARAMETRISED = "its weight is computed from other parameters; regulate the bias"
SPREAD = "its parameter is spread over processes"
ORDER = ("bias", "threshold", "weight")  # where cells of one neuron regulate different parameters


def populations_of(units: Sequence[Unit], processes: Processes, *, relative: bool) -> list[Population]:
    """Groups units by their neuron, and says which of them take no shift, and why."""
    by_neuron: dict[nn.Module, list[Unit]] = {}
    for unit in units:
        by_neuron.setdefault(unit.hook.module, []).append(unit)
    populations = [Population(neuron, each, relative, processes) for neuron, each in by_neuron.items()]
    for population in populations:
        elsewhere = [unit for unit in units if unit.hook.module is not population.neuron]
        references = [each for unit in elsewhere for each in unit.connection.references.values()]
        population.others = {id(each.leaf) for each in references}
        _leave_alone_what_is_unsuited(population)
        _keep_one_kind(population)
    return populations


def _leave_alone_what_is_unsuited(population: Population) -> None:
    for unit in population.units:
        if (reason := _unsuited(unit, population.others)) is not None:
            population.left_alone[unit.name] = reason


def _keep_one_kind(population: Population) -> None:
    """Leaves one shift: of one kind of parameter, outside of the neuron if there is any, each once."""
    inner = inner_layers(population.neuron)
    recurrent = [getattr(population.neuron, name) for name, each in inner.items() if each.recurrent]
    if any(unit.connection.layer not in recurrent for unit in population.drivers):
        for unit in population.drivers:
            if unit.connection.layer in recurrent:
                population.left_alone[unit.name] = RECURRENT
    kinds = {unit.state.param for unit in population.drivers}
    seen: set[int] = set()
    for unit in population.drivers:
        if unit.state.param != next(kind for kind in ORDER if kind in kinds):
            population.left_alone[unit.name] = OTHER
        elif id(unit.slot.reference.leaf) in seen:
            population.left_alone[unit.name] = SAME
        seen.add(id(unit.slot.reference.leaf))


def _unsuited(unit: Unit, others: set[int]) -> str | None:
    """Why the parameter of a unit cannot take a shift, or None."""
    reference = unit.slot.reference
    if unit.state.param == "delay":
        return DELAY
    if id(reference.leaf) in others:
        return SHARED
    if is_distributed(reference.leaf):
        return SPREAD
    if unit.state.param == "weight" and not is_inside(unit):
        if isinstance(unit.connection.layer, DelayedLayer):
            return REMEMBERS
        if reference.plain is None:
            return REPARAMETRISED
    return None
