"""What every estimator of a firing rate shares: a running total, and the weight that divides it."""

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor

from ..errors import ArgumentError, NoSpikesError
from ..state import TensorState

__all__ = ["RateEstimator", "resized_to_batch"]


class RateEstimator(TensorState, ABC):
    r"""Base of the estimators: a total of spikes and its weight.

    .. math:: r = \frac{\text{total}}{\text{weight}}

    A new estimator defines `update` and `weight`. If it keeps more tensors than the total, it names
    them in ``state`` and forgets them in `reset`.

    Attributes:
        total: ``[B, *N]``, float32 or better; None before the first step.
        joint: ``[*N]``, the mean rate over the samples of all processes as of the last update; None
            where one process trains the model.

    >>> import torch
    >>> class EverSpiked(RateEstimator):
    ...     def update(self, spikes):
    ...         self.total_for(spikes[0]).copy_((self.total_for(spikes[0]) + spikes.sum(0)).clamp(max=1))
    ...         self.count(len(spikes), spikes.device)
    ...
    ...     @property
    ...     def weight(self):
    ...         return 1.0
    >>> estimator = EverSpiked()
    >>> estimator.update(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]))
    >>> estimator.rate
    tensor([[1., 0.]])
    """

    state: tuple[str, ...] = ("total", "joint")
    counters: tuple[str, ...] = ("steps",)
    checks = ("weight",)  # of another estimator the total would give another rate

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "rate" in vars(cls):  # a step would read `total` and `weight`, and ignore it
            raise ArgumentError(
                f"`{cls.__name__}` should define `update` and `weight`. Found a `rate` of its own. "
                "Keep the estimate in `total` and return 1.0 as the `weight`."
            )

    def reset(self) -> None:
        """Forgets all spikes."""
        self.total: Tensor | None = None
        self.joint: Tensor | None = None
        self.steps = 0

    def close(self) -> None:
        """Is called after each update that has used the estimate."""

    @abstractmethod
    def update(self, spikes: Tensor) -> None:
        """Takes in a sequence of steps: adds to the total and calls `count`.

        Args:
            spikes: ``[T, B, *N]``, nonzero where a neuron fired; T is 1 for one step.

        Raises:
            ArgumentError: if the neurons ``[*N]`` differ from those before; the batch may change.
        """

    def update_step(self, spikes: Tensor) -> None:
        """Takes in one step ``[B, *N]`` outside of compiled graphs; a cheaper form may override it."""
        self.update(spikes.unsqueeze(0))

    @property
    @abstractmethod
    def weight(self) -> float:
        """What divides the total; positive after the first step."""

    @final
    @property
    def rate(self) -> Tensor:
        """The estimate ``[B, *N]`` in spikes per step, float32.

        Raises:
            NoSpikesError: before the first step.
        """
        if self.total is None or not self.steps:
            raise NoSpikesError(
                "`rate` should be read after at least one step. Found `steps = 0`. "
                "Run the model in training mode first."
            )
        return (self.total / self.weight).float()

    def total_for(self, spikes: Tensor) -> Tensor:
        """The total in the shape of spikes ``[B, *N]``, on their device: zeros before the first step."""
        total = self.total
        if total is None or total.shape != spikes.shape or total.device != spikes.device:
            with torch.inference_mode(False):
                if total is None:
                    total = torch.zeros(spikes.shape, dtype=torch.float32, device=spikes.device)
                else:
                    total = resized_to_batch(total, spikes)
            self.total = total
        return total

    @property
    def steps(self) -> int:
        """The number of observed steps. Waits for the device if some of them were compiled."""
        compiled = self._compiled_steps
        return self._eager_steps if compiled is None else self._eager_steps + int(compiled)

    @steps.setter
    def steps(self, steps: int) -> None:
        self._restart(steps)

    def _restart(self, steps: int = 0) -> None:
        """Sets the number of steps, also in a compiled call: torch 2.6 compiles no setter of a property."""
        self._eager_steps = steps
        self._compiled_steps: Tensor | None = None

    def count(self, steps: int, device: torch.device) -> None:
        """Counts some steps of spikes on a device."""
        if not torch.compiler.is_dynamo_compiling():
            self._eager_steps += steps
            return
        # a number that changes would make the compiler start again at each step: here it is a tensor
        with torch.inference_mode(False):
            old = torch.zeros((), dtype=torch.int64) if self._compiled_steps is None else self._compiled_steps
            self._compiled_steps = old.to(device)
        self._compiled_steps.add_(steps)


def resized_to_batch(state: Tensor, spikes: Tensor) -> Tensor:
    """Fits a state ``[..., B, *N]`` to spikes ``[B', *N]``: new samples start from the mean of the old."""
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
    exact = torch.promote_types(state.dtype, torch.float32)
    return state.to(exact).mean(dim, keepdim=True).expand(*state.shape[:dim], *spikes.shape).clone()
