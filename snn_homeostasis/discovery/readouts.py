"""Readouts: neurons whose membrane is the result. They are left out unless the user names them."""

from collections.abc import Sequence

from torch import nn

from ..observe import threshold_without_reset
from .links import Link

__all__ = ["UNUSED", "out_of_reach", "without_readouts"]

# How many times the largest membrane of the example; a silent hidden layer is nearer to its threshold.
FAR = 10.0
# Without an example the inputs may be large, such as pixels up to 255.
BEYOND_ALL = 1000.0

UNUSED = "its spikes reach neither a layer nor what the model returns"


def out_of_reach(neuron: nn.Module, peak: float | None = None) -> str | None:
    """Why a neuron cannot spike, or None; ``peak`` is the largest membrane of a run, if there was one."""
    threshold = threshold_without_reset(neuron)
    limit = BEYOND_ALL if peak is None else FAR * max(peak, 1.0)
    if threshold is None or threshold < limit:
        return None
    return f"it has no reset, and its threshold of {threshold:g} is out of reach"


def without_readouts(links: Sequence[Link]) -> tuple[list[Link], list[str]]:
    """The links without those of readouts, and a note on each readout; if all are, that is their problem."""
    reasons = {link.neuron: link.readout for link in links if link.readout is not None}
    remedy = "To regulate it, name in `include=` all that you want, or its layer in `pairs=`."
    kept = [link for link in links if link.readout is None]
    if reasons and not kept:
        return [Link(path, problem=f"a readout, since {why}. {remedy}") for path, why in reasons.items()], []
    return kept, [f"Left out: the readout `{path}`, since {why}. {remedy}" for path, why in reasons.items()]
