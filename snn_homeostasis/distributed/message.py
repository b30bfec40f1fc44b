"""The message of one process: what it sends to be summed, laid out alike in all processes."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = ["Message", "Numbers", "Part", "Sum"]


class Part(Protocol):
    """A part of a message; processes with other labels cannot be summed.

    Attributes:
        label: says what it is, and with which settings.
        counts: how many samples of this process stand behind each of its numbers, or behind all; empty
            where nobody asks.
        size: how many numbers it has.
    """

    label: str
    counts: list[float]
    size: int

    def write(self, room: Tensor) -> None:
        """Writes its numbers, which are to be summed, into zeros ``[size]`` in float64."""


class Numbers:
    """Numbers, and what they are."""

    def __init__(self, label: str, numbers: Tensor) -> None:
        self.label, self.numbers, self.size = label, numbers, numbers.numel()
        self.counts: list[float] = []

    def write(self, room: Tensor) -> None:
        room.copy_(self.numbers.flatten())


class Sum(NamedTuple):
    """The sum of one part over all processes."""

    counts: list[float]
    numbers: Tensor


class Message:
    """Room for one mark per process, then the counts of all parts, then their numbers.

    Args:
        parts: what this process has; the same kinds in all.
        processes: how many there are.
    """

    def __init__(self, parts: Sequence[Part], processes: int) -> None:
        self.parts, self.start = parts, processes
        self.labels = [part.label for part in parts]
        self.counts = [count for part in parts for count in part.counts]
        self.sizes = [part.size for part in parts]
        self.length = processes + len(self.counts) + sum(self.sizes)

    def write(self, buffer: Tensor) -> None:
        """Writes the counts and the numbers into a buffer of zeros."""
        head = self.start + len(self.counts)
        buffer[self.start : head] = buffer.new_tensor(self.counts)
        for part, room in zip(self.parts, self._numbers_in(buffer), strict=True):
            part.write(room)

    def read(self, total: Tensor) -> list[Sum]:
        """Reads the sum of all buffers, which lies on the processor."""
        counts = iter(total[self.start : self.start + len(self.counts)].tolist())
        pairs = zip(self.parts, self._numbers_in(total), strict=True)
        return [Sum(list(islice(counts, len(part.counts))), numbers) for part, numbers in pairs]

    def _numbers_in(self, buffer: Tensor) -> Sequence[Tensor]:
        numbers = buffer[self.start + len(self.counts) : self.length]
        return numbers.split_with_sizes(self.sizes)
