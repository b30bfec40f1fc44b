"""Estimators of the firing rate: spikes per time step, per sample and neuron."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from .checks import require
from .errors import ArgumentError, NoSpikesError
from .state import TensorState

__all__ = ["CumulativeRate", "ExponentialRate", "RateEstimator", "WindowedRate"]


class RateEstimator(TensorState, ABC):
    """Base of the estimators: what `update` has seen so far, `rate` tells.

    An estimator is one class with `update`, `rate` and `reset`. Its tensors are buffers,
    its number of observed steps is `steps`; both are saved and moved with it. Estimates
    are kept in float32 or better whatever the spikes come in.
    """

    counters: tuple[str, ...] = ("steps",)
    steps: int = 0

    @abstractmethod
    def update(self, spikes: Tensor) -> None:
        """Takes in spikes.

        Args:
            spikes: ``[T, B, *N]``, nonzero where a neuron fired; T is 1 for one step. Their
                number T is to be added to `steps`.

        Raises:
            ArgumentError: if the neurons ``[*N]`` are others than before; the batch may change.
        """

    @property
    @abstractmethod
    def rate(self) -> Tensor:
        """The current estimate ``[B, *N]`` in spikes per step.

        Raises:
            NoSpikesError: before the first update.
        """

    def reset(self) -> None:
        """Forgets everything that was observed."""
        self.steps = 0
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


def _same_batch(state: Tensor, spikes: Tensor) -> bool:
    return state.shape[1:] == spikes.shape[1:] and state.device == spikes.device


def carried(state: Tensor, batch: Tensor, dim: int) -> Tensor:
    """``state`` for another batch: its mean over the old one, for every new sample.

    Args:
        state: a tensor with the samples along ``dim``.
        batch: a tensor with the new number of samples along ``dim``, on its device.
        dim: the dimension of the samples.
    """
    shape = list(state.shape)
    shape[dim] = batch.shape[dim]
    before, now = state.shape[dim + 1 :], batch.shape[dim + 1 :]
    if before != now:
        raise ArgumentError(
            f"`spikes` should keep the shape [*N] of their neurons. Found {list(now)} after {list(before)}. "
            "Call `clear()` before the model takes inputs of another size."
        )
    state = state.to(batch.device)
    if state.shape[dim] == shape[dim]:
        return state
    return state.float().mean(dim, keepdim=True).expand(shape).clone()


class CumulativeRate(RateEstimator):
    """The mean over all steps since the last `reset`.

    Spikes are counted exactly: the counter is folded into a running mean before it
    reaches the largest integer of float32, and when the batch changes. Memory: 4 bytes
    per (sample, neuron), and as much again after 2**23 steps.

    >>> import torch
    >>> rate = CumulativeRate()
    >>> rate.update(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))  # two steps, one sample
    >>> rate.rate
    tensor([[1.0000, 0.5000]])
    """

    counters = ("steps", "folded_steps")
    folded_steps: int = 0
    # float32 counts are exact below 2**24; one update may bring as many steps again
    fold_after = 2**23

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", None)
        self.register_buffer("folded", None)

    count: Tensor | None
    folded: Tensor | None

    def update(self, spikes: Tensor) -> None:
        count = self.count
        fresh = self.steps - self.folded_steps + len(spikes)
        if count is None or not _same_batch(count, spikes) or fresh > self.fold_after:
            count = self._fold(spikes)
        if len(spikes) == 1:
            count.add_(spikes)
        else:
            count.add_(spikes.sum(0, keepdim=True, dtype=torch.float32))
        self.steps += len(spikes)

    @property
    def rate(self) -> Tensor:
        self.require_spikes()
        return self._mean()[0]

    def reset(self) -> None:
        super().reset()
        self.folded_steps = 0

    def memory(self, steps: int) -> float:
        return steps / self.steps

    def assume(self, rate: Tensor, steps: int) -> None:
        self.folded = rate.unsqueeze(0)
        self.count = torch.zeros_like(self.folded)
        self.steps = self.folded_steps = steps

    def _mean(self) -> Tensor:
        assert self.count is not None
        if self.folded is None:
            return self.count / self.steps
        fresh = self.steps - self.folded_steps
        return self.count / self.steps + self.folded * (1 - fresh / self.steps)

    @torch.inference_mode(False)
    def _fold(self, spikes: Tensor) -> Tensor:
        if self.steps:
            self.folded = carried(self._mean(), spikes, dim=1)
            self.folded_steps = self.steps
        self.count = torch.zeros_like(spikes[:1], dtype=torch.float32)
        return self.count


class ExponentialRate(RateEstimator):
    r"""The exponentially weighted mean with time constant ``tau``, bias-corrected.

    .. math:: r_n = \frac{\sum_{i \le n} e^{-(n - i)/\tau} s_i}{\sum_{i \le n} e^{-(n - i)/\tau}}

    so that the first step already has the right size. Memory: 4 bytes per
    (sample, neuron).

    Args:
        tau: time constant in steps, > 0.

    Raises:
        ArgumentError: if ``tau`` is not a positive, finite number.

    >>> import torch
    >>> rate = ExponentialRate(tau=10.0)
    >>> rate.update(torch.tensor([[[1.0, 0.0]]]))
    >>> rate.rate
    tensor([[1., 0.]])
    """

    def __init__(self, tau: float) -> None:
        super().__init__()
        require(
            isinstance(tau, int | float) and tau > 0 and math.isfinite(tau),
            "tau",
            "be > 0 and finite, in steps",
            tau,
            "Take about ten times 1 / target.",
        )
        self.tau = float(tau)
        self.decay = math.exp(-1.0 / self.tau)
        self.register_buffer("mean", None)

    mean: Tensor | None

    def update(self, spikes: Tensor) -> None:
        mean = self.mean
        if mean is None or not _same_batch(mean, spikes):
            mean = self._for_batch(spikes)
        if len(spikes) == 1:
            mean.lerp_(spikes.float(), -math.expm1(-1.0 / self.tau))
        else:
            mean.mul_(self.decay ** len(spikes)).add_(self._weighted(spikes))
        self.steps += len(spikes)

    @property
    def rate(self) -> Tensor:
        self.require_spikes()
        assert self.mean is not None
        return self.mean[0] / self._gain(self.steps)

    def memory(self, steps: int) -> float:
        return math.exp((steps - self.steps) / self.tau) * self._gain(steps) / self._gain(self.steps)

    def assume(self, rate: Tensor, steps: int) -> None:
        self.mean = rate.unsqueeze(0) * self._gain(steps)
        self.steps = steps

    def _gain(self, steps: int) -> float:
        return -math.expm1(-steps / self.tau)

    @torch.inference_mode(False)
    def _for_batch(self, spikes: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = torch.zeros_like(spikes[:1], dtype=torch.float32)
        else:
            self.mean = carried(self.mean, spikes, dim=1)
        return self.mean

    def _weighted(self, spikes: Tensor) -> Tensor:
        age = torch.arange(len(spikes) - 1, -1, -1, device=spikes.device, dtype=torch.float32)
        weight = torch.exp(-age / self.tau) * -math.expm1(-1.0 / self.tau)
        weighted: Tensor = torch.tensordot(weight, spikes.float(), dims=1)
        return weighted.unsqueeze(0)

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}"


class WindowedRate(RateEstimator):
    """The mean over the last ``steps`` steps, or over all while there are fewer.

    Memory: ``steps`` bytes and 4 more per (sample, neuron), four times that once the
    batch size has changed, because the past is then a mean over samples. For long
    windows prefer `ExponentialRate`. Processes that share a batch carry the joint mean over as if
    the past were spread evenly over the window: exact again once the window has passed.

    Args:
        steps: length of the window.

    Raises:
        ArgumentError: if ``steps`` is not an integer > 0.

    >>> import torch
    >>> rate = WindowedRate(2)
    >>> rate.update(torch.tensor([1.0, 1.0, 0.0]).reshape(3, 1, 1))
    >>> rate.rate
    tensor([[0.5000]])
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        require(
            isinstance(steps, int) and not isinstance(steps, bool) and steps > 0,
            "steps",
            "be an integer > 0",
            steps,
            "Take about ten times 1 / target.",
        )
        self.window = steps
        self.register_buffer("past", None)
        self.register_buffer("total", None)

    past: Tensor | None
    total: Tensor | None

    def update(self, spikes: Tensor) -> None:
        past, total = self._for_batch(spikes)
        latest = spikes[-self.window :]
        first = self.steps + len(spikes) - len(latest)
        slots = torch.arange(first, first + len(latest), device=spikes.device) % self.window
        total.add_(latest.sum(0, dtype=torch.float32) - past[slots].sum(0, dtype=torch.float32))
        past[slots] = latest.to(past.dtype)
        self.steps += len(spikes)

    @property
    def rate(self) -> Tensor:
        self.require_spikes()
        assert self.total is not None
        return self.total / min(self.steps, self.window)

    def memory(self, steps: int) -> float:
        # as if what is left of the past were spread evenly over the window
        filled = min(self.steps, self.window)
        return max(0, filled - (self.steps - steps)) / filled

    def assume(self, rate: Tensor, steps: int) -> None:
        filled = min(steps, self.window)
        self.past = rate.new_zeros((self.window, *rate.shape))
        self.past[:filled] = rate
        self.total = rate * filled
        self.steps = steps

    @torch.inference_mode(False)
    def _for_batch(self, spikes: Tensor) -> tuple[Tensor, Tensor]:
        if self.past is None or self.total is None:
            shape = (self.window, *spikes.shape[1:])
            self.past = torch.zeros(shape, dtype=torch.bool, device=spikes.device)
            self.total = torch.zeros_like(spikes[0], dtype=torch.float32)
        elif not _same_batch(self.past, spikes):
            self.past = carried(self.past, spikes, dim=1)
            self.total = self.past.sum(0, dtype=torch.float32)
        return self.past, self.total

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        past = state_dict.get(f"{prefix}past")
        if past is not None and len(past) != self.window:
            args[-1].append(
                f"`steps` should be {len(past)}, the saved window. Found `steps = {self.window}`. Build the "
                "estimator with the saved length."
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"steps={self.window}"
