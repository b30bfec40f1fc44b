"""Changes of parameters and surrogates, which an error takes back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import ParameterReference
from ..updates import Bounds, ClampBounds, Slot

__all__ = ["Ledger"]


class Ledger:
    """Writes parameters in place, and surrogates, and knows what they were before the first write."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[ParameterReference, Tensor]] = {}
        self._surrogates: dict[nn.Module, Any] = {}

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Puts all back if the body fails or is interrupted."""
        try:
            yield
        except BaseException:
            self.undo()
            raise

    @torch.no_grad()
    def undo(self) -> None:
        """Puts all back as it was before the first write."""
        for reference, value in self._before.values():
            reference.write(value)
        for neuron, surrogate in self._surrogates.items():
            neuron.spike_grad = surrogate

    def replace_surrogate(self, neuron: nn.Module, surrogate: Any) -> None:
        """Gives a neuron another surrogate."""
        self._surrogates.setdefault(neuron, neuron.spike_grad)
        neuron.spike_grad = surrogate

    def write(self, reference: ParameterReference, value: Tensor) -> None:
        """Gives a layer a new value."""
        self._before.setdefault(id(reference.leaf), (reference, reference.tensor.detach().clone()))
        reference.write(value.to(reference.tensor.dtype))

    def shift(self, slot: Slot, delta: Tensor) -> Tensor:
        """Adds to the parameter of a slot what its bounds let through, and returns that."""
        value = slot.reference.tensor.detach()
        exact = value.to(torch.promote_types(value.dtype, torch.float32))
        allowed = _allowed(slot, exact, delta.to(exact.dtype))
        new = exact + allowed
        if slot.limits is not None:
            slot.limits.clamp_(new)
        added = new - exact  # before `exact` changes, which may be the parameter itself
        self.write(slot.reference, new)
        return added


def _allowed(slot: Slot, value: Tensor, delta: Tensor) -> Tensor:
    bounds = slot.bounds
    if isinstance(bounds, Bounds):  # a soft bound slows steps down, but here it is the end that counts
        bounds = ClampBounds(bounds.min, bounds.max)
    if bounds is None:
        return delta.expand(value.shape)
    return bounds(value, delta.clamp_min(0.0), delta.clamp_max(0.0).abs())
