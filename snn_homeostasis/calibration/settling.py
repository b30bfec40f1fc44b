"""Settling: layer after layer in the order of data flow, then all at once until every rate stays."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..discovery import keeping_random_states
from ..distributed import Processes
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
        processes: those that train the model; all that is decided here depends on their sums.
        ledger: writes the parameters.
        scale: "auto", a free std for all but the last population, or None.
        gradients: whether to set the slopes of surrogates.

    Attributes:
        batches: those of this process.
        samples: in the batches of all processes.
    """

    def __init__(
        self,
        populations: Sequence[Population],
        present: Presentation,
        processes: Processes,
        ledger: Ledger,
        *,
        scale: Scale,
        gradients: bool,
    ) -> None:
        self.populations, self.present, self.processes = list(populations), present, processes
        self.ledger, self.scale, self.gradients = ledger, scale, gradients
        self.batches: list[Any] = []
        self.samples = 0

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
        shifts = [abs(shift) for each in self.populations for shift in each.shifts.values()]
        self.processes.require_same(sum(shifts))  # a bound of the user may throw dice

    @property
    def active(self) -> list[Population]:
        """The populations that take shifts, in the order in which the model calls them."""
        return [each for each in self.populations if each.drivers]

    def count(self, batches: Iterable[Any]) -> list[Any]:
        """Counts spikes until there are enough samples, and sorts the populations by their first calls.

        Returns:
            The batches that were taken.
        """
        of_neuron = {each.neuron: each for each in self.populations}
        counters: dict[nn.Module, list[Counter]] = {}  # in the order of the first calls
        taken: list[Any] = []
        for batch in _in_step(batches, self.processes):
            taken.append(batch)
            for neuron, counter in count(self.present, list(of_neuron), batch).items():
                counters.setdefault(neuron, []).append(counter)
            if self.sum_samples([(of_neuron[neuron], each) for neuron, each in counters.items()]) >= ENOUGH:
                break
        _require_samples(self.samples, has_calls=bool(counters))
        for neuron, population in of_neuron.items():
            if neuron in counters:
                rates = torch.cat([each.rate for each in counters[neuron]])
                population.rates = [*population.rates[:1], rates]
            else:
                population.leave_alone(UNREACHED)
        self.populations = [of_neuron[neuron] for neuron in dict.fromkeys([*counters, *of_neuron])]
        return taken

    def sum_samples(self, called: Sequence[tuple[Population, Sequence[Counter]]]) -> int:
        """Notes the samples of all processes; returns how many of them the first neuron has seen."""
        own = [
            [sum(each.samples for each in counters), sum(each.samples * each.steps for each in counters)]
            for _, counters in called
        ]
        names = ", ".join(repr(population.units[0].name) for population, _ in called) or "no cell"
        total = self.processes.sum(f"the samples of {names}", torch.tensor(own).reshape(-1, 2)).tolist()
        for (population, _), (_, presented) in zip(called, total, strict=True):
            population.presented = presented
        self.samples = int(max((samples for samples, _ in total), default=0))
        return int(total[0][0]) if total else 0

    def settle(self, population: Population) -> None:
        """Records one population, and shifts it to its target; its weights first, where they cannot work."""
        is_settled = False
        while not is_settled:
            is_settled = self.settle_once(population)

    def settle_once(self, population: Population) -> bool:
        """Uses one recording, which is gone before the next; false if there has to be another."""
        replay = self.replays([population]).get(population.neuron)
        if replay is None:
            return True
        population.free_std = free_std(replay)
        if self.repair(population, replay):
            return False
        shift(population, replay, self.ledger, 1.0)
        set_slope(population, self.ledger, self.gradients)
        return True

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


def _in_step(batches: Iterable[Any], processes: Processes) -> Iterator[Any]:
    """Yields a batch as long as all processes have one; a wrapper may have them wait for each other."""
    for batch in batches:
        processes.agree("a further batch of `inputs`")
        yield batch
    processes.agree("no further batch of `inputs`")


def _require_samples(samples: int, *, has_calls: bool) -> None:
    if not samples:
        raise ArgumentError(
            "`inputs` should make the model call its neurons. Found no "
            f"{'sample' if has_calls else 'call'}. Pass at least one batch, and call each neuron as "
            "`neuron(...)`."
        )
