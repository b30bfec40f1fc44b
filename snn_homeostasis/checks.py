"""Checks that raise in the common mould."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .errors import ArgumentError, HomeostasisWarning, NonFiniteError
from .layers.sharded import is_sharded, local

__all__ = ["Agreement", "is_finite", "require", "require_finite", "warn"]

Agreement = Callable[[Tensor, Sequence[Tensor]], Tensor]


def require(
    condition: bool, name: str, expected: str, found: object, remedy: str, *, show: str | None = None
) -> None:
    """Raise `ArgumentError` in the common mould unless ``condition`` holds.

    Args:
        condition: what has to be true.
        name: the argument's name.
        expected: what it should be, read after "`name` should".
        found: its value.
        remedy: a sentence that says what to do.
        show: what to print in place of ``name = found``.

    Raises:
        ArgumentError: if ``condition`` is false.
    """
    if not condition:
        seen = show if show is not None else f"`{name} = {found!r}`"
        raise ArgumentError(f"`{name}` should {expected}. Found {seen}. {remedy}")


def is_finite(tensor: Tensor) -> bool:
    """Whether the sum of a tensor is finite, and so all of it; waits for the device."""
    return math.isfinite(_sum(tensor).item())


def _sum(tensor: Tensor) -> Tensor:
    return tensor.sum(dtype=torch.float32)


def require_finite(tensors: Sequence[tuple[str, str, Tensor | None]], agree: Agreement | None = None) -> None:
    """Raise `NonFiniteError` if a tensor holds NaN or infinity; waits for the device once.

    Args:
        tensors: name of the cell, what it is, and the tensor; None is left out.
        agree: makes flags about the tensors false that are false in another process.

    Raises:
        NonFiniteError: naming every cell with such a tensor.
    """
    present = [(cell, what, tensor) for cell, what, tensor in tensors if tensor is not None]
    if not present:
        return
    device = present[0][2].device
    # finite sums take one pass and no memory; only otherwise is it looked for where the fault is
    is_spread = any(is_sharded(tensor) for _, _, tensor in present)
    if not is_spread and is_finite(torch.stack([_sum(tensor).to(device) for _, _, tensor in present])):
        return
    fine = torch.stack([local(tensor).isfinite().all().to(device) for _, _, tensor in present])
    if agree is not None:
        fine = agree(fine, [tensor for _, _, tensor in present])
    flags = fine.tolist()
    wrong = [f"{cell!r} ({what})" for (cell, what, _), fine in zip(present, flags, strict=True) if not fine]
    if wrong:
        raise NonFiniteError(
            "rates, membranes and updates should be finite. Found NaN or infinity in cell "
            f"{', '.join(dict.fromkeys(wrong))}. No parameter was changed: mend the data, reset the "
            "neurons and call `clear()`."
        )


def warn(message: str) -> None:
    """Warn with a `HomeostasisWarning` that points at the user's line, however deep it arose."""
    package, level = str(Path(__file__).parent), 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, HomeostasisWarning, stacklevel=level)
