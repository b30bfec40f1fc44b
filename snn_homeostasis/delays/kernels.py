"""A kernel that is kept for as long as nothing that it was built from has changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["KernelCache"]


class KernelCache:
    """Builds a kernel when it has to, and never gives one that is stale.

    The kernel is forgotten in a backward, which frees its graph, and belongs to one state of
    its Parameters and one mode of autograd and autocast. Whatever is no plain Parameter
    (parametrized, pruned, under a transform of `torch.func`) has a kernel of its own at each
    call, as does a compiled graph. Copies and pickles of a cache are empty.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drops the kernel."""
        self._kernel: Tensor | None = None
        self._sources: tuple[_Source, ...] = ()
        self._mode: _Mode | None = None

    def get(self, parameters: tuple[Tensor, ...], build: Callable[[], Tensor]) -> Tensor:
        """The kept kernel, or a new one from ``build`` if it could differ.

        Args:
            parameters: what ``build`` reads.
            build: makes the kernel.
        """
        if torch.compiler.is_compiling() or any(type(each) is not nn.Parameter for each in parameters):
            return build()
        kernel, mode = self._kernel, _Mode.now(parameters[0])
        if kernel is None or mode != self._mode or not self._is_fresh(parameters):
            kernel = build().to(mode.dtype)
            self._keep(kernel, parameters, mode)
        return kernel

    def _is_fresh(self, parameters: tuple[Tensor, ...]) -> bool:
        return all(source.is_still(each) for source, each in zip(self._sources, parameters, strict=True))

    def _keep(self, kernel: Tensor, parameters: tuple[Tensor, ...], mode: _Mode) -> None:
        self._kernel, self._mode = kernel, mode
        self._sources = tuple(map(_Source.of, parameters))
        if kernel.requires_grad:
            this = weakref.ref(self)
            kernel.register_hook(lambda _: _forget(this))  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: object) -> KernelCache:
        return KernelCache()

    def __reduce__(self) -> tuple[type[KernelCache], tuple[()]]:
        return KernelCache, ()


@dataclass(frozen=True)
class _Mode:
    """Whether a graph is recorded, and the dtype in which autocast would have the kernel."""

    records: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, parameter: Tensor) -> _Mode:
        probe = parameter.new_empty(0, 0)
        return cls(torch.is_grad_enabled(), torch.mm(probe, probe).dtype)


@dataclass(frozen=True)
class _Source:
    """What a Parameter was when a kernel was built from it."""

    parameter: Tensor
    version: int
    trained: bool
    values: Tensor | None

    @classmethod
    def of(cls, parameter: Tensor) -> _Source:
        # a change through `.data` has no version; off the CPU, to compare values would be to wait
        values = parameter.detach().clone() if parameter.device.type == "cpu" else None
        return cls(parameter, _version(parameter), parameter.requires_grad, values)

    def is_still(self, parameter: Tensor) -> bool:
        same = parameter is self.parameter and _version(parameter) == self.version
        same = same and parameter.requires_grad == self.trained
        return same and (self.values is None or torch.equal(self.values, parameter))


def _forget(cache: weakref.ref[KernelCache]) -> None:
    this = cache()
    if this is not None:
        this.forget()


def _version(parameter: Tensor) -> int:
    return 0 if parameter.is_inference() else parameter._version
