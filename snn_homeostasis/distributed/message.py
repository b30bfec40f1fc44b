"""The message of one process: what it sends to be summed, laid out alike in all processes."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from torch import Tensor

from .shares import Share

__all__ = ["Message", "Sum"]


class Sum(NamedTuple):
    """The sum of one share over all processes."""

    share: Share
    counts: list[float]
    numbers: Tensor


class Message:
    """Room for one mark per process, then the counts of all shares, then their numbers.

    Args:
        shares: what this process has; the same kinds in all.
        processes: how many there are.
    """

    def __init__(self, shares: Sequence[Share], processes: int) -> None:
        self.shares, self.start = shares, processes
        self.labels = [share.label for share in shares]
        self.counts = [count for share in shares for count in share.counts]
        self.sizes = [share.size for share in shares]
        self.length = processes + len(self.counts) + sum(self.sizes)

    def write(self, buffer: Tensor) -> None:
        """Writes the counts and the numbers into a buffer of zeros."""
        head = self.start + len(self.counts)
        buffer[self.start : head] = buffer.new_tensor(self.counts)
        for share, room in zip(self.shares, self._numbers_in(buffer), strict=True):
            share.write(room)

    def read(self, total: Tensor) -> list[Sum]:
        """Reads the sum of all buffers, which lies on the processor."""
        counts = iter(total[self.start : self.start + len(self.counts)].tolist())
        pairs = zip(self.shares, self._numbers_in(total), strict=True)
        return [Sum(share, list(islice(counts, len(share.counts))), numbers) for share, numbers in pairs]

    def _numbers_in(self, buffer: Tensor) -> Sequence[Tensor]:
        numbers = buffer[self.start + len(self.counts) : self.length]
        return numbers.split_with_sizes(self.sizes)
