"""Targets: a rate in spikes per step, one for all or one per neuron or sample."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import TypeGuard

import torch
from torch import Tensor

from ..errors import ArgumentError, require
from ..state import Code
from ..updates import broadcasts

__all__ = ["TARGET_CODE", "Target", "check_target", "fit_target", "is_number"]

Target = float | Tensor


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, of Python or NumPy; True and False are none here."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_target(target: Target) -> None:
    """Raises ArgumentError unless a target, or each element of it, is a positive, finite rate."""
    remedy = "It is a rate in spikes per step, for example 0.1: divide Hz by the steps per second."
    if isinstance(target, Tensor):
        positive = target.numel() > 0 and bool(((target > 0) & target.isfinite()).all())
        smallest = target.min().item() if target.numel() else None
        show = None if positive else f"a tensor of shape {list(target.shape)}, smallest {smallest}"
        require(positive, "target", "be > 0 and finite everywhere", None, remedy, show=show)
    else:
        kinds = "Different neurons take a tensor; different cells, `units[name].state.target`."
        require(is_number(target), "target", "be a number or a tensor", target, f"{remedy} {kinds}")
        require(target > 0 and math.isfinite(target), "target", "be > 0", target, remedy)


def fit_target(target: Tensor, rate: Tensor) -> Tensor:
    """Brings a target to the device of a rate ``[B, *N]`` that it broadcasts with, in float32 or better."""
    if target.ndim not in (0, rate.ndim - 1, rate.ndim) or not broadcasts(target, rate):
        raise ArgumentError(
            f"`target` should have the shape {list(rate.shape[1:])} of the neurons, or {list(rate.shape)} "
            f"with the batch. Found shape {list(target.shape)}. Use size 1 where a dimension shares its "
            "target, as in (C, 1, 1)."
        )
    return target.to(rate.device, torch.promote_types(target.dtype, torch.float32))


def _write(target: Target | None) -> tuple[float]:
    """Writes a number; 0 for none, and -1 for a tensor, which a checkpoint holds by itself."""
    return (0.0 if target is None else -1.0 if isinstance(target, Tensor) else target,)


def _read(numbers: Sequence[float], present: Target | None) -> Target | None:
    return present if numbers[0] < 0 else numbers[0] or None


TARGET_CODE = Code(_write, _read)
