"""Whether tensors are finite, told for all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..layers.sharded import is_sharded, local

__all__ = ["Agreement", "is_finite", "require_finite"]

Agreement = Callable[[Tensor, Sequence[Tensor]], Tensor]


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
