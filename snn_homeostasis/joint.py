"""What a process keeps of an update until it is summed with those of the other processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .rates import RateEstimator
from .state import TensorState

__all__ = ["JointRate", "Ledger", "Share"]

Pair = tuple[Tensor | None, Tensor | None]


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
    carried: Pair | None = None


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
    def shares(self) -> list[Share]:
        """The share of each entry."""
        rows = [] if self.facts is None else self.facts.tolist()
        return [Share(samples, before, bool(summed)) for samples, before, summed in rows]

    def add(self, own: Pair, share: Share | None = None) -> None:
        """Takes in one entry: ``(pos, neg)``, magnitudes; counted like the cell without a share."""
        if self.share is None or own == (None, None):
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


class JointRate(TensorState):
    """The rate of one cell over the samples of all processes, as of the last update.

    Attributes:
        mean: ``[*N]``, over the joint batch.
        deviation: ``[B, *N]``, by how much this process's samples differed from it.
        steps: of the estimate at that update.
        samples: of all processes then, -1 if there was no update.
    """

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean", "deviation", "facts"):
            self.register_buffer(name, None)

    mean: Tensor | None
    deviation: Tensor | None
    facts: Tensor | None

    @property
    def steps(self) -> int:
        return 0 if self.facts is None else int(self.facts[0])

    @property
    def samples(self) -> int:
        return -1 if self.facts is None else int(self.facts[1])

    def carried(self, rate: Tensor, estimator: RateEstimator) -> Tensor:
        """The estimate ``rate`` if its past had been replaced by the joint mean at the last update."""
        fits = self.deviation is not None and estimator.steps >= self.steps
        memory = estimator.memory(self.steps) if fits else 0.0
        if self.deviation is None or not memory:
            return rate
        deviation = self.deviation.to(rate.device)
        if len(deviation) != len(rate):
            deviation = deviation.mean(0, keepdim=True)
        return rate - memory * deviation

    def settle(self, estimator: RateEstimator, rate: Tensor | None, total: Joint) -> None:
        """Takes over what an update has found for all processes.

        Args:
            estimator: of this process.
            rate: its estimate before the update, None if it had no samples.
            total: what all processes found.
        """
        changed = self.samples not in (-1, total.samples)
        if rate is not None and changed:
            rate = self.carried(rate, estimator)
        if rate is None or changed:
            estimator.assume(total.mean.unsqueeze(0) if rate is None else rate, total.steps)
        self.deviation = None if rate is None else rate - total.mean
        self.mean = total.mean
        self.facts = torch.tensor([total.steps, total.samples], device="cpu")

    def reset(self) -> None:
        """Forgets what the processes had in common."""
        self.mean = self.deviation = self.facts = None


@dataclass(frozen=True)
class Joint:
    """The estimate of all processes together: number of samples, steps, and mean ``[*N]``."""

    samples: int
    steps: int
    mean: Tensor


def _stacked(parts: list[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*parts))  # type: ignore[no-untyped-call]
