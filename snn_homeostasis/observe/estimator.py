"""What every rate estimator is: state that fits the spikes, and survives a change of batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, NoSpikesError
from ..state import StepCount, TensorState

__all__ = ["RateEstimator", "carried", "fits", "zeros_for"]


class RateEstimator(TensorState, ABC):
    """Base of the estimators: what `update` has seen so far, `rate` tells.

    An estimator is one class with `update`, `rate` and `reset`. Its tensors are buffers,
    its number of observed steps is `steps`; both are saved and moved with it. Estimates
    are kept in float32 or better whatever the spikes come in.

    Attributes:
        observed: counts the steps, and may know a short way for each of them.
    """

    counters: tuple[str, ...] = ("steps",)

    def __init__(self) -> None:
        super().__init__()
        self.observed = StepCount()

    @property
    def steps(self) -> int:
        """Number of observed steps; waits for the device if some were compiled."""
        return self.observed.total

    @steps.setter
    def steps(self, steps: int) -> None:
        self.observed = StepCount(steps)

    @abstractmethod
    def update(self, spikes: Tensor) -> None:
        """Takes in spikes.

        Args:
            spikes: ``[T, B, *N]``, nonzero where a neuron fired; T is 1 for one step. Their
                number is to be counted: ``self.observed.add(len(spikes), spikes.device)``.

        Raises:
            ArgumentError: if the neurons ``[*N]`` are others than before; the batch may change.
        """

    def fit(self, spikes: Tensor) -> None:
        """Prepares for steps ``[B, *N]`` of this shape, on this device.

        If a step of a model, outside of a compiled graph, can be taken in by one operation on
        the state, put it into ``self.observed.take``: it saves the call of `update`. It should
        change nothing if it raises. A state that is replaced is fitted anew.
        """

    def unfit(self) -> None:
        """Lets the next step be preceded by `fit`."""
        self.observed.take = None

    @property
    @abstractmethod
    def rate(self) -> Tensor:
        """The current estimate ``[B, *N]`` in spikes per step.

        Raises:
            NoSpikesError: before the first update.
        """

    def scaled(self) -> tuple[Tensor, float]:
        """The rate as a tensor and a number to multiply it with, where that saves the product.

        Raises:
            NoSpikesError: before the first update.
        """
        return self.rate, 1.0

    def reset(self) -> None:
        """Forgets everything that was observed."""
        self.steps = 0
        self.unfit()
        for name in self._buffers:
            self._buffers[name] = None

    def memory(self, steps: int) -> float:
        """The weight that the estimate of ``steps`` observed steps has in the current one.

        It and `assume` let processes that share a batch carry the mean of all samples over
        when its size changes. An estimator that leaves them out carries its own mean.
        """
        return 0.0

    def assume(self, rate: Tensor, steps: int) -> None:
        """Takes over an estimate ``[B, *N]`` of ``steps`` steps in place of its own."""

    def require_spikes(self) -> None:
        """Raises `NoSpikesError` before the first update."""
        if not self.steps:
            raise NoSpikesError(
                "`rate` should be read after at least one step. Found `steps = 0`. "
                "Run the model in training mode first."
            )

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self.__dict__.get("_buffers", ()):
            self.unfit()

    def _load_from_state_dict(self, *args: Any) -> None:
        self.unfit()
        super()._load_from_state_dict(*args)

    def _apply(self, *args: Any, **kwargs: Any) -> RateEstimator:
        self.unfit()
        super()._apply(*args, **kwargs)
        return self


def fits(state: Tensor, spikes: Tensor) -> bool:
    """Whether a state ``[..., B, *N]`` can take in spikes ``[B, *N]`` in place."""
    return state.shape[state.ndim - spikes.ndim :] == spikes.shape and state.device == spikes.device


def zeros_for(spikes: Tensor, *leading: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A state ``[*leading, B, *N]`` for spikes ``[B, *N]``."""
    return torch.zeros((*leading, *spikes.shape), dtype=dtype, device=spikes.device)


def carried(state: Tensor, spikes: Tensor) -> Tensor:
    """``state`` for another batch: its mean over the old one, for every new sample.

    Args:
        state: ``[..., B, *N]``.
        spikes: ``[B, *N]`` of the new batch, on its device.
    """
    dim = state.ndim - spikes.ndim
    before, now = state.shape[dim + 1 :], spikes.shape[1:]
    if before != now:
        raise ArgumentError(
            f"`spikes` should keep the shape [*N] of their neurons. Found {list(now)} after {list(before)}. "
            "Call `clear()` before the model takes inputs of another size."
        )
    state = state.to(spikes.device)
    if state.shape[dim] == len(spikes):
        return state.clone()
    return state.float().mean(dim, keepdim=True).expand(*state.shape[:dim], *spikes.shape).clone()
