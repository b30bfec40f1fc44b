"""Calls that follow something: a step after an optimizer's step, a release after an owner's end."""

import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .errors import ArgumentError

__all__ = ["Following", "Release", "when_collected"]

Release: TypeAlias = "weakref.finalize[Any, Any]"

# Wrappers whose step ends with a step of the optimizer inside, and where that is. They have no hooks of
# their own. Others are refused, because they may go on: ScheduleFreeWrapper averages the parameters.
INSIDE = {
    "AcceleratedOptimizer": "optimizer",  # accelerate
    "DPOptimizer": "original_optimizer",  # opacus
    "LightningOptimizer": "optimizer",
    "_FabricOptimizer": "optimizer",  # Lightning's Fabric
}


def when_collected(owner: object, call: Callable[..., object], *args: Any) -> Release:
    """Calls something once: when ``owner`` is gone, or earlier by hand."""
    release = weakref.finalize(owner, call, *args)
    release.atexit = False
    return release


class Following:
    """The optimizers whose steps are followed. They keep the follower alive, as users expect who do not."""

    def __init__(self) -> None:
        self._handles: weakref.WeakKeyDictionary[Any, RemovableHandle] = weakref.WeakKeyDictionary()

    def add(self, optimizer: Optimizer, follow: Callable[[], None]) -> None:
        """Calls ``follow`` after each step of an optimizer; raises ArgumentError if that cannot work."""
        optimizer = _innermost(optimizer)
        if optimizer in self._handles:
            raise ArgumentError(
                "`optimizer` should be followed once. Found a second `follow` of the same "
                f"{type(optimizer).__name__}, and each of its steps would count twice. Leave one out."
            )

        def after(stepped: Optimizer, *_: Any) -> None:
            if not _has_skipped(stepped):
                follow()

        try:
            self._handles[optimizer] = optimizer.register_step_post_hook(after)
        except AttributeError:  # a wrapper may be an Optimizer by class alone
            raise ArgumentError(
                "`optimizer` should be an optimizer of torch, with its hooks. Found "
                f"`optimizer = {type(optimizer).__name__}`. Follow the optimizer of the model; if this is a "
                "wrapper around it, call `step()` of the homeostasis after each step of the wrapper."
            ) from None

    def release(self) -> None:
        """Follows none of them any more."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()


def _innermost(optimizer: Any) -> Any:
    """Returns the optimizer inside the wrappers of known tools."""
    for base in type(optimizer).__mro__:
        if base.__name__ in INSIDE:
            return _innermost(getattr(optimizer, INSIDE[base.__name__]))
    return optimizer


def _has_skipped(optimizer: Optimizer) -> bool:
    # a GradScaler leaves the decision to fused optimizers, whose step then does nothing
    found_inf = getattr(optimizer, "found_inf", None)
    return isinstance(found_inf, Tensor) and bool(found_inf)
