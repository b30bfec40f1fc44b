"""Times calls side by side: what one costs over another, and whether the figure is reliable."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch

__all__ = ["Call", "Timings", "now", "repeated", "side_by_side"]

Call = Callable[[], object]

CONTROL = "control"
WARM_UP = 3
TOLERANCE = 0.02  # a control off by more makes all figures of its run void


def now() -> float:
    """Reads a clock, in seconds.

    On a CPU it is the time of this thread, which other processes hardly lengthen; on a GPU it is the
    time at which all work so far is done.
    """
    if torch.get_default_device().type == "cpu":
        return time.thread_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Timings:
    """Seconds of several calls, round by round; in each round they ran in random order.

    Attributes:
        seconds: name → one number per round. The first name is the base; "control" is the
            base a second time, and its difference from the base is pure noise.
    """

    seconds: Mapping[str, Sequence[float]]

    @property
    def base(self) -> str:
        """The name of the call that all others are compared with."""
        return next(iter(self.seconds))

    def ratio(self, name: str, other: str | None = None) -> float:
        """The seconds of a call over those of ``other`` (the base): median ratio over rounds."""
        pairs = zip(self.seconds[name], self.seconds[other or self.base], strict=True)
        return statistics.median(one / two for one, two in pairs)

    def overhead(self, name: str) -> float:
        """The seconds that a call adds to the base, as a share of the base."""
        return self.ratio(name) - 1

    def added(self, name: str, other: str | None = None) -> float:
        """The seconds that a call takes beyond ``other`` (the base): median over rounds."""
        pairs = zip(self.seconds[name], self.seconds[other or self.base], strict=True)
        return statistics.median(one - two for one, two in pairs)

    def median(self, name: str) -> float:
        """Seconds of a call."""
        return statistics.median(self.seconds[name])

    @property
    def control(self) -> float:
        """The overhead of the base over itself."""
        return self.overhead(CONTROL)

    @property
    def is_void(self) -> bool:
        """Whether the machine was too busy for the figures to mean anything."""
        return CONTROL in self.seconds and abs(self.control) > TOLERANCE

    def skip_if_void(self) -> None:
        """Leaves a test without a verdict if the figures are void."""
        if self.is_void:
            pytest.skip(f"void: the control is off by {self.control:+.1%}")


def side_by_side(
    calls: Mapping[str, Call],
    *,
    rounds: int = 20,
    before: Mapping[str, Call] | None = None,
    clock: Callable[[], float] | None = None,
) -> Timings:
    """Times calls in rounds, each round in a new random order.

    Args:
        calls: name → what to time, the base first. A "control" does the same as the base, on
            data of its own.
        rounds: how many count, after a few that warm up.
        before: name → what runs before that call, untimed.
        clock: by default `now`.
    """
    clock = clock or now
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for number in range(-WARM_UP, rounds):
            for name in random.sample(list(calls), len(calls)):
                (before or {}).get(name, _nothing)()
                start = clock()
                calls[name]()
                stop = clock()
                if number >= 0:
                    seconds[name].append(stop - start)
    finally:
        gc.enable()
    return Timings(seconds)


def _nothing() -> None: ...


def repeated(call: Call, times: int) -> Call:
    """Repeats a call until a clock can measure it."""

    def calls() -> None:
        for _ in range(times):
            call()

    return calls
