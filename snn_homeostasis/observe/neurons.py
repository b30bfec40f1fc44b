"""What each neuron class of snntorch returns, in one place.

One registration adds a neuron class::

    @spikes_of.register(MyNeuron)
    def _(neuron, output):
        return one_step(output["spikes"])  # [B, *N]; a sequence [T, B, *N] is returned as it is
"""

from collections.abc import Iterable
from functools import singledispatch
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from ..errors import UnsupportedNeuronError, warn
from ..layers import register

__all__ = [
    "all_neurons",
    "check_neuron",
    "fires_ones",
    "is_neuron",
    "membrane_of",
    "one_step",
    "reset_membranes",
    "spikes_of",
    "threshold_name",
    "threshold_without_reset",
    "zero_if_finite",
]


Spikes = Tensor | tuple[Tensor]


def one_step(spikes: Tensor) -> Spikes:
    """Marks spikes ``[B, *N]`` as those of a single step, for a function registered on `spikes_of`.

    >>> import torch
    >>> one_step(torch.ones(2, 3))[0].shape
    torch.Size([2, 3])
    """
    return (spikes,)


@singledispatch
def spikes_of(neuron: nn.Module, output: Any) -> Spikes:
    """Reads the spikes in the output of a neuron. The class of the neuron chooses the function.

    Args:
        neuron: the neuron module.
        output: the return value of its ``forward``.

    Returns:
        Nonzero where a neuron fired: ``[T, B, *N]``, or `one_step` of ``[B, *N]`` for neurons that
        are called once per step. Both have the same rank, so only the class can tell them apart.

    Raises:
        UnsupportedNeuronError: if the class is not registered.

    >>> import snntorch as snn, torch
    >>> neuron = snn.Leaky(beta=0.9)
    >>> (spikes,) = spikes_of(neuron, neuron(torch.ones(2, 3), torch.zeros(2, 3)))
    >>> spikes.shape
    torch.Size([2, 3])
    """
    supported = [name for name, cls in vars(snn).items() if isinstance(cls, type) and _is_known(cls)]
    raise UnsupportedNeuronError(
        f"`neuron` should be a spiking neuron. Found `neuron = {type(neuron).__name__}`. "
        f"Supported are {', '.join(sorted(supported))} and their subclasses; make your own class "
        "known with `@spikes_of.register(YourNeuron)`."
    )


@spikes_of.register
def spikes_of_step(neuron: snn.SpikingNeuron, output: Any) -> Spikes:
    """Most neurons return the spikes of one step, alone or first in a tuple."""
    return (output if isinstance(output, Tensor) else output[0],)


@register(spikes_of, "StateLeaky", "LinearLeaky")
def _(neuron: nn.Module, output: tuple[Tensor, Tensor]) -> Spikes:
    return output[0]


@register(spikes_of, "LeakyParallel", "AssociativeLeaky")
def _(neuron: nn.Module, output: Tensor) -> Spikes:
    return output if output.ndim > 2 else output.unsqueeze(1)


@singledispatch
def membrane_of(neuron: nn.Module, inputs: Any, output: Any) -> Tensor | None:
    """Returns a tensor that is finite exactly if the state of the neuron is; None without a state.

    A NaN silences a neuron for ever, since ``nan > threshold`` is false: its spikes look like
    silence, and only its membrane shows the fault.

    Args:
        neuron: the neuron module.
        inputs: its first argument in the last call.
        output: its return value.
    """
    membrane = getattr(neuron, "mem", None)
    return membrane if isinstance(membrane, Tensor) else None


@register(membrane_of, "StateLeaky", "LinearLeaky")
def _(neuron: nn.Module, inputs: Any, output: Any) -> Tensor:
    return zero_if_finite(output[1])


