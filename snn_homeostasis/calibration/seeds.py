"""Seeds: the output of a layer carries a derivative by a common shift of its parameter."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils._pytree import tree_map_only  # knows all containers of arguments; no public path yet
from torch.utils.hooks import RemovableHandle

from ..cells import Unit

__all__ = ["parts_of", "seed", "seeds_carried", "without_derivatives"]

dual: Any = forward_ad  # its functions have no types


@contextmanager
def seeds_carried() -> Iterator[None]:
    """Lets tensors carry derivatives inside the body."""
    with dual.dual_level():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            # the first call in a process imports what torch itself has deprecated
            dual.make_dual(torch.zeros(()), torch.zeros(()))
        yield


def parts_of(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns the values of a tensor and the derivative that it carries, or None."""
    parts = dual.unpack_dual(tensor)
    return parts.primal, parts.tangent


def without_derivatives(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Strips the arguments of a call of their derivatives, which a surrogate cannot pass on."""
    args, kwargs = tree_map_only(Tensor, lambda each: parts_of(each)[0], (args, kwargs))
    return args, kwargs


def seed(unit: Unit, relative: bool) -> RemovableHandle:
    """Gives the outputs of a unit's layer, or of its norm, the derivative by a shift of its parameter."""
    connection = unit.connection
    if unit.state.param == "weight":
        return connection.layer.register_forward_hook(_ByWeight(unit, relative), with_kwargs=True)
    owner = connection.layer if connection.norm is None else connection.norm
    return owner.register_forward_hook(_by_bias)


def _by_bias(module: nn.Module, args: Any, output: Any) -> Any:
    if not isinstance(output, Tensor):
        return None
    value, before = parts_of(output)
    ones = torch.ones_like(value)
    return dual.make_dual(value, ones if before is None else before + ones)


class _ByWeight:
    """Runs a layer again, with a derivative of 1, or of its size, at each entry of its weight."""

    def __init__(self, unit: Unit, relative: bool) -> None:
        self.relative = relative
        reference = unit.slot.reference
        named = reference.module.named_parameters(recurse=False)
        self.name = next(name for name, value in named if value is reference.plain)
        self._is_running = False

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self._is_running:
            return None
        self._is_running = True
        try:
            weight = getattr(module, self.name).detach()
            direction = weight.abs() if self.relative else torch.ones_like(weight)
            shifted = {self.name: dual.make_dual(weight, direction)}
            return functional_call(module, shifted, args, kwargs)
        finally:
            self._is_running = False
