"""Calls that follow something: a step after an optimizer's step, a release after an owner's end."""

import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Release", "step_after", "when_collected"]

Release: TypeAlias = "weakref.finalize[Any, Any]"


def when_collected(owner: object, call: Callable[..., object], *args: Any) -> Release:
    """Calls something once: when ``owner`` is gone, or earlier by hand."""
    release = weakref.finalize(owner, call, *args)
    release.atexit = False
    return release


def step_after(optimizer: Optimizer, follower: Any) -> Release:
    """Steps ``follower`` after each step of an optimizer, as long as it lives."""
    this = weakref.ref(follower)  # the optimizer must not keep the follower alive

    def step(*_: Any) -> None:
        living = this()
        if living is not None and not _has_skipped(optimizer):
            living.step()

    return when_collected(follower, optimizer.register_step_post_hook(step).remove)


def _has_skipped(optimizer: Optimizer) -> bool:
    # a GradScaler leaves the decision to fused optimizers, whose step then does nothing
    found_inf = getattr(optimizer, "found_inf", None)
    return isinstance(found_inf, Tensor) and bool(found_inf)
