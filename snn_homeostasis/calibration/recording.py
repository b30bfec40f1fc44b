"""Recording: what reaches a neuron in one sequence, and how it moves with the parameters of its cells."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

# knows all containers of arguments; no public path yet
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from ..observe import spikes_of
from .populations import Population, is_inside
from .presenting import Presentation, hooked
from .seeds import parts_of, seed, seeds_carried, without_derivatives

__all__ = ["Call", "Counter", "Link", "Moved", "Tape", "buffers_kept", "count", "record"]


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

    def shifted(self, shift: Tensor, assumed: Tensor) -> Tensor:
        """Returns the argument after a shift ``[*N]``, in a direction to which ``assumed`` is added."""
        added = shift if self.direction is None else shift * (self.direction + assumed)
        return self.value + added.to(self.value.dtype)

    def gain(self, shape: torch.Size) -> Tensor:
        """Returns the mean of the direction, ``[*N]`` for neurons of that shape; 0 without samples."""
        if self.direction is None:
            return torch.ones(shape, device=self.value.device)
        each = self.direction.reshape(-1, *shape)
        return each.sum(0) / max(len(each), 1)


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


State = dict[tuple[nn.Module, str], Tensor]


@dataclass(frozen=True)
class Call:
    """One call of a neuron.

    Args:
        arguments: ``(args, kwargs)``, with `Link` and `Moved` among them.
        state: the buffers of the neuron, and of all inside, that were set since the call before.
    """

    arguments: Any
    state: State


@dataclass
class Tape:
    """The calls of one neuron in one sequence, enough to run it alone.

    Attributes:
        calls: in order.
        echoes: what each recurrent layer inside gave back, call by call.
        counter: the spikes.
    """

    neuron: nn.Module
    calls: list[Call] = field(default_factory=list)
    echoes: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    counter: Counter = field(default_factory=Counter)
    _last: list[Any] = field(default_factory=list)
    _left: dict[tuple[nn.Module, str], tuple[Tensor, int]] = field(default_factory=dict)

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Keeps the arguments, and hands them on without derivatives."""
        changed = {key: value.clone() for key, value in _state_of(module).items() if self._is_new(key, value)}
        self.calls.append(Call(tree_map_only(Tensor, self._kept, (args, kwargs)), changed))
        return without_derivatives(module, args, kwargs)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Counts the spikes, and remembers what the call leaves."""
        self._last = tree_flatten(output)[0]
        self._left = {key: (value, value._version) for key, value in _state_of(module).items()}
        self.counter.add(module, output)

    @property
    def is_finite(self) -> bool:
        """Whether what reaches the neuron is finite; NaN would silence it for ever."""
        leaves = [each for call in self.calls for each in tree_flatten(call.arguments)[0]]
        values = [each.value if isinstance(each, Moved) else each for each in leaves]
        return all(bool(each.isfinite().all()) for each in values if isinstance(each, Tensor))

    @property
    def is_moved(self) -> bool:
        """Whether any argument carries a derivative by the regulated parameters."""
        return any(isinstance(each, Moved) for call in self.calls for each in tree_flatten(call.arguments)[0])

    def with_inputs_moved(self) -> Self:
        """Returns a tape whose inputs, the first tensor of each call, move with a derivative of zero."""
        return replace(self, calls=[replace(each, arguments=_moved(each.arguments)) for each in self.calls])

    def echo(self, layer: nn.Module, args: Any, output: Tensor) -> None:
        """Keeps what a recurrent layer gives back."""
        self.echoes.setdefault(layer, []).append(output.clone())

    def _is_new(self, key: tuple[nn.Module, str], value: Tensor) -> bool:
        """Whether a buffer is another tensor than the last call left, or changed in place since."""
        left, version = self._left.get(key, (None, 0))
        return left is not value or value._version != version  # nothing public tells of changes in place

    def _kept(self, tensor: Tensor) -> Any:
        value, tangent = parts_of(tensor)
        for position, output in enumerate(self._last):
            if isinstance(output, Tensor) and _is_same(value, output):
                return Link(position)
        if tangent is None:
            return value.clone()  # the model may change it in place later
        return Moved(value.clone(), None if bool((tangent == 1).all()) else tangent.clone())


def record(
    present: Presentation, populations: Sequence[Population], batch: Any, seeded: bool = True
) -> dict[nn.Module, Tape]:
    """Runs one sequence, and records what reaches some neurons.

    The outputs of their layers carry a derivative by a common shift of the regulated parameter. It
    arrives at the neuron, whatever lies between: pooling, norms, dropout, several layers.
    """
    tapes = {each.neuron: Tape(each.neuron) for each in populations}
    handles = []
    for neuron in present.neurons:
        before = tapes[neuron].before if neuron in tapes else without_derivatives
        handles.append(neuron.register_forward_pre_hook(before, with_kwargs=True))
    for population in populations:
        tape = tapes[population.neuron]
        handles.append(tape.neuron.register_forward_hook(tape.after))
        handles += [layer.register_forward_hook(tape.echo) for layer in population.recurrent_layers]
        outside = [unit for unit in population.drivers if not is_inside(unit)]
        handles += [seed(unit, population.is_relative) for unit in outside if seeded]
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


def _state_of(neuron: nn.Module) -> State:
    """The buffers of a neuron and of all inside; not the threshold, which a calibration may move."""
    return {
        (module, name): value
        for module in neuron.modules()
        for name, value in module.named_buffers(recurse=False)
        if name != "threshold"
    }


def _moved(arguments: Any) -> Any:
    leaves, structure = tree_flatten(arguments)
    place = next((place for place, each in enumerate(leaves) if isinstance(each, Tensor)), None)
    if place is not None:
        leaves[place] = Moved(leaves[place], torch.zeros_like(leaves[place]))
    return tree_unflatten(leaves, structure)


@contextmanager
def buffers_kept(neuron: nn.Module) -> Iterator[None]:
    """Gives a neuron its own buffers back at the end, untouched."""
    own = _state_of(neuron)
    try:
        for (module, name), value in own.items():
            setattr(module, name, value.clone())
        yield
    finally:
        for (module, name), value in own.items():
            setattr(module, name, value)


def _is_same(tensor: Tensor, output: Tensor) -> bool:
    same = tensor.shape == output.shape and tensor.numel() > 0
    return same and tensor.data_ptr() == output.data_ptr() and tensor.stride() == output.stride()
