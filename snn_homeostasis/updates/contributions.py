"""Contributions: what one call of a rule adds to a parameter, and what becomes of it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..layers import ParameterReference, replicate_as

__all__ = ["Contribution", "Finish", "joined"]

MOST = 0.9  # of itself, which an entry may lose in one update: it keeps its sign


class Finish(NamedTuple):
    """What is done to the two parts of a contribution before they reach a parameter.

    It is not linear. So it waits for the mean over the samples, of all processes: a limit for each
    sample would shift the rate at which a neuron comes to rest.

    Args:
        limit: the largest change, up or down.
        band: if not 0, the parts are the signed pushes of the rate toward the lower and the upper
            edge of a band. The first counts where it raises the rate, the second where it lowers it;
            -1 if the parameter falls where the rate is to rise.
        relative: whether the parts are shares of the size of each entry.
    """

    limit: float = math.inf
    band: int = 0
    relative: bool = False

    def __call__(self, pos: Tensor, neg: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns the parts as they are added to the parameter; one signed part has no second."""
        if self.band and neg is not None:
            rise, fall = pos.clamp_min(0.0), neg.clamp_max(0.0).neg_()
            pos, neg = (rise, fall) if self.band > 0 else (fall, rise)
        return (pos, neg) if self.limit == math.inf else _limited(pos, neg, self.limit)


class Contribution(NamedTuple):
    """What one call of a rule adds to a parameter: magnitudes, or one signed part and None."""

    pos: Tensor
    neg: Tensor | None
    samples: int = 1  # over which the parts are reduced
    summed: bool = False  # in place of a mean over the samples
    source: object = None  # the estimator of the rule; None for parts that were added by hand
    finish: Finish | None = None


def joined(
    contributions: Sequence[Contribution], reference: ParameterReference
) -> tuple[Tensor, Tensor | None]:
    """Adds up contributions to a parameter, as they are applied to it."""
    if len(contributions) == 1 and contributions[0].finish is None:
        return contributions[0][:2]
    shares = [each for each in contributions if each.finish is not None and each.finish.relative]
    if not shares:
        return _added(contributions)
    pos, neg = _limited(*_added(shares), MOST)
    size = reference.tensor.detach().abs().to(pos.dtype)
    pos = replicate_as(pos, size) * size
    neg = None if neg is None else replicate_as(neg, size) * size
    others = (each for each in contributions if each.finish is None or not each.finish.relative)
    return _added([Contribution(pos, neg), *others])


def _added(contributions: Sequence[Contribution]) -> tuple[Tensor, Tensor | None]:
    pos, neg = _finished(contributions[0])
    for each in contributions[1:]:
        up, down = _finished(each)
        pos = pos + up.to(pos.device)
        if down is not None:
            neg = down if neg is None else neg + down.to(neg.device)
    return pos, neg


def _finished(each: Contribution) -> tuple[Tensor, Tensor | None]:
    return (each.pos, each.neg) if each.finish is None else each.finish(each.pos, each.neg)


def _limited(pos: Tensor, neg: Tensor | None, limit: float) -> tuple[Tensor, Tensor | None]:
    if neg is None:
        return pos.clamp(-limit, limit), None
    # both parts shrink alike: bounds weigh them differently, and neither may vanish alone
    factor = (limit / (pos - neg).abs_()).clamp_(max=1.0)
    return pos * factor, neg * factor
