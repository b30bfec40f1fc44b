"""What becomes of a contribution once it is the mean over all samples, and not earlier."""

import math
from typing import NamedTuple

from torch import Tensor

__all__ = ["Finish"]


class Finish(NamedTuple):
    """What is done to the two parts of a contribution before they reach a parameter.

    It is not linear. So it waits for the mean over the samples, of all processes: a limit for each
    sample would shift the rate at which a neuron comes to rest.

    Args:
        limit: the largest change, up or down.
        band: if not 0, the parts are the signed pushes of the rate toward the lower and the upper
            edge of a band. The first counts where it raises the rate, the second where it lowers it;
            -1 if the parameter falls where the rate is to rise.
    """

    limit: float = math.inf
    band: int = 0

    def __call__(self, pos: Tensor, neg: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns the parts as they are added to the parameter; one signed part has no second."""
        if self.band and neg is not None:
            rise, fall = pos.clamp_min(0.0), neg.clamp_max(0.0).neg_()
            pos, neg = (rise, fall) if self.band > 0 else (fall, rise)
        if self.limit == math.inf:
            return pos, neg
        if neg is None:
            return pos.clamp(-self.limit, self.limit), None
        # both parts shrink alike: bounds weigh them differently, and neither may vanish alone
        factor = (self.limit / (pos - neg).abs_()).clamp_(max=1.0)
        return pos * factor, neg * factor
