"""Settling: layer after layer in the order of data flow, then all at once until every rate stays."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..discovery import keeping_random_states
from ..errors import ArgumentError
from .changing import Ledger
from .moves import is_as_predicted, is_faithful, repair_weights, set_slope, shift
from .populations import Population
from .presenting import Presentation
from .recording import Counter, Tape, count, record
from .replay import Replay
from .weights import free_std

__all__ = ["AUTO", "Scale", "Settling"]

Scale = float | str | None
AUTO = "auto"

ENOUGH = 512  # samples
ROUNDS = 8
UNREACHED = "the model does not call its neuron"
FORWARD_MODE = ("forward AD", "forward mode AD")  # in what torch says where a derivative is missing


class Settling:
    """Brings populations to their targets.

    Args:
        populations: in any order.
        present: runs the model.
        ledger: writes the parameters.
        scale: "auto", a free std for all but the last population, or None.
        gradients: whether to set the slopes of surrogates.
    """

    def __init__(
        self,
        populations: Sequence[Population],
        present: Presentation,
        ledger: Ledger,
        *,
        scale: Scale,
        gradients: bool,
    ) -> None:
        self.populations = list(populations)
        self.present, self.ledger, self.scale, self.gradients = present, ledger, scale, gradients
        self.batches: list[Any] = []

    def run(self, batches: Iterator[Any], advance: Callable[[], object]) -> None:
        """Settles all, and counts their rates before and after; calls ``advance`` after each of them."""
        with keeping_random_states([]):  # a loader may shuffle
            self.batches = self.count(batches)
        for population in self.active:
            self.settle(population)
            advance()
        self.count(self.batches)
        if not all(map(is_as_predicted, self.active)):
            self.settle_together()
            self.count(self.batches)

    @property
    def active(self) -> list[Population]:
        """The populations that take shifts, in the order in which the model calls them."""
        return [each for each in self.populations if each.drivers]

    def count(self, batches: Iterable[Any]) -> list[Any]:
        """Counts spikes until there are enough samples, and sorts the populations by their first calls.

        Returns:
            The batches that were taken.
        """
        counters: dict[nn.Module, list[Counter]] = {each.neuron: [] for each in self.populations}
        taken: list[Any] = []
        order: list[nn.Module] = []
        for batch in batches:
            taken.append(batch)
            for neuron, counter in count(self.present, list(counters), batch).items():
                counters[neuron].append(counter)
                if neuron not in order:
                    order.append(neuron)
            if order and sum(each.samples for each in counters[order[0]]) >= ENOUGH:
                break
        _require_calls(order)
        order += [neuron for neuron in counters if neuron not in order]
        self.populations.sort(key=lambda each: order.index(each.neuron))
        for population in self.populations:
            if counted := counters[population.neuron]:
                population.rates = [*population.rates[:1], torch.cat([each.rate for each in counted])]
                population.steps = counted[0].steps
            else:
                population.leave_alone(UNREACHED)
        return taken

    def settle(self, population: Population) -> None:
        """Records one population, and shifts it to its target; its weights first, where they cannot work."""
        while (replay := self.replays([population]).get(population.neuron)) is not None:
            population.free_std = free_std(replay)
            if not self.repair(population, replay):
                shift(population, replay, self.ledger, 1.0)
                set_slope(population, self.ledger, self.gradients)
                return

    def settle_together(self) -> None:
        """Records all populations and shifts them, round after round.

        Those that did not come out as predicted act on themselves: they move by half of what they ask for.
        """
        fractions = {each.neuron: 1.0 if is_as_predicted(each) else 0.5 for each in self.active}
        for _ in range(ROUNDS):
            replays = self.replays(self.active)
            moved = [
                shift(each, replays[each.neuron], self.ledger, fractions[each.neuron]) for each in self.active
            ]
            if not any(moved):
                return

    def repair(self, population: Population, replay: Replay) -> bool:
        """Mends weights as ``scale`` says; false if they stay as they are."""
        if self.scale is None:
            return False
        is_last = population is self.populations[-1]
        wanted = None if self.scale == AUTO or is_last else float(self.scale)
        return repair_weights(population, replay, self.ledger, wanted)

    def replays(self, populations: Sequence[Population]) -> dict[nn.Module, Replay]:
        """Records populations, and leaves alone those that cannot be replayed."""
        tapes: dict[nn.Module, list[Tape]] = {each.neuron: [] for each in populations}
        for batch in self.batches:
            for neuron, tape in self.record(populations, batch).items():
                tapes[neuron].append(tape)
        pairs = [(each, Replay(each, tapes[each.neuron])) for each in populations]
        return {each.neuron: replay for each, replay in pairs if is_faithful(each, replay)}

    def record(self, populations: Sequence[Population], batch: Any) -> dict[nn.Module, Tape]:
        """Records one sequence, without derivatives where an operation has none."""
        try:
            return record(self.present, populations, batch)
        except RuntimeError as error:  # NotImplementedError is one, too
            if not any(words in str(error) for words in FORWARD_MODE):
                raise
        return record(self.present, populations, batch, seeded=False)


def _require_calls(order: Sequence[nn.Module]) -> None:
    if not order:
        raise ArgumentError(
            "`inputs` should make the model call its neurons. Found no call. Pass at least one batch, and "
            "call each neuron as `neuron(...)`."
        )
