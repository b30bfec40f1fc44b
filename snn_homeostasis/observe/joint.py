"""The rate of a cell over the samples of all processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..state import TensorState
from .estimator import RateEstimator

__all__ = ["Joint", "JointRate"]


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
