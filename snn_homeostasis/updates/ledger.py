"""What was added to a slot, until it is summed with what the other processes have added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cells.settings import BatchReduction
from ..errors import require
from ..state import TensorState

__all__ = ["Ledger", "Parts", "Share", "is_sum"]

Parts = tuple[Tensor | None, Tensor | None]
SUMS = ((torch.mean, False), (Tensor.mean, False), (torch.sum, True), (Tensor.sum, True))


@dataclass(frozen=True)
class Share:
    """How parts of this process count among those of all.

    Attributes:
        samples: number of samples they were reduced over; 0 for an empty batch.
        before: that number in all processes at the last update, -1 if there was none.
        summed: whether they are sums over the samples, not means.
        carried: the parts with the joint mean as the past; None if they do not depend on it.
    """

    samples: int
    before: int = -1
    summed: bool = False
    carried: Parts | None = None


class Ledger(TensorState):
    """The parts that were added to a slot, each with its share, while they wait.

    Every entry is there twice: as the rates of this process's own samples gave it, and as
    they would have if the samples had taken over the joint mean at the last update. One
    process with the joint batch does the second when the size of that batch has changed,
    and whether it has is known only when all processes tell theirs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.share: Callable[[], Share] | None = None
        self.register_buffer("parts", None)
        self.register_buffer("facts", None)

    parts: Tensor | None
    facts: Tensor | None

    @property
    def is_open(self) -> bool:
        """Whether several processes write to it."""
        return self.share is not None

    @property
    def entries(self) -> Parts:
        """All that it holds."""
        return self.parts, self.facts

    @entries.setter
    def entries(self, entries: Parts) -> None:
        self.parts, self.facts = entries

    @property
    def shares(self) -> list[Share]:
        """The share of each entry."""
        rows = [] if self.facts is None else self.facts.tolist()
        return [Share(samples, before, bool(summed)) for samples, before, summed in rows]

    def add(self, own: Parts, share: Share | None = None) -> None:
        """Takes in one entry: ``(pos, neg)``, magnitudes; counted like the cell without a share."""
        if self.share is None or all(part is None for part in own):
            return
        share = share or self.share()
        pos, neg = share.carried or own
        pairs = [*own, pos, None if neg is None else neg.abs()]
        zero = next(part for part in pairs if part is not None).new_zeros(())
        entry = _stacked([zero if part is None else part for part in pairs])
        fact = torch.tensor([share.samples, share.before, int(share.summed)], device="cpu")
        if self.parts is None or self.facts is None:
            self.parts, self.facts = entry.unsqueeze(0), fact.unsqueeze(0)
        else:
            held = [part for entry in self.parts for part in entry]
            parts = _stacked([*held, *entry])
            self.parts = parts.reshape(-1, len(entry), *parts.shape[1:])
            self.facts = torch.cat([self.facts, fact.to(self.facts.device).unsqueeze(0)])

    def empty(self) -> None:
        """Drops all entries."""
        self.parts = self.facts = None


def is_sum(reduction: BatchReduction) -> bool:
    """Whether a batch reduction is the sum; otherwise it is the mean.

    Raises:
        ArgumentError: if it is neither, since parts of it cannot be put together.
    """
    summed = next((summed for known, summed in SUMS if known is reduction), None)
    require(
        summed is not None,
        "batch_reduction",
        "be `torch.mean` or `torch.sum` where several processes share the batch",
        None,
        "No other can be put together from what each process knows.",
        show=f"`batch_reduction = {getattr(reduction, '__name__', reduction)}`",
    )
    return bool(summed)


def _stacked(parts: list[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*parts))  # type: ignore[no-untyped-call]
