"""Estimators of the firing rate: spikes per time step, for each sample and neuron."""

import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..errors import is_number, require
from .estimator import RateEstimator, resized_to_batch

__all__ = ["CumulativeRate", "ExponentialRate", "RecentRate", "WindowedRate"]

TEN_SPIKES = "Take about ten times 1 / target."


class CumulativeRate(RateEstimator):
    """The mean over all steps since the last `reset`.

    Memory: 4 bytes per (sample, neuron), 8 after 2**23 steps.

    >>> import torch
    >>> rate = CumulativeRate()
    >>> rate.update(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))  # two steps, one sample
    >>> rate.rate
    tensor([[1.0000, 0.5000]])
    """

    # float32 counts are exact below 2**24; one update may bring as many steps again
    float32_steps = 2**23

    def reset(self) -> None:
        super().reset()
        self.quick_steps = self.float32_steps  # up to here `update_step` adds without a look

    def update(self, spikes: Tensor) -> None:
        self.total_for(spikes[0]).add_(spikes.sum(0, dtype=torch.float32))
        self.count(len(spikes), spikes.device)

    def update_step(self, spikes: Tensor) -> None:
        total = self.total
        if total is None or total.shape != spikes.shape or self._eager_steps >= self.quick_steps:
            total = self.total_for(spikes)
        try:
            total.add_(spikes)
        except RuntimeError:  # from another device: to compare them first would slow every step
            self.total_for(spikes).add_(spikes)
        self.__dict__["_eager_steps"] += 1  # `Module.__setattr__` takes longer than all of the above

    @property
    def weight(self) -> float:
        steps = self.steps
        if steps >= self.float32_steps:
            self._widen()  # compiled steps are counted here for the first time
        return steps

    def total_for(self, spikes: Tensor) -> Tensor:
        super().total_for(spikes)
        if self._eager_steps >= self.float32_steps:
            self._widen()
        assert self.total is not None
        return self.total

    @torch.inference_mode(False)
    def _widen(self) -> None:
        if self.total is not None and self.total.dtype is torch.float32:
            self.total = self.total.double()


class RecentRate(CumulativeRate):
    """The mean over all steps since the last update by the rule. It is the default.

    It keeps its value until new spikes come, so that rates can be read at any time. The mean over
    all steps, a `CumulativeRate`, moves ever more slowly, and does not see what a step has changed.

    Memory: as `CumulativeRate`.

    >>> import torch
    >>> rate = RecentRate()
    >>> rate.update(torch.tensor([[[1.0, 1.0]]]))
    >>> rate.close()  # as each step of the rule does
    >>> rate.rate
    tensor([[1., 1.]])
    >>> rate.update(torch.tensor([[[1.0, 0.0]]]))
    >>> rate.rate
    tensor([[1., 0.]])
    """

    counters = (*CumulativeRate.counters, "is_closed")
    _is_closed: bool

    def reset(self) -> None:
        super().reset()
        self.is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether a step has used the estimate, so that the next spikes start another."""
        return self._is_closed

    @is_closed.setter
    def is_closed(self, is_closed: bool) -> None:
        self._mark(bool(is_closed))

    def close(self) -> None:
        self._mark(True)

    def _mark(self, is_closed: bool) -> None:
        self._is_closed = is_closed
        self.quick_steps = 0 if is_closed else self.float32_steps

    def total_for(self, spikes: Tensor) -> Tensor:
        if self._is_closed:
            self._open(spikes)
        return super().total_for(spikes)

    def _open(self, spikes: Tensor) -> None:
        total = self.total
        if total is not None and total.shape == spikes.shape and total.dtype is torch.float32:
            total.zero_()
        else:
            self.total = None
        self._restart()
        self._mark(False)


class ExponentialRate(RateEstimator):
    r"""The exponentially weighted mean with time constant ``tau``, corrected for its start.

    .. math:: r_n = \frac{\sum_{i \le n} e^{-(n - i)/\tau} s_i}{\sum_{i \le n} e^{-(n - i)/\tau}}

    with s_i the spikes of step i and n the number of steps. The first step already has the right
    size. Memory: 4 bytes per (sample, neuron).

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
        is_finite = is_number(tau) and tau > 0 and math.isfinite(tau)
        require(is_finite, "tau", "be > 0 and finite, in steps", tau, TEN_SPIKES)
        super().__init__()
        self.tau = float(tau)
        self.gain = -math.expm1(-1.0 / self.tau)  # 1 - exp(-1 / tau), without its rounding error

    def update(self, spikes: Tensor) -> None:
        age = torch.arange(len(spikes) - 1, -1, -1, device=spikes.device, dtype=torch.float32)
        recent = torch.tensordot(torch.exp(-age / self.tau) * self.gain, spikes.float(), dims=1)
        self.total_for(spikes[0]).mul_(math.exp(-len(spikes) / self.tau)).add_(recent)
        self.count(len(spikes), spikes.device)

    def update_step(self, spikes: Tensor) -> None:
        total = self.total_for(spikes)
        total.lerp_(spikes.to(total.dtype), self.gain)
        self.__dict__["_eager_steps"] += 1  # as in `CumulativeRate`

    @property
    def weight(self) -> float:
        return -math.expm1(-self.steps / self.tau)

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}"


class WindowedRate(RateEstimator):
    """The mean over the last ``steps`` steps, or over all while there are fewer.

    Memory: ``steps`` bytes and 4 more per (sample, neuron), and four times as much once the batch
    size has changed, because the past is then a mean over samples. For long windows prefer
    `ExponentialRate`.

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

    state = (*RateEstimator.state, "past", "position")

    def __init__(self, steps: int) -> None:
        is_count = is_number(steps) and isinstance(steps, Integral) and steps > 0
        require(is_count, "steps", "be an integer > 0", steps, TEN_SPIKES)
        super().__init__()
        self.window = int(steps)

    def reset(self) -> None:
        super().reset()
        self.past: Tensor | None = None  # [window, B, *N]
        self.position: Tensor | None = None  # of the oldest step; a tensor, for the compiler's sake

    def update(self, spikes: Tensor) -> None:
        past, position = self._past_for(spikes[0])
        latest = spikes[-self.window :]
        ages = torch.arange(len(spikes) - len(latest), len(spikes), device=spikes.device)
        places = (position + ages) % self.window
        change = latest.sum(0, dtype=torch.float32) - past[places].sum(0, dtype=torch.float32)
        self.total_for(spikes[0]).add_(change)
        past[places] = latest.to(past.dtype)
        position.add_(len(spikes)).remainder_(self.window)
        self.count(len(spikes), spikes.device)

    @property
    def weight(self) -> float:
        return min(self.steps, self.window)

    def _past_for(self, spikes: Tensor) -> tuple[Tensor, Tensor]:
        past, position = self.past, self.position
        if past is None or position is None:
            with torch.inference_mode(False):
                past = torch.zeros((self.window, *spikes.shape), dtype=torch.bool, device=spikes.device)
                position = torch.zeros((), dtype=torch.int64, device=spikes.device)
        elif past.shape[1:] != spikes.shape or past.device != spikes.device:
            with torch.inference_mode(False):
                past = resized_to_batch(past, spikes)
                position = position.to(spikes.device, copy=True)
        self.past, self.position = past, position
        return past, position

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
