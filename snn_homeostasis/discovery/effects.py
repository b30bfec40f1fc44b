"""What is added to a weight, and whether the output of its layer rises with it."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Connection

__all__ = ["Effect", "effect_of_weight"]

# Rounding leaves less than this of what a standardised weight cancels.
CANCELLED = 1e-3
# So much has to rise: inputs of which a tenth is negative leave 0.8.
RISING = 0.8


@dataclass(frozen=True)
class Effect:
    """How the output of a layer follows an addition to whole rows of its weight, on an example.

    Args:
        share: what rises less what falls, as a share of both: 1 for inputs without negative values.
        reach: what is left of both after the additions to the entries of a row cancel one another.
    """

    share: float
    reach: float

    @property
    def is_cancelled(self) -> bool:
        """Whether the layer cancels what is added to a row."""
        return self.reach < CANCELLED

    @property
    def is_doubtful(self) -> bool:
        """Whether a notable part of the output falls."""
        return self.share < RISING


@torch.enable_grad()
def effect_of_weight(connection: Connection, outputs: Iterable[Tensor]) -> Effect | None:
    """Differentiates some outputs of a layer by its weight; None if that tells nothing."""
    reference = connection.references.get("weight")
    weight = None if reference is None else reference.plain
    if weight is None or connection.gates > 1:  # gates need not raise the output
        return None
    rising = reaching = total = 0.0
    for output in outputs:
        with suppress(RuntimeError, IndexError):  # a model may change its weight in place in the run
            (slope,) = torch.autograd.grad(output.sum(), weight, retain_graph=True)
            slope = slope.to(torch.promote_types(slope.dtype, torch.float32))
            row = connection.postsyn_receptive(output[:1].detach())[0, ..., 0]
            rows = slope.sum_to_size(row.shape)
            rising += float(rows.sum())
            reaching += float(rows.abs().sum())
            total += float(slope.abs().sum())
    return Effect(rising / total, reaching / total) if total else None
