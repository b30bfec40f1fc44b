"""A cache for the kernel of a layer: one kernel serves all steps until a parameter changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["KernelCache"]


class KernelCache:
    """Keeps a kernel and returns it for as long as a new one would be the same.

    A kernel belongs to the state of its Parameters and to one mode of autograd and autocast. A
    backward frees the graph of the kernel, so the cache then drops it. A parametrized or pruned
    weight, a transform of `torch.func` and a compiled graph get a new kernel at each call.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drops the kernel."""
        self._kernel: Tensor | None = None
        self._parameters: tuple[Tensor, ...] = ()  # keeps their ids from being used again
        self._values: list[Tensor] = []
        self._state: tuple[object, ...] = ()

    def get(self, parameters: tuple[Tensor, ...], build: Callable[[], Tensor]) -> Tensor:
        """Returns the kernel, from ``build`` if the kept one may differ.

        Args:
            parameters: the tensors that ``build`` reads.
            build: makes the kernel.
        """
        if torch.compiler.is_compiling() or any(type(each) is not nn.Parameter for each in parameters):
            return build()
        probe = parameters[0].new_empty(0, 0)
        dtype = torch.mm(probe, probe).dtype  # autocast may change it
        state = torch.is_grad_enabled(), dtype, *map(_state, parameters)
        kernel = self._kernel
        if kernel is None or state != self._state or not all(map(torch.equal, self._values, parameters)):
            kernel = build().to(dtype)
            self._keep(kernel, parameters, state)
        return kernel

    def _keep(self, kernel: Tensor, parameters: tuple[Tensor, ...], state: tuple[object, ...]) -> None:
        self._kernel, self._parameters, self._state = kernel, parameters, state
        # A change through `.data` leaves the version as it is. Off the CPU a comparison would wait.
        self._values = [each.detach().clone() for each in parameters if each.device.type == "cpu"]
        if kernel.grad_fn is not None:
            # A strong reference would make a cycle through the graph, which Python cannot collect.
            forget = weakref.WeakMethod(self.forget)
            kernel.grad_fn.register_prehook(lambda _: _call(forget))


def _state(parameter: Tensor) -> tuple[int, int, bool]:
    # torch counts changes in place in `_version` alone; a public counter would replace it.
    version = 0 if parameter.is_inference() else parameter._version
    return id(parameter), version, parameter.requires_grad


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    alive = method()
    if alive is not None:
        alive()
