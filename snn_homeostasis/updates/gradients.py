"""Parameters change without a graph."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

__all__ = ["without_gradients"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def without_gradients(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorates like `torch.no_grad`, but enters no context where gradients are off already.

    To enter it takes as long as an operation on a small tensor.
    """

    @wraps(method)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not torch.is_grad_enabled():
            return method(*args, **kwargs)
        with torch.no_grad():
            return method(*args, **kwargs)

    return call
