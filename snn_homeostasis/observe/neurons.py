"""snntorch's return conventions, in one place.

A neuron class is made known by one registration::

    @spikes_of.register(MyNeuron)
    def _(neuron, output):
        return one_step(output["spikes"])  # or the tensor itself, if it is [T, B, *N]
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from ..errors import UnsupportedNeuronError, warn

__all__ = [
    "Spikes",
    "admit_neuron",
    "all_neurons",
    "binary_factor",
    "is_inhibited",
    "is_neuron",
    "membrane_of",
    "one_step",
    "spikes_of",
    "spikes_of_step",
]


Spikes = Tensor | tuple[Tensor]


def one_step(spikes: Tensor) -> Spikes:
    """Spikes ``[B, *N]`` of a single step, as `spikes_of` returns them."""
    return (spikes,)


@singledispatch
def spikes_of(neuron: nn.Module, output: Any) -> Spikes:
    """The spikes in what a neuron returned.

    Args:
        neuron: the neuron module; the function is chosen by its class.
        output: the return value of its ``forward``.

    Returns:
        Nonzero where a neuron fired: ``[T, B, *N]``, or `one_step` of ``[B, *N]`` for the
        neurons that are called once per step. Which of the two comes from the class: the
        shapes of both kinds have the same rank.

    Raises:
        UnsupportedNeuronError: if the class is not registered.
    """
    supported = [name for name, cls in vars(snn).items() if isinstance(cls, type) and is_known(cls)]
    raise UnsupportedNeuronError(
        f"`neuron` should be a spiking neuron. Found `neuron = {type(neuron).__name__}`. "
        f"Supported are {', '.join(sorted(supported))} and their subclasses; make your own class "
        "known with `@spikes_of.register(YourNeuron)`."
    )


@spikes_of.register
def spikes_of_step(neuron: snn.SpikingNeuron, output: Any) -> Spikes:
    """What most neurons return: the spikes of a step, alone or with their state."""
    return (output if isinstance(output, Tensor) else output[0],)


@spikes_of.register
def _(neuron: snn.StateLeaky, output: tuple[Tensor, Tensor]) -> Spikes:
    return output[0]


@spikes_of.register(snn.LeakyParallel)
@spikes_of.register(snn.AssociativeLeaky)
def _(neuron: nn.Module, output: Tensor) -> Spikes:
    return output if output.ndim > 2 else output.unsqueeze(1)


@singledispatch
def membrane_of(neuron: nn.Module, inputs: Any, output: Any) -> Tensor | None:
    """A tensor that is finite exactly when the neuron's state is, or None if there is none.

    A NaN makes a neuron silent for ever, since ``nan > threshold`` is false: the spikes
    alone would look like those of a silent neuron.

    Args:
        neuron: the neuron module.
        inputs: its first argument in the last call.
        output: what it returned.
    """
    return neuron._buffers.get("mem")


@membrane_of.register
def _(neuron: snn.StateLeaky, inputs: Any, output: Any) -> Tensor:
    return _zero_if_finite(output[1])


@membrane_of.register(snn.LeakyParallel)
@membrane_of.register(snn.AssociativeLeaky)
def _(neuron: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
    return _zero_if_finite(inputs)


def _zero_if_finite(sequence: Tensor) -> Tensor:
    return sequence.detach().sum(dtype=torch.float32).mul_(0)


@singledispatch
def admit_neuron(neuron: nn.Module) -> None:
    """Refuses, by name, a neuron that this package cannot regulate; warns where it may fail.

    Raises:
        UnsupportedNeuronError: if the neuron emits no spikes or its class is unknown.
    """
    if not is_known(type(neuron)):
        spikes_of(neuron, None)
    if type(neuron) in (snn.SpikingNeuron, snn.LIF):
        _refuse(neuron, "have a `forward`", "a base class", "Take one of its subclasses.")


@admit_neuron.register
def _(neuron: snn.StateLeaky) -> None:
    if not neuron.output:
        _refuse(
            neuron,
            "emit spikes",
            "`output = False`, which returns the membrane alone",
            f"Build {type(neuron).__name__} with output=True.",
        )


@admit_neuron.register
def _(neuron: snn.AssociativeLeaky) -> None:
    if neuron.use_q_projection:
        _refuse(
            neuron,
            "emit spikes",
            "`use_q_projection = True`, which returns real numbers",
            "Build AssociativeLeaky with use_q_projection=False.",
        )
    _warn_not_monotone(neuron, "its rate falls with its values wherever a key is negative")


@admit_neuron.register
def _(neuron: snn.DeltaLeaky) -> None:
    _warn_not_monotone(neuron, "it fires on changes of its membrane, in either direction")


def _refuse(neuron: nn.Module, expected: str, found: str, remedy: str) -> None:
    raise UnsupportedNeuronError(
        f"`neuron` should {expected}. Found {type(neuron).__name__}: {found}. {remedy}"
    )


def _warn_not_monotone(neuron: nn.Module, why: str) -> None:
    warn(
        f"The rate of {type(neuron).__name__} need not rise with its weights ({why}): it may stay "
        "away from its target. Watch `rates()`."
    )


def is_known(cls: type) -> bool:
    """Whether the output of a neuron class has been registered on `spikes_of`."""
    return spikes_of.dispatch(cls) is not spikes_of.dispatch(object)


def is_neuron(module: nn.Module) -> bool:
    """Whether a module is a spiking neuron, of snntorch or registered by a user."""
    return is_known(type(module))


def all_neurons() -> set[nn.Module]:
    """All neurons of snntorch in this process: `snntorch.utils.reset` resets them together."""
    return set(snn.SpikingNeuron.instances)


def is_inhibited(neuron: nn.Module) -> bool:
    """Whether at most one neuron of a sample can fire per step."""
    return bool(getattr(neuron, "inhibition", False))


def binary_factor(factor: Tensor | None) -> bool:
    """Whether a graded spikes factor leaves every spike at 1 for good."""
    if factor is None:
        return True
    return not isinstance(factor, nn.Parameter) and bool((factor == 1).all())
