"""Checks that tensors are finite, all of them at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..layers import local

__all__ = ["require_finite"]


def require_finite(tensors: Sequence[tuple[str, str, Tensor | None]]) -> None:
    """Raises `NonFiniteError` if a tensor holds NaN or infinity; waits for the device once.

    Args:
        tensors: the name of the cell, what the tensor is, and the tensor; None is left out.

    Raises:
        NonFiniteError: naming every cell with such a tensor.
    """
    pieces = [(cell, what, local(tensor)) for cell, what, tensor in tensors if tensor is not None]
    if not pieces:
        return
    device = pieces[0][2].device
    # a finite sum has finite terms, and costs one pass and no memory
    sums = torch.stack([piece.sum(dtype=torch.float32).to(device) for _, _, piece in pieces])
    if math.isfinite(sums.sum().item()):
        return
    flags = [bool(piece.isfinite().all()) for _, _, piece in pieces]
    wrong = [f"{cell!r} ({what})" for (cell, what, _), fine in zip(pieces, flags, strict=True) if not fine]
    if wrong:
        raise NonFiniteError(
            "rates, membranes and updates should be finite. Found NaN or infinity in cell "
            f"{', '.join(dict.fromkeys(wrong))}. No parameter was changed: mend the data, reset the "
            "neurons and call `clear()`."
        )
