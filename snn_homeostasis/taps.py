"""A tap on a neuron: a forward hook that hands its spikes on, and only looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import ArgumentError, NoSpikesError
from .neurons import admit_neuron, binary_factor, membrane_of, spikes_of
from .wrappers import group_in_forward

__all__ = ["SpikeListener", "SpikeTap"]


class SpikeListener(Protocol):
    """What a tap hands spikes to."""

    def __call__(self, spikes: Tensor, /) -> None: ...


class SpikeTap:
    """Observes one neuron module while it is in training mode.

    Args:
        module: the user's neuron; it is neither wrapped nor changed.
        check: called with the shape ``[T, B, *N]`` whenever it differs from the last one.

    Raises:
        UnsupportedNeuronError: for a neuron that emits no spikes.
    """

    def __init__(self, module: nn.Module, check: Callable[[torch.Size], None]) -> None:
        admit_neuron(module)
        self.module = module
        self.listeners: list[SpikeListener] = []
        self.calls = 0
        self.frozen_calls = 0
        self.membrane: Tensor | None = None
        self.group: Any = None  # of the processes that share the batch, as far as it is known
        self._check = check
        self._read = spikes_of.dispatch(type(module))
        self._read_membrane = membrane_of.dispatch(type(module))
        self._shape: torch.Size | None = None
        self._last: Tensor | None = None
        self._handle: RemovableHandle | None = None
        self._look_at_factor()

    @property
    def spike(self) -> Tensor:
        """The spikes of the last observed step, ``[B, *N]``, boolean.

        Raises:
            NoSpikesError: before the first observation.
        """
        if self._last is None:
            raise NoSpikesError(
                f"`spike` should be read after {type(self.module).__name__} has run in training "
                "mode. Found no observation. Run the model first."
            )
        return self._last[-1] != 0

    @property
    def neurons(self) -> torch.Size | None:
        """The shape ``*N`` of the neurons, None before the first call."""
        return None if self._shape is None else self._shape[2:]

    @property
    def samples(self) -> int:
        """The number of samples in the last call; 0 before the first."""
        return 0 if self._shape is None else self._shape[1]

    def open(self) -> None:
        """Puts the hook on the neuron, if it is not there."""
        if self._handle is None:
            self._handle = self.module.register_forward_hook(self, with_kwargs=True)

    def close(self) -> None:
        """Takes the hook off and lets go of the last observation."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._last = self.membrane = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not module.training:
            self.frozen_calls += 1
            return
        if self.group is None:
            self.group = group_in_forward()
        spikes = self._read(module, output)
        if spikes.requires_grad:
            spikes = spikes.detach()
        if spikes.shape != self._shape:
            self._look_at_shape(spikes.shape)
        if spikes.numel() == 0:
            return
        if not self._is_binary():
            spikes = spikes != 0
        self.calls += 1
        self.frozen_calls = 0
        self._last = spikes if len(spikes) == 1 else spikes[-1:].clone()
        inputs = args[0] if args else next(iter(kwargs.values()), None)
        self.membrane = self._read_membrane(module, inputs, output)
        for listener in self.listeners:
            listener(spikes)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        # a copied model must not count into the original's estimates
        return _observe_nothing

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        # a pickled model does not take its observers along
        return _silent, ()

    def _look_at_shape(self, shape: torch.Size) -> None:
        if len(shape) < 3:
            raise ArgumentError(
                f"`input` of {type(self.module).__name__} should have a batch dimension, [B, *N]. "
                f"Found spikes of shape {list(shape[1:])}. Add it with `input.unsqueeze(0)`."
            )
        if 0 not in shape:
            self._check(shape)
        self._shape = shape

    def _is_binary(self) -> bool:
        factor = self.module._buffers.get("graded_spikes_factor")
        if factor is not None and (factor is not self._factor or factor._version != self._factor_version):
            self._look_at_factor()
        return self._binary

    def _look_at_factor(self) -> None:
        factor: Tensor | None = getattr(self.module, "graded_spikes_factor", None)
        self._factor, self._factor_version = factor, -1 if factor is None else factor._version
        self._binary = binary_factor(factor)


def _observe_nothing(*_: Any) -> None:
    """The hook that a copy of an observed model carries."""


def _silent() -> Callable[..., None]:
    return _observe_nothing
