"""Tensors that come and go with use, are saved when present, and never lose precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .errors import HomeostasisError

__all__ = ["NoCopy", "StepCount", "TensorState"]


class NoCopy:
    """What holds hooks on one model, and can be neither copied nor pickled."""

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self._refuse("copied")

    def __reduce__(self) -> NoReturn:
        self._refuse("pickled")

    def _refuse(self, how: str) -> NoReturn:
        raise HomeostasisError(
            f"`{type(self).__name__}` should not be {how}: it holds hooks on the modules of one model. "
            "Attach a new one to the other model and load this one's `state_dict()` into it."
        )


class StepCount:
    """Counts steps without waiting for the device.

    The count is a Python number. Inside a compiled graph, where a changing number would be
    compiled anew at every step, it is a tensor.

    Attributes:
        number: of the steps outside of compiled graphs.
        tensor: of the steps inside them, or None.
        take: an operation that takes in one step, for whoever then adds 1 to ``number``; or None.
        due: from this ``number`` on, ``take`` has to be made anew.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.tensor: Tensor | None = None
        self.take: Callable[[Tensor], object] | None = None
        self.due: float = math.inf

    @property
    def total(self) -> int:
        """All steps."""
        return self.number if self.tensor is None else self.number + int(self.tensor)

    def add(self, steps: int, device: torch.device) -> None:
        """Counts some steps, of spikes on a device."""
        if not torch.compiler.is_dynamo_compiling():
            self.number += steps
            return
        with torch.inference_mode(False):
            old = torch.zeros((), dtype=torch.int64) if self.tensor is None else self.tensor
            self.tensor = old.to(device)
        self.tensor.add_(steps)

    def __getstate__(self) -> dict[str, Any]:
        # it leads to the tensors of the original, and need not be one that can be pickled
        return vars(self) | {"take": None}


class TensorState(nn.Module):
    """A module whose buffers may be ``None`` and change their shape while it is used.

    Three things differ from a plain module. Loading takes the tensors that the
    checkpoint has, whatever shape they have here, so that a fresh object and a used one
    load alike under ``strict=True``. The integers named in `counters` are saved beside
    the tensors. Conversions move tensors between devices but never change their dtype,
    because a rate in half precision stops moving.
    """

    counters: tuple[str, ...] = ()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.counters:
            destination[prefix + name] = torch.tensor(getattr(self, name))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, old in self._buffers.items():
            saved = state_dict.get(prefix + name)
            device = None if old is None else old.device
            self._buffers[name] = None if saved is None else _lasting(saved.detach(), device)
        for name in self.counters:
            if prefix + name in state_dict:
                setattr(self, name, int(state_dict[prefix + name]))
            else:
                missing_keys.append(prefix + name)
        own = {key for key in state_dict if key.startswith(prefix) and "." not in key[len(prefix) :]}
        known = {prefix + name for name in (*self._buffers, *self.counters)}
        unexpected_keys.extend(own - known)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TensorState:
        for name, tensor in self._buffers.items():
            if tensor is not None:
                self._buffers[name] = _lasting(tensor, fn(tensor).device)
        return self


@torch.inference_mode(False)
def _lasting(tensor: Tensor, device: torch.device | None) -> Tensor:
    """A copy that can be changed in place, also if this runs in inference mode."""
    return tensor.to(device, copy=True)
