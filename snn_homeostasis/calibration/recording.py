"""Recording: what reaches a neuron in one sequence, and how it moves with the parameters of its cells."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only  # knows all containers; not public yet

from ..observe import spikes_of
from .populations import Population, is_inside
from .presenting import BufferState, Presentation, buffers_of, hooked
from .seeds import parts_of, seed, seeds_carried, without_derivatives

__all__ = ["Counter", "Link", "Moved", "Tape", "count", "record"]


@dataclass(frozen=True)
class Link:
    """An argument that is the output of the call before, such as a membrane."""

    position: int


@dataclass(frozen=True)
class Moved:
    """An argument that moves with the regulated parameters.

    Args:
        value: ``[B, *N]``, or ``[T, B, *N]`` of a sequence.
        direction: its derivative by a common shift of all their entries; None if it is 1 everywhere.
    """

    value: Tensor
    direction: Tensor | None

    def shifted(self, shift: Tensor) -> Tensor:
        """Returns the argument after a shift ``[*N]``."""
        return self.value + (shift if self.direction is None else shift * self.direction)

    def gain(self, shape: torch.Size) -> Tensor:
        """Returns the mean of the direction, ``[1, *N]`` for neurons of a shape ``[*N]``."""
        if self.direction is None:
            return torch.ones(1, *shape, device=self.value.device)
        return self.direction.reshape(-1, *shape).mean(0, keepdim=True)


@dataclass
class Counter:
    """Counts the spikes of a neuron in one sequence."""

    total: Tensor | None = None
    steps: int = 0

    def add(self, neuron: nn.Module, output: Any) -> None:
        """Takes in what one call of the neuron returned."""
        spikes = spikes_of(neuron, output)
        fired = (spikes[0].unsqueeze(0) if isinstance(spikes, tuple) else spikes) != 0
        counts = fired.sum(0, dtype=torch.float32)
        self.total = counts if self.total is None else self.total + counts
        self.steps += len(fired)

    @property
    def samples(self) -> int:
        """The size of the batch."""
        return 0 if self.total is None else len(self.total)

    @property
    def rate(self) -> Tensor:
        """Spikes per step, ``[B, *N]``."""
        assert self.total is not None
        return self.total / self.steps


@dataclass
class Tape:
    """The calls of one neuron in one sequence, enough to run it alone.

    Attributes:
        state: the buffers of the neuron, and of all inside, before the first call.
        calls: the arguments of each call, with `Link` and `Moved` among them.
        echoes: what each recurrent layer inside gave back, call by call.
        counter: the spikes.
    """

    neuron: nn.Module
    state: list[BufferState]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    echoes: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    counter: Counter = field(default_factory=Counter)
    _last: list[Any] = field(default_factory=list)

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Keeps the arguments, and hands them on without derivatives."""
        self.calls.append(tree_map_only(Tensor, self._kept, (args, kwargs)))
        return without_derivatives(module, args, kwargs)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Counts the spikes, and remembers the output for links to it."""
        self._last = tree_flatten(output)[0]
        self.counter.add(module, output)

    def echo(self, layer: nn.Module, args: Any, output: Tensor) -> None:
        """Keeps what a recurrent layer gives back."""
        self.echoes.setdefault(layer, []).append(output.clone())

    def _kept(self, tensor: Tensor) -> Any:
        value, tangent = parts_of(tensor)
        for position, output in enumerate(self._last):
            if isinstance(output, Tensor) and _is_same(value, output):
                return Link(position)
        if tangent is None:
            return value.clone()  # the model may change it in place later
        return Moved(value.clone(), None if bool((tangent == 1).all()) else tangent.clone())


def record(present: Presentation, populations: Sequence[Population], batch: Any) -> dict[nn.Module, Tape]:
    """Runs one sequence, and records what reaches some neurons.

    The outputs of their layers carry a derivative by a common shift of the regulated parameter. It
    arrives at the neuron, whatever lies between: pooling, norms, dropout, several layers.
    """
    tapes = {each.neuron: _tape(each.neuron) for each in populations}
    handles = []
    for neuron in present.neurons:
        before = tapes[neuron].before if neuron in tapes else without_derivatives
        handles.append(neuron.register_forward_pre_hook(before, with_kwargs=True))
    for population in populations:
        tape = tapes[population.neuron]
        handles.append(tape.neuron.register_forward_hook(tape.after))
        handles += [layer.register_forward_hook(tape.echo) for layer in population.recurrent_layers]
        for unit in population.drivers:
            if not is_inside(unit):
                handles.append(seed(unit))
    with hooked(handles), seeds_carried():
        present(batch)
    return tapes


def count(present: Presentation, neurons: Sequence[nn.Module], batch: Any) -> dict[nn.Module, Counter]:
    """Runs one sequence, and counts the spikes of some neurons, in the order of their first calls."""
    counters: dict[nn.Module, Counter] = {}

    def after(module: nn.Module, args: Any, output: Any) -> None:
        counters.setdefault(module, Counter()).add(module, output)

    with hooked([neuron.register_forward_hook(after) for neuron in neurons]):
        present(batch)
    return counters


def _tape(neuron: nn.Module) -> Tape:
    buffers = [buffer for module in neuron.modules() for buffer in buffers_of(module)]
    return Tape(neuron, [buffer for buffer in buffers if buffer.name != "threshold"])  # replays may move it


def _is_same(tensor: Tensor, output: Tensor) -> bool:
    same = tensor.shape == output.shape and tensor.numel() > 0
    return same and tensor.data_ptr() == output.data_ptr() and tensor.stride() == output.stride()
