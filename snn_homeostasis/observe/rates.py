"""Estimators of the firing rate: spikes per time step, per sample and neuron."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import require
from .estimator import RateEstimator, carried, fits, zeros_for

__all__ = ["CumulativeRate", "ExponentialRate", "WindowedRate"]


class CumulativeRate(RateEstimator):
    """The mean over all steps since the last `reset`.

    Spikes are counted. The counts are folded into a running mean before they reach the
    largest integer of float32. Memory: 4 bytes per (sample, neuron), and as much again after
    2**23 steps.

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
        count = self._count_for(spikes[0])
        count.add_(spikes.sum(0, dtype=torch.float32))
        self.observed.add(len(spikes), spikes.device)
        if not torch.compiler.is_dynamo_compiling():  # there the steps are known to `rate` alone
            self._fold_in_time()

    def fit(self, spikes: Tensor) -> None:
        count = self._count_for(spikes)
        self._fold_in_time()
        observed = self.observed
        observed.due = observed.number + self.fold_after - (self.steps - self.folded_steps)
        observed.take = count.add_

    @property
    def rate(self) -> Tensor:
        self.require_spikes()
        self._fold_in_time()
        return self._mean()

    def scaled(self) -> tuple[Tensor, float]:
        buffers, steps = self._buffers, self.steps
        count = buffers["count"]
        if count is None or buffers["folded"] is not None or not 0 < steps <= self.fold_after:
            return super().scaled()
        return count, 1.0 / steps

    def reset(self) -> None:
        super().reset()
        self.folded_steps = 0

    def memory(self, steps: int) -> float:
        return steps / self.steps

    @torch.inference_mode(False)
    def assume(self, rate: Tensor, steps: int) -> None:
        self.folded, self.count = rate.clone(), torch.zeros_like(rate)
        self.steps = self.folded_steps = steps

    def _count_for(self, spikes: Tensor) -> Tensor:
        count = self.count
        if count is not None and fits(count, spikes):
            return count
        with torch.inference_mode(False):
            if self.folded is not None:
                self.folded = carried(self.folded, spikes)
            self.count = zeros_for(spikes) if count is None else carried(count, spikes)
        return self.count

    def _mean(self) -> Tensor:
        assert self.count is not None
        steps = self.steps
        mean = self.count / steps
        return mean if self.folded is None else mean + self.folded * (self.folded_steps / steps)

    def _fold_in_time(self) -> None:
        if self.steps - self.folded_steps >= self.fold_after:
            self._fold()

    @torch.inference_mode(False)
    def _fold(self) -> None:
        assert self.count is not None
        self.folded = self._mean()
        self.folded_steps = self.steps
        self.count.zero_()


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
        self.gain = -math.expm1(-1.0 / self.tau)  # 1 - decay, without its rounding error
        self.register_buffer("mean", None)

    mean: Tensor | None

    def update(self, spikes: Tensor) -> None:
        mean = self._mean_for(spikes[0])
        mean.mul_(self.decay ** len(spikes)).add_(self._weighted(spikes))
        self.observed.add(len(spikes), spikes.device)

    def fit(self, spikes: Tensor) -> None:
        mean, gain = self._mean_for(spikes), self.gain
        self.observed.take = lambda spikes: mean.lerp_(spikes.to(mean.dtype), gain)

    @property
    def rate(self) -> Tensor:
        self.require_spikes()
        assert self.mean is not None
        return self.mean / self._mass(self.steps)

    def scaled(self) -> tuple[Tensor, float]:
        self.require_spikes()
        assert self.mean is not None
        return self.mean, 1.0 / self._mass(self.steps)

    def memory(self, steps: int) -> float:
        return math.exp((steps - self.steps) / self.tau) * self._mass(steps) / self._mass(self.steps)

    @torch.inference_mode(False)
    def assume(self, rate: Tensor, steps: int) -> None:
        self.mean = rate * self._mass(steps)
        self.steps = steps

    def _mass(self, steps: int) -> float:
        return -math.expm1(-steps / self.tau)

    def _mean_for(self, spikes: Tensor) -> Tensor:
        mean = self.mean
        if mean is not None and fits(mean, spikes):
            return mean
        with torch.inference_mode(False):
            self.mean = zeros_for(spikes) if mean is None else carried(mean, spikes)
        return self.mean

    def _weighted(self, spikes: Tensor) -> Tensor:
        age = torch.arange(len(spikes) - 1, -1, -1, device=spikes.device, dtype=torch.float32)
        weight = torch.exp(-age / self.tau) * self.gain
        weighted: Tensor = torch.tensordot(weight, spikes.float(), dims=1)
        return weighted

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
        for name in ("past", "total", "position"):
            self.register_buffer(name, None)

    past: Tensor | None
    total: Tensor | None
    position: Tensor | None

    def update(self, spikes: Tensor) -> None:
        past, total, position = self._window_for(spikes[0])
        latest = spikes[-self.window :]
        ages = torch.arange(len(spikes) - len(latest), len(spikes), device=spikes.device)
        places = (position + ages) % self.window
        total.add_(latest.sum(0, dtype=torch.float32) - past[places].sum(0, dtype=torch.float32))
        past[places] = latest.to(past.dtype)
        position.add_(len(spikes)).remainder_(self.window)
        self.observed.add(len(spikes), spikes.device)

    @property
    def rate(self) -> Tensor:
        self.require_spikes()
        assert self.total is not None
        return self.total / self._filled

    def scaled(self) -> tuple[Tensor, float]:
        self.require_spikes()
        assert self.total is not None
        return self.total, 1.0 / self._filled

    def memory(self, steps: int) -> float:
        # as if what is left of the past were spread evenly over the window
        return max(0, self._filled - (self.steps - steps)) / self._filled

    @property
    def _filled(self) -> int:
        return min(self.steps, self.window)

    @torch.inference_mode(False)
    def assume(self, rate: Tensor, steps: int) -> None:
        filled = min(steps, self.window)
        self.past = rate.new_zeros((self.window, *rate.shape))
        self.past[:filled] = rate
        self.total = rate * filled
        self.position = torch.tensor(filled % self.window, device=rate.device)
        self.steps = steps

    def _window_for(self, spikes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        past, total, position = self.past, self.total, self.position
        if past is None or total is None or position is None:
            with torch.inference_mode(False):
                self.past = past = zeros_for(spikes, self.window, dtype=torch.bool)
                self.total = total = zeros_for(spikes)
                # a tensor, because a number that changes would be compiled anew at each step
                self.position = position = torch.zeros((), dtype=torch.int64, device=spikes.device)
        elif not fits(past, spikes):
            with torch.inference_mode(False):
                self.past = past = carried(past, spikes)
                self.total = total = past.sum(0, dtype=torch.float32)
                self.position = position = position.to(spikes.device, copy=True)
        return past, total, position

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
