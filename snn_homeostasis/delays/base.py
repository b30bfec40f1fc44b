"""The base of the delayed layers: the delays, the history of inputs, and the two ways to call."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, require
from .interpolation import INTERPOLATIONS, delay_kernel
from .kernels import KernelCache

__all__ = ["DelayInit", "DelayedLayer"]

DelayInit = float | Tensor | Callable[[Tensor], Tensor]


class DelayedLayer(nn.Module):
    """A plain layer with a delay for each weight: the base of `DelayedLinear` and `DelayedConv2d`.

    `step` takes one time step and remembers the last ones; `sequence` takes all at once and
    remembers nothing. The name of the method decides, never the shape of the input.

    Attributes:
        delay: in steps, one for each weight. Outside ``[0, max_delay]`` it acts as the limit.
        history: the last ``max_delay`` inputs, or None.
        max_delay, interpolation, step_mode: as in `DelayedLinear`.

    >>> from snn_homeostasis import DelayedLinear
    >>> layer = DelayedLinear(4, 2, max_delay=3)
    >>> x = torch.rand(10, 8, 4)  # [T, B, in_features]
    >>> outputs = torch.stack([layer.step(each) for each in x])
    >>> torch.allclose(outputs, layer.sequence(x), atol=1e-6)
    True
    """

    weight: Tensor
    delay: nn.Parameter
    time_dim: ClassVar[int]  # of windows and kernels, counted from behind
    shape: ClassVar[str]
    copies: ClassVar[str]  # attributes of the plain layer

    def _take_delays(self, max_delay: int, mode: str, delay_init: DelayInit | None, step_mode: bool) -> None:
        """Completes the constructor after the constructor of the plain layer."""
        is_count = isinstance(max_delay, int) and not isinstance(max_delay, bool) and max_delay >= 0
        require(is_count, "max_delay", "be an integer >= 0", max_delay, "Give whole steps, such as 16.")
        kinds, remedy = ", ".join(map(repr, INTERPOLATIONS)), "Choose 'linear' to train the delays."
        require(mode in INTERPOLATIONS, "interpolation", f"be one of {kinds}", mode, remedy)
        self.max_delay, self.interpolation, self.step_mode = max_delay, mode, step_mode
        self.history: Tensor | None = None
        self._kernels = KernelCache()
        self.delay = nn.Parameter(_initial_delay(self.weight, max_delay, delay_init))

    def forward(self, x: Tensor) -> Tensor:
        """Calls `step`, or `sequence` if ``step_mode`` is False."""
        return self.step(x) if self.step_mode else self.sequence(x)

    def step(self, x: Tensor) -> Tensor:
        """Returns the output at one time step; an input of another shape than before begins a new history.

        Args:
            x: the input of the plain layer.

        Raises:
            ArgumentError: if the plain layer takes no input of this shape.
        """
        self._require_input(x, 0)
        latest, history = x.unsqueeze(self.time_dim), self.history
        sizes = enumerate(latest.shape, -latest.dim())  # torch 2.6 does not compile `shape[time_dim] = ...`
        shape = [self.max_delay if dim == self.time_dim else size for dim, size in sizes]
        if history is None or list(history.shape) != shape or history.device != x.device:
            history = x.new_zeros(shape)
        window = torch.cat([history, latest], self.time_dim)
        self.history = window.narrow(self.time_dim, 1, self.max_delay)
        return self._respond(window, self._kernels.get((self.weight, self.delay), self._kernel))

    def sequence(self, x: Tensor) -> Tensor:
        """Returns the outputs at all time steps; neither reads nor writes the history.

        Args:
            x: ``[T, ...]``, with ... the input of the plain layer and T > 0.

        Raises:
            ArgumentError: if T is 0, or if the plain layer takes no input of this shape.
        """
        self._require_input(x, 1)
        before = x.new_zeros(self.max_delay, *x.shape[1:])
        window = torch.cat([before, x]).movedim(0, self.time_dim)
        return self._convolve(window, self._kernel()).movedim(self.time_dim, 0).contiguous()

    def reset(self) -> None:
        """Forgets the past inputs; call it before each new sequence of steps."""
        self.history = None
        self._kernels.forget()

    def detach(self) -> None:
        """Cuts the history off its graph, for truncated backpropagation through time."""
        self.history = None if self.history is None else self.history.detach()
        self._kernels.forget()

    @torch.no_grad()
    def clamp_delay_(self) -> None:
        """Puts the delays inside ``[0, max_delay]``; call it after ``optimizer.step()``."""
        self.delay.clamp_(0, self.max_delay)

    @abstractmethod
    def _respond(self, window: Tensor, kernel: Tensor) -> Tensor:
        """Returns the output for a window of ``max_delay + 1`` steps."""

    @abstractmethod
    def _convolve(self, window: Tensor, kernel: Tensor) -> Tensor:
        """Returns the outputs, along ``time_dim``, for a longer window."""

    @abstractmethod
    def _accepts(self, shape: torch.Size) -> bool:
        """Whether the plain layer takes an input of this shape."""

    def _kernel(self) -> Tensor:
        return delay_kernel(self.weight, self.delay, self.max_delay, self.interpolation, dim=self.time_dim)

    def _require_input(self, x: Tensor, times: int) -> None:
        if x.ndim > times and self._accepts(x.shape[times:]) and 0 not in x.shape[:times]:
            return
        wanted = self.shape.replace("[", "[T, ") + ", T > 0" if times else self.shape
        found, other = ("sequence", "step") if times else ("single step", "sequence")
        raise ArgumentError(
            f"`x` should have the shape {wanted}. Found shape {list(x.shape)}. "
            f"If it is no {found}, call `{other}` or change `step_mode`."
        )

    # `_apply` serves `to`, `half`, `cuda` …; a buffer would follow them too, but DDP would broadcast it.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.history = None if self.history is None else fn(self.history)
        self._kernels.forget()
        return self

    def __getstate__(self) -> dict[str, Any]:
        history = None if self.history is None else self.history.detach()  # torch pickles no graph
        return self.__dict__ | {"history": history, "_kernels": KernelCache()}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, max_delay={self.max_delay}, interpolation={self.interpolation!r}"

    @classmethod
    def _from_plain(cls, layer: nn.Linear | nn.Conv2d, *delays: Any) -> Self:
        """Builds a layer with the Parameters of a plain layer, and with the arguments of `_take_delays`."""
        for name in ("weight", "bias"):
            value = getattr(layer, name)
            plain = value is None or type(value) is nn.Parameter
            show = f"`{name}` of {type(layer).__name__}, a {type(value).__name__}"
            remedy = "Remove its parametrization, pruning or old-style norm; run a lazy layer first."
            require(plain, "layer", "have plain Parameters", None, remedy, show=show)
        options = {name: getattr(layer, name) for name in cls.copies.split()}
        delayed = cls(**options, bias=layer.bias is not None, max_delay=0, device="meta")
        for name in ("weight", "bias"):
            setattr(delayed, name, getattr(layer, name))
        delayed._take_delays(*delays)
        return delayed.train(layer.training)


@torch.no_grad()
def _initial_delay(weight: Tensor, max_delay: int, init: DelayInit | None) -> Tensor:
    delay = torch.empty_like(weight)
    if init is None:
        return delay.uniform_(0, max_delay)
    drawn = init(delay) if callable(init) else init
    remedy = "Return the delays from the function, as `torch.nn.init.ones_` does."
    require(drawn is not None, "delay_init", "return a tensor", None, remedy)
    delay.copy_(torch.as_tensor(drawn))
    inside = delay.is_meta or bool(((delay >= 0) & (delay <= max_delay)).all())
    show = None if inside else f"values from {delay.min():g} to {delay.max():g}"
    remedy = "Clamp the values, or raise `max_delay`."
    require(inside, "delay_init", f"be within [0, {max_delay}]", None, remedy, show=show)
    return delay
