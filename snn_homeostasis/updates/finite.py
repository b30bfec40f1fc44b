"""Checks that tensors are finite, all of them at once."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..errors import NonFiniteError

__all__ = ["require_finite"]


def require_finite(tensors: Sequence[Tensor | None], describe: Callable[[], Iterable[str]]) -> None:
    """Raises NonFiniteError if a tensor holds NaN or infinity; waits for the device once.

    Only then it asks ``describe`` for one phrase per tensor or None, which says whose it is.
    """
    # a finite sum has finite terms, and costs one pass and no memory
    sums = [tensor.sum(dtype=torch.float32) for tensor in tensors if tensor is not None]
    if not sums:
        return
    try:
        total = torch.stack(sums)
    except RuntimeError:  # from several devices: to compare them first would slow every step
        total = torch.stack([each.to(sums[0].device) for each in sums])
    if math.isfinite(total.sum().item()):
        return
    pairs = zip(describe(), tensors, strict=True)
    wrong = [phrase for phrase, tensor in pairs if tensor is not None and not tensor.isfinite().all()]
    if wrong:
        raise NonFiniteError(
            "rates, membranes and updates should be finite. Found NaN or infinity in cell "
            f"{', '.join(dict.fromkeys(wrong))}. No parameter was changed: mend the data, reset the "
            "neurons and call `clear()`."
        )
