"""What the delayed layers share: delays, a history of inputs, and two forms of the same.

Which form is chosen by name, never by the shape of the input: `step` takes one time step and
remembers the last ones; `sequence` takes all steps at once and remembers nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, require
from .interpolation import INTERPOLATIONS, delay_kernel
from .kernels import KernelCache

__all__ = ["DelayInit", "DelayedLayer"]

DelayInit = float | Tensor | Callable[[Tensor], Tensor]


class DelayedLayer(nn.Module):
    """A plain layer with a delay for each weight; the base of `DelayedLinear` and `DelayedConv2d`.

    Attributes:
        delay: in steps, one for each weight. Outside ``[0, max_delay]`` it acts as the limit.
        max_delay: the longest delay, in steps.
        interpolation: "linear", "previous" or "nearest".
        step_mode: whether ``layer(x)`` takes one step (True) or a whole sequence.
    """

    weight: Tensor
    delay: nn.Parameter
    time_dim: int  # of windows and kernels, behind the channels
    shape: str

    def _take_delays(
        self, max_delay: int, interpolation: str, delay_init: DelayInit | None, step_mode: bool
    ) -> None:
        """The part of the constructor that comes after the plain layer's own."""
        is_count = isinstance(max_delay, int) and not isinstance(max_delay, bool) and max_delay >= 0
        require(is_count, "max_delay", "be an integer >= 0, in steps", max_delay, "Round it up.")
        names = ", ".join(map(repr, INTERPOLATIONS))
        known = interpolation in INTERPOLATIONS
        require(known, "interpolation", f"be one of {names}", interpolation, "'linear' has a gradient.")
        self.max_delay, self.interpolation, self.step_mode = max_delay, interpolation, step_mode
        self.history: Tensor | None = None
        self._kernels = KernelCache()
        self.delay = nn.Parameter(_initial_delay(self.weight, max_delay, delay_init))

    def forward(self, x: Tensor) -> Tensor:
        """`step`, or `sequence` if ``step_mode`` is False."""
        return self.step(x) if self.step_mode else self.sequence(x)

    def step(self, x: Tensor) -> Tensor:
        """The output at one time step, which is added to the history.

        An input of another shape (another batch, say) begins a new history, as it does with
        the membranes of snntorch.

        Args:
            x: what the plain layer takes.
        """
        self._require_input(x, 0)
        latest = x.unsqueeze(self.time_dim)
        window = torch.cat([self._history_for(latest), latest], self.time_dim)
        self.history = window.narrow(self.time_dim, 1, self.max_delay)
        kernel = self._kernels.get((self.weight, self.delay), self._kernel)
        return self._respond(window, kernel)

    def sequence(self, x: Tensor) -> Tensor:
        """The output at all time steps; the history is neither read nor written.

        Args:
            x: ``[T, ...]``, where ... is what the plain layer takes.
        """
        self._require_input(x, 1)
        before = x.new_zeros(self.max_delay, *x.shape[1:])
        window = torch.cat([before, x]).movedim(0, self.time_dim)
        return self._convolve(window, self._kernel()).movedim(self.time_dim, 0).contiguous()

    def reset(self) -> None:
        """Forgets the inputs of the past: call it before each new sequence of steps."""
        self.history = None
        self._kernels.forget()

    def detach(self) -> None:
        """Cuts the history off its graph, for truncated backpropagation through time."""
        self.history = None if self.history is None else self.history.detach()
        self._kernels.forget()

    @torch.no_grad()
    def clamp_delay_(self) -> None:
        """Puts the delays inside ``[0, max_delay]``: call it after ``optimizer.step()``.

        Without it a delay that an optimizer has pushed outside acts as the limit all the
        same, but takes as long to come back.
        """
        self.delay.clamp_(0, self.max_delay)

    @abstractmethod
    def _respond(self, window: Tensor, kernel: Tensor) -> Tensor:
        """The output for a window of ``max_delay + 1`` steps."""

    @abstractmethod
    def _convolve(self, window: Tensor, kernel: Tensor) -> Tensor:
        """The outputs, along ``time_dim``, for a window of more steps."""

    @abstractmethod
    def _fits(self, shape: torch.Size) -> bool:
        """Whether the shape is one that the plain layer takes."""

    def _kernel(self) -> Tensor:
        interpolation = INTERPOLATIONS[self.interpolation]
        return delay_kernel(self.weight, self.delay, self.max_delay + 1, interpolation, dim=self.time_dim)

    def _history_for(self, latest: Tensor) -> Tensor:
        history, dim = self.history, self.time_dim
        shape = list(latest.shape)
        shape[dim] = self.max_delay
        if history is None or list(history.shape) != shape or history.device != latest.device:
            return latest.new_zeros(shape)
        return history

    def _require_input(self, x: Tensor, times: int) -> None:
        if x.ndim <= times or not self._fits(x.shape[times:]) or 0 in x.shape[:times]:
            self._refuse_input(x, times)

    def _refuse_input(self, x: Tensor, times: int) -> NoReturn:
        wanted, other = ("[T, " + self.shape[1:], "step") if times else (self.shape, "sequence")
        raise ArgumentError(
            f"`x` should have the shape {wanted}, T > 0. Found shape {list(x.shape)}. "
            f"If it is no {'sequence' if times else 'single step'}, call `{other}` or change `step_mode`."
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.history = None if self.history is None else fn(self.history)
        self._kernels.forget()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # copies and pickles have no graph
        return self.__dict__ | {"history": None if self.history is None else self.history.detach()}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, max_delay={self.max_delay}, interpolation={self.interpolation!r}"

    @classmethod
    def _around(cls, layer: nn.Linear | nn.Conv2d, delay_init: DelayInit, **options: Any) -> Self:
        """Built with these options, but with the Parameters of a plain layer, which stay what they are."""
        parameters = {name: getattr(layer, name) for name in ("weight", "bias")}
        for name, value in parameters.items():
            plain = value is None or type(value) is nn.Parameter
            show = f"`{name}` of {type(layer).__name__}, which is none"
            remedy = "Remove its parametrization, pruning or old-style norm; run a lazy layer first."
            require(plain, "layer", "have plain Parameters", None, remedy, show=show)
        delayed = cls(bias=layer.bias is not None, device="meta", **options)
        for name, value in parameters.items():
            delayed.register_parameter(name, value)
        delayed.delay = nn.Parameter(_initial_delay(layer.weight, delayed.max_delay, delay_init))
        return delayed.train(layer.training)


def _initial_delay(weight: Tensor, max_delay: int, init: DelayInit | None) -> Tensor:
    delay = torch.empty_like(weight, requires_grad=False)
    with torch.no_grad():
        if init is None:
            return delay.uniform_(0, max_delay)
        drawn = init(delay) if callable(init) else init
        remedy = "Let the function return the delays, as those of torch.nn.init do."
        require(drawn is not None, "delay_init", "return a tensor", None, remedy)
        delay.copy_(torch.as_tensor(drawn))
    inside = delay.is_meta or bool(((delay >= 0) & (delay <= max_delay)).all())
    show = None if inside else f"values from {delay.min():g} to {delay.max():g}"
    remedy = "Raise `max_delay`, or clamp what it draws."
    require(inside, "delay_init", f"be within [0, {max_delay}]", None, remedy, show=show)
    return delay
