"""Where the time of a step goes: its parts, each timed where it runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch

from snn_homeostasis import Homeostasis, homeostasis

from .models import Model
from .overheads import attached, rounds_for
from .timing import now

__all__ = ["parts_of_a_step"]

# `step` calls each of these once and looks it up here; no part runs inside another
PARTS: dict[str, tuple[object, str]] = {
    "the rule": (Homeostasis, "forward"),
    "is a graph waiting": (homeostasis, "require_ready"),
    "the changes": (homeostasis, "changes_of"),
    "is all finite": (homeostasis, "require_finite_cells"),
    "the additions": (homeostasis, "apply_changes"),
}
TOTAL = "step()"
WARM_UP = 3


class Stopwatch:
    """Adds up the seconds of some functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., object]) -> Callable[..., object]:
        """Returns the function; each call adds its seconds under the name."""

        def call(*args: object, **kwargs: object) -> object:
            start = now()
            result = function(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + now() - start
            return result

        return call

    @contextmanager
    def running(self) -> Iterator[None]:
        """Times the parts of all steps inside the ``with`` block."""
        with ExitStack() as stack:
            for name, (owner, attribute) in PARTS.items():
                timed = self.timed(name, getattr(owner, attribute))
                stack.enter_context(patch.object(owner, attribute, timed))
            yield


@torch.no_grad()
def parts_of_a_step(model: Model, batch: int) -> dict[str, float]:
    """Median seconds of each part of a ``step()`` right after a step of the net, and of all of it.

    The total also holds the stopwatch, and the few lines between the parts.
    """
    net, x = model.new(), model.inputs(batch, steps=1)[0]
    step = attached(net).step
    found: list[dict[str, float]] = []
    watch = Stopwatch()
    timed = watch.timed(TOTAL, step)
    with watch.running():
        for _ in range(WARM_UP + rounds_for(batch, most=300)):
            net(x)
            watch.seconds = {}
            timed()
            found.append(watch.seconds)
    return {name: statistics.median(each[name] for each in found[WARM_UP:]) for name in (*PARTS, TOTAL)}