@register(membrane_of, "LeakyParallel", "AssociativeLeaky")
def _(neuron: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
    return zero_if_finite(inputs)


def zero_if_finite(sequence: Tensor) -> Tensor:
    """Returns 0 if a tensor is finite, else NaN, on its device."""
    return sequence.detach().sum(dtype=torch.float32).mul_(0)


@singledispatch
def threshold_name(neuron: nn.Module) -> str:
    """Returns the name of the threshold of a neuron."""
    return "threshold"


@register(threshold_name, "DeltaLeaky")
def _(neuron: nn.Module) -> str:
    return "delta_threshold"  # it has the other one, too, and does not use it


@singledispatch
def check_neuron(neuron: nn.Module) -> None:
    """Raises UnsupportedNeuronError for a neuron without spikes; warns where the rule may fail."""
    if not is_neuron(neuron):
        spikes_of(neuron, None)
    if type(neuron) in (snn.SpikingNeuron, snn.LIF):
        _refuse(neuron, "have a `forward`", "a base class", "Take one of its subclasses.")


@register(check_neuron, "StateLeaky", "LinearLeaky")
def _(neuron: Any) -> None:
    if not neuron.output:
        found, remedy = "`output = False`, which returns the membrane alone", "with output=True"
        _refuse(neuron, "emit spikes", found, f"Build {type(neuron).__name__} {remedy}.")


@register(check_neuron, "AssociativeLeaky")
def _(neuron: Any) -> None:
    if neuron.use_q_projection:
        found = "`use_q_projection = True`, which returns real numbers"
        _refuse(neuron, "emit spikes", found, "Build AssociativeLeaky with use_q_projection=False.")
    _warn_not_monotone(neuron, "its rate falls with its values wherever a key is negative")


@register(check_neuron, "DeltaLeaky")
def _(neuron: nn.Module) -> None:
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


def is_neuron(module: nn.Module) -> bool:
    """Whether a module is a spiking neuron of snntorch, or of a class that the user registered."""
    return _is_known(type(module))


def _is_known(cls: type) -> bool:
    return spikes_of.dispatch(cls) is not spikes_of.dispatch(object)


@singledispatch
def threshold_without_reset(neuron: nn.Module) -> float | None:
    """Returns the lowest threshold of a neuron whose membrane is never reset; None for other neurons."""
    return None if getattr(neuron, "reset_mechanism", "none") != "none" else _lowest_threshold(neuron)


@register(threshold_without_reset, "StateLeaky", "LinearLeaky")
def _lowest_threshold(neuron: nn.Module) -> float | None:
    threshold = getattr(neuron, "threshold", None)
    return None if threshold is None else float(torch.as_tensor(threshold).detach().min())


def all_neurons() -> set[nn.Module]:
    """Returns all neurons of snntorch in this process. `snntorch.utils.reset` resets them together."""
    return set(snn.SpikingNeuron.instances)


def reset_membranes(modules: Iterable[nn.Module]) -> None:
    """Resets each neuron among some modules; `snntorch.utils.reset` misses nested ones."""
    for module in modules:
        reset = getattr(module, "reset_mem", None)
        if is_neuron(module) and callable(reset):
            reset()


def _is_one(factor: Tensor) -> bool:
    return not factor.is_meta and bool((factor == 1).all())


def fires_ones(neuron: nn.Module) -> bool:
    """Whether every spike of a neuron is known to be 1, now and until its graded spikes factor changes.

    That holds for the code of snntorch alone: a user's `fire` may put out -1, and a surrogate 0.5.
    """
    factor = getattr(neuron, "graded_spikes_factor", None)
    if isinstance(factor, nn.Parameter) or (factor is not None and not _is_one(factor)):
        return False
    surrogate = getattr(neuron, "spike_grad", None)
    surrogate = getattr(surrogate, "__self__", surrogate)  # `apply` of an autograd Function
    codes = [type(neuron), getattr(neuron, "fire", None), surrogate]
    origins = [getattr(code, "__module__", None) or "" for code in codes if code is not None]
    return all(origin.partition(".")[0] == "snntorch" for origin in origins)
