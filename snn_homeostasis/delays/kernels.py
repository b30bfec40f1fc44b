"""A cache for the kernel of a layer: one kernel serves all steps until a parameter changes."""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["KernelCache"]


class KernelCache:
    """Keeps a kernel for as long as a new one would be the same, in one mode of autograd and autocast."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._kernel: Tensor | None = None
        self._parameters: tuple[Tensor, ...] = ()  # keeps their ids from being used again
        self._values: list[Tensor] = []
        self._state: tuple[object, ...] = ()

    def get(self, parameters: tuple[Tensor, ...], build: Callable[[], Tensor]) -> Tensor:
        """Returns the kernel, from ``build`` if one of the parameters that it reads may have changed."""
        # not kept: of a parametrized or pruned weight, in a transform of `torch.func`, in a compiled graph
        if torch.compiler.is_compiling() or any(type(each) is not nn.Parameter for each in parameters):
            return build()
        probe = parameters[0].new_empty(0, 0)
        dtype = torch.mm(probe, probe).dtype  # autocast may change it
        state = torch.is_grad_enabled(), dtype, *map(_state, parameters)
        kernel = self._kernel
        if kernel is None or state != self._state or not all(map(torch.equal, self._values, parameters)):
            kernel = self._kernel = build().to(dtype)
            self._parameters, self._state = parameters, state
            # A change through `.data` leaves the version as it is. Off the CPU a comparison would wait.
            self._values = [each.detach().clone() for each in parameters if each.device.type == "cpu"]
            if kernel.grad_fn is not None:
                # A backward frees the graph; a strong reference would make a cycle that nothing collects.
                cache = weakref.ref(self)
                kernel.grad_fn.register_prehook(lambda _: alive.forget() if (alive := cache()) else None)
        return kernel


def _state(parameter: Tensor) -> tuple[int, int, bool]:
    # torch counts changes in place in `_version` alone; a public counter would replace it.
    version = 0 if parameter.is_inference() else parameter._version
    return id(parameter), version, parameter.requires_grad
