"""Replay: a neuron runs alone on what it was called with, its input or its own parameter shifted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map  # knows all containers; no public path yet

from .populations import Population, Rows, is_inside
from .presenting import hooked
from .recording import Counter, Link, Moved, Tape, buffers_kept

__all__ = ["Replay"]


class Replay:
    """The rate of a neuron as a function of a shift of the parameters that drive it.

    Args:
        population: the neuron and its units.
        tapes: one for each sequence.

    Attributes:
        recorded: the rates ``[B, *N]`` of the recording.
        rows: of the regulated parameter.
        inside: the units whose parameter the neuron carries; it is shifted, and not the input.
        gain: how far the input of each row moves with its shift, on average.
    """

    def __init__(self, population: Population, tapes: Sequence[Tape]) -> None:
        self.population, self.tapes = population, tapes
        self.recorded = torch.cat([tape.counter.rate for tape in tapes])
        self.rows: Rows = population.rows(self.recorded.shape[1:])
        self.inside = [unit for unit in population.drivers if is_inside(unit)]
        self.is_bias = all(unit.state.param == "bias" for unit in population.drivers) and not self.inside
        if self.is_bias and not any(tape.is_moved for tape in tapes):
            self.tapes = [tape.with_inputs_moved() for tape in tapes]
        self.gain = self._gain()
        self.assumed = torch.zeros_like(self.rows.index, dtype=torch.float32)
        self.assume(self.gain == 0)

    def assume(self, rows: Tensor) -> bool:
        """Assumes that the bias of some rows adds to their input, where its derivative is lost or small.

        That is so behind a ReLU that is closed for many samples, or behind a `detach`. The rates that
        come out then show whether it was right.

        Args:
            rows: which of them.

        Returns:
            Whether anything is assumed.
        """
        if not self.is_bias or not bool(rows.any()):
            return False
        self.gain = self.gain + rows
        self.assumed = self.assumed + self.rows.spread(rows.float())
        return True

    @property
    def is_coupled(self) -> bool:
        """Whether the shift of one row may change the rate of another."""
        return bool(self.layers_inside or self.population.recurrent_layers)

    @property
    def layers_inside(self) -> bool:
        """Whether the neuron carries the layer that is shifted."""
        return any(unit.state.param != "threshold" for unit in self.inside)

    def rates(self, shift: Tensor, *, live: bool = False) -> Tensor:
        """Returns the rate ``[B, *N]`` for a shift of each row.

        Args:
            shift: ``[rows]``.
            live: whether recurrent layers answer to the spikes of this replay, and what they give back
                is kept; otherwise they give back what they gave before.
        """
        spread = self.population.allowed(self.rows.spread(shift).float())
        with self._parameters_shifted(spread):
            return torch.cat([self._play(tape, spread, live).rate for tape in self.tapes])

    def _gain(self) -> Tensor:
        if self.inside:  # a higher threshold lowers the rate
            sign = 1.0 if self.layers_inside else -1.0
            device = self.rows.index.device
            return torch.full((self.rows.count,), sign, dtype=torch.float64, device=device)
        each = [
            self._gain_on(tape).expand(tape.counter.samples, *self.rows.index.shape) for tape in self.tapes
        ]
        return self.rows.mean(torch.cat(each))

    def _gain_on(self, tape: Tape) -> Tensor:
        """How far the input of each neuron moves with its shift in one sequence, ``[*N]``."""
        shape = self.rows.index.shape
        total = torch.zeros(shape, device=self.rows.index.device)
        for argument in tree_flatten([call.arguments for call in tape.calls])[0]:
            if isinstance(argument, Moved):
                total = total + argument.gain(shape)
        return total / max(len(tape.calls), 1)

    def _play(self, tape: Tape, shift: Tensor, live: bool) -> Counter:
        counter = Counter()
        for output in self.outputs(tape, shift, live):
            counter.add(tape.neuron, output)
        return counter

    def outputs(self, tape: Tape, shift: Tensor, live: bool = False) -> Iterator[Any]:
        """Runs the neuron alone on one sequence, its input shifted by ``[*N]``, and yields its outputs."""
        last: list[Any] = []

        def argument(recorded: Any) -> Any:
            if isinstance(recorded, Link):
                return last[recorded.position]
            return recorded.shifted(shift, self.assumed) if isinstance(recorded, Moved) else recorded

        with buffers_kept(tape.neuron), _relived(self.population, tape) if live else _echoing(tape):
            for call in tape.calls:
                for (module, name), value in call.state.items():
                    setattr(module, name, value.clone())
                args, kwargs = tree_map(argument, call.arguments)
                output = tape.neuron.forward(*args, **kwargs)  # `neuron(...)` would run the hooks of others
                last = tree_flatten(output)[0]
                yield output

    @contextmanager
    def _parameters_shifted(self, shift: Tensor) -> Iterator[None]:
        values = [(unit.slot.reference, unit.slot.reference.tensor.clone()) for unit in self.inside]
        try:
            for unit, (reference, value) in zip(self.inside, values, strict=True):
                new = value + self.population.change(unit, shift).to(value.dtype)
                reference.write(new if unit.slot.limits is None else unit.slot.limits.clamp_(new))
            yield
        finally:
            for reference, value in values:
                reference.write(value)


@contextmanager
def _relived(population: Population, tape: Tape) -> Iterator[None]:
    """Has a tape keep what the recurrent layers give back now."""
    tape.echoes.clear()
    with hooked([layer.register_forward_hook(tape.echo) for layer in population.recurrent_layers]):
        yield


@contextmanager
def _echoing(tape: Tape) -> Iterator[None]:
    """Has the recurrent layers inside a neuron give back what they gave during the recording."""
    echoes: dict[nn.Module, Iterator[Tensor]] = {layer: iter(each) for layer, each in tape.echoes.items()}

    def echo(layer: nn.Module, args: Any, output: Any) -> Tensor:
        return next(echoes[layer])

    with hooked([layer.register_forward_hook(echo) for layer in echoes]):
        yield
