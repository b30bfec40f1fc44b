"""Targets: the rates that neurons are held at, one for all or one for each neuron or sample."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, is_number, require
from ..state import Code
from ..updates import broadcasts
from .band import Band

__all__ = [
    "TARGET_CODE",
    "Rate",
    "Target",
    "check_target",
    "draw_target",
    "exceeds",
    "fit_target",
    "targets_of",
]

Rate = float | Tensor
Target = Rate | Band | Callable[[torch.Size], Tensor]

REMEDY = (
    "It is a rate in spikes per step, for example 0.1. Pass `dt`, the seconds per step, to give it in Hz."
)


@singledispatch
def check_target(target: Any) -> None:
    """Raises ArgumentError for a target that is no positive, finite rate, Band or function."""
    if callable(target) and not isinstance(target, type):
        return  # it is drawn once the neurons are known
    kinds = (
        "Different neurons take a tensor; different cells, `attach(model, target={'name': 0.1})`, or "
        "`set(target=..., cells=[...])`."
    )
    require(is_number(target), "target", "be a number or a tensor", target, f"{REMEDY} {kinds}")
    require(target > 0 and math.isfinite(target), "target", "be > 0", target, REMEDY)


@check_target.register
def _(target: Tensor) -> None:
    positive = target.numel() > 0 and bool(((target > 0) & target.isfinite()).all())
    smallest = target.min().item() if target.numel() else None
    show = None if positive else f"a tensor of shape {list(target.shape)}, smallest {smallest}"
    require(positive, "target", "be > 0 and finite everywhere", None, REMEDY, show=show)


@check_target.register
def _(target: Band) -> None:
    """It has checked itself."""


@singledispatch
def exceeds(target: Any, most: float) -> bool:
    """Whether a target, or a part of it, asks for more than a rate."""
    return is_number(target) and target > most


@exceeds.register
def _(target: Tensor, most: float) -> bool:
    return bool((target > most).any())


@exceeds.register
def _(target: Band, most: float) -> bool:
    return target.low is not None and target.low > most


def draw_target(draw: Callable[[torch.Size], Tensor], neurons: torch.Size) -> Tensor:
    """Draws a target for each neuron ``[*N]``; raises ArgumentError for what is none."""
    target = draw(neurons)
    fits = isinstance(target, Tensor) and target.ndim == len(neurons)
    fits = fits and broadcasts(target, torch.empty(neurons, device="meta"))
    show = f"{list(target.shape)}" if isinstance(target, Tensor) else repr(target)
    remedy = "As in `lambda shape: 0.1 * torch.rand(shape) + 0.05`."
    require(fits, "target", f"draw a tensor of shape {list(neurons)}", None, remedy, show=show)
    check_target(target)
    return target


def fit_target(target: Tensor, rate: Tensor) -> Tensor:
    """Brings a target to the device of a rate ``[B, *N]`` that it broadcasts with, in float32 or better."""
    if target.ndim not in (0, rate.ndim - 1, rate.ndim) or not broadcasts(target, rate):
        raise ArgumentError(
            f"`target` should have the shape {list(rate.shape[1:])} of the neurons, or {list(rate.shape)} "
            f"with the batch. Found shape {list(target.shape)}. Use size 1 where a dimension shares its "
            "target, as in (C, 1, 1)."
        )
    return target.to(rate.device, torch.promote_types(target.dtype, torch.float32))


def targets_of(
    settings: dict[str, Any], cells: Iterable[tuple[str, nn.Module]], default: Target | None = None
) -> dict[str, Target]:
    """Takes a target that is a dict out of some settings, and returns the target of each cell.

    The dict is by name of a cell, or by type of its layer. A name goes before a type, and a type
    before those that it derives from; cells that it does not know take the default.

    Raises:
        ArgumentError: for a name or a type that no cell has, or a cell without any target.
    """
    if not isinstance(settings.get("target"), Mapping):
        return {}
    targets = settings.pop("target")
    layers = dict(cells)
    keys = {name: [name, *type(layer).__mro__] for name, layer in layers.items()}
    found = {name: next((key for key in each if key in targets), None) for name, each in keys.items()}
    names = ", ".join(map(repr, layers))
    remedy = f"The cells are {names}."
    for key in targets:
        known = any(key in each for each in keys.values())
        require(known, "target", "name cells, or types of their layers", key, remedy)
    chosen = {name: default if key is None else targets[key] for name, key in found.items()}
    missing = ", ".join(repr(name) for name, target in chosen.items() if target is None)
    expected, remedy = "name a target for every cell", "Give the others one in the constructor."
    require(not missing, "target", expected, None, remedy, show=f"none for {missing}")
    return {name: target for name, target in chosen.items() if target is not None}


NONE, RATES, OTHER = 0.0, 1.0, 2.0


def _write(target: Target | None) -> tuple[float, float, float]:
    """Writes two edges, equal for a number; not a tensor, which a checkpoint holds by itself."""
    if isinstance(target, Band):
        return (RATES, target.low or 0.0, target.high or math.inf)
    if is_number(target):
        return (RATES, target, target)
    return (NONE if target is None else OTHER, 0.0, 0.0)


def _read(numbers: Sequence[float], present: Target | None) -> Target | None:
    kind, low, high = numbers
    if kind != RATES:
        return present if kind == OTHER else None
    return low if low == high else Band(low or None, high if math.isfinite(high) else None)


TARGET_CODE = Code(_write, _read)
