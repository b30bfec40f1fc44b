"""Marks on memory: what a tensor's values come from, whatever was done to them on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "NOTHING",
    "Arrival",
    "Key",
    "Marks",
    "Source",
    "Sources",
    "Spreading",
    "is_whole",
    "shares_memory",
    "tensors_in",
]

aten = torch.ops.aten

Key = tuple[str, str | None, bool]

# their result does not depend on the values that they are given
VALUE_FREE = {
    aten.empty_like, aten.full_like, aten.new_empty, aten.new_empty_strided, aten.new_full, aten.new_ones,
    aten.new_zeros, aten.ones_like, aten.rand_like, aten.randint_like, aten.randn_like, aten.zeros_like,
}  # fmt: skip
# nothing is left of what their first argument held
OVERWRITING = {
    aten.bernoulli_, aten.copy_, aten.exponential_, aten.fill_, aten.geometric_, aten.log_normal_,
    aten.normal_, aten.random_, aten.uniform_, aten.zero_,
}  # fmt: skip
# what makes a layer of a matrix
PRODUCTS = {
    aten._trilinear, aten.addmm, aten.addmv, aten.baddbmm, aten.bmm, aten.convolution, aten.dot,
    aten.embedding, aten.mm, aten.mv,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Source:
    """What a tensor's values come from: a layer, or a weight that is used without its layer.

    Attributes:
        path: of the layer, or of the weight.
        shape: of what the layer put out, or the norm behind it; None for a weight.
        shift: zeros that were added to it, to take derivatives by; None without a graph.
        norm: path of the normalisation behind the layer, or None.
        before: what of the layer reached that norm.
        is_factor: whether a weight was part of a product, as in a layer.
    """

    path: str
    shape: torch.Size | None = None
    shift: Tensor | None = None
    norm: str | None = None
    before: Arrival | None = None
    is_factor: bool = False

    @property
    def key(self) -> Key:
        """What makes two sources the same."""
        return self.path, self.norm, self.is_factor


@dataclass(frozen=True, eq=False)
class Arrival:
    """A source, and the tensor in which it arrived at a neuron or a norm.

    Attributes:
        source: what arrived.
        received: ``[B, *N]``, or ``[T·B, *N]`` at a neuron that takes whole sequences.
        shares: whether its memory holds more than itself, of which the mark may be.
    """

    source: Source
    received: Tensor
    shares: bool = False


Sources = Mapping[Key, Source]
NOTHING: Sources = {}


class Marks:
    """The sources of what each storage holds.

    Views share their storage, and so their marks. A weak reference keeps the address of a
    storage from being used anew, but not its memory.

    Args:
        weights: parameters by path; those with two dimensions or more are sources.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._table: dict[int, tuple[StorageWeakRef, Sources]] = {}
        self._sweep_at = 1024
        for path, weight in weights.items():
            if weight.ndim > 1:
                source = Source(path)
                self.put(weight, {source.key: source})

    def of(self, tensors: Iterable[Tensor]) -> Sources:
        """The sources of the values of some tensors together."""
        found = NOTHING
        for tensor in tensors:
            _, sources = self._table.get(_address(tensor), (None, NOTHING))
            if sources and sources is not found:
                found = {**found, **sources} if found else sources
        return found

    def put(self, tensor: Tensor, sources: Sources) -> None:
        """Replaces what is known of a tensor's storage."""
        address = _address(tensor)
        _, known = self._table.get(address, (None, NOTHING))
        if not address or sources is known:
            return
        if len(self._table) > self._sweep_at:
            self._sweep()
        self._table[address] = StorageWeakRef(tensor.untyped_storage()), sources  # type: ignore[no-untyped-call]

    def spread(self, operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Lets the results of an operation come from what its arguments come from."""
        if operator in VALUE_FREE:
            return
        if operator in OVERWRITING and is_whole(args[0]):
            self.put(args[0], self.of(tensors_in(args[1:])))
            return
        sources = self.of(tensors_in((args, kwargs)))
        if operator in PRODUCTS:
            weights = [replace(each, is_factor=True) for each in sources.values() if each.shape is None]
            sources = {**sources, **{weight.key: weight for weight in weights}}
        if sources:
            for tensor in tensors_in(result):
                self.put(tensor, sources)

    def _sweep(self) -> None:
        alive = [(at, entry) for at, entry in self._table.items() if not entry[0].expired()]  # type: ignore[no-untyped-call]
        self._table = dict(alive)
        self._sweep_at = 2 * len(self._table) + 1024


class Spreading(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Spreads marks through every operation, below autograd.

    Args:
        marks: of the storages.
    """

    supports_higher_order_operators = True

    def __init__(self, marks: Marks) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.marks = marks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.marks.spread(getattr(func, "overloadpacket", func), args, kwargs or {}, result)
        return result


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is all that its memory holds."""
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def shares_memory(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors are views of one memory."""
    return _address(tensor) == _address(other) != 0


def _address(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse tensors and the like have none
        return 0
