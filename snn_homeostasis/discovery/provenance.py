"""Provenance: which layers, weights, spikes and inputs the values of a tensor come from."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode  # sees every operation; no public path yet

__all__ = ["Arrival", "Key", "Kind", "Provenance", "Source", "is_whole", "shares_memory", "tensors_in"]

aten = torch.ops.aten


# the values of their arguments do not matter
VALUE_FREE = {
    aten.empty_like, aten.full_like, aten.new_empty, aten.new_empty_strided, aten.new_full, aten.new_ones,
    aten.new_zeros, aten.ones_like, aten.rand_like, aten.randint_like, aten.randn_like, aten.zeros_like,
}  # fmt: skip
# they replace all values of their first argument
OVERWRITING = {
    aten.bernoulli_, aten.copy_, aten.exponential_, aten.fill_, aten.geometric_, aten.log_normal_,
    aten.normal_, aten.random_, aten.uniform_, aten.zero_,
}  # fmt: skip
# they use a matrix as a layer does
PRODUCTS = {
    aten._trilinear, aten.addmm, aten.addmv, aten.baddbmm, aten.bmm, aten.convolution, aten.dot,
    aten.embedding, aten.mm, aten.mv,
}  # fmt: skip


class Kind(Enum):
    """What a value comes from."""

    LAYER = "the output of a layer"
    WEIGHT = "a weight without its layer"
    FACTOR = "a weight that is a factor of a product, as in a layer, but without its layer"
    SPIKES = "the spikes of a neuron, before the next layer"
    MEMBRANE = "the membrane of a neuron, or what else it returns"
    EXAMPLE = "the input of the model, before the first layer"


Key = tuple[Kind, str, str | None, str | None]


@dataclass(frozen=True, eq=False)
class Source:
    """What the values of a tensor come from."""

    kind: Kind
    path: str  # of the layer, the weight or the neuron
    shape: torch.Size | None = None  # of the output of the layer, or of the norm or delay behind it
    shift: Tensor | None = None  # zeros that are added to that output, for derivatives by them
    norm: str | None = None
    delay: str | None = None
    before: "Arrival | None" = None  # the arrival of the layer at that norm or delay
    through: tuple[str, ...] = ()  # paths of other modules behind that

    @property
    def key(self) -> Key:
        """Equal for equal sources."""
        return self.kind, self.path, self.norm, self.delay


@dataclass(frozen=True, eq=False)
class Arrival:
    """A source, and the input of a neuron or a norm in which it arrives."""

    source: Source  # a layer
    received: Tensor  # [B, *N], or [T·B, *N] of a neuron that takes whole sequences
    is_part: bool = False  # whether the input is a part of its storage; the source may be of the rest


Sources = Mapping[Key, Source]
NOTHING: Sources = {}


class Provenance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The sources of the values in each storage; as a context, spreads them through every operation."""

    supports_higher_order_operators = True

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # A weak reference lets the memory go, but keeps the address from a second use.
        self._table: dict[Any, Sources] = {}
        self._sweep_at = 1024
        self.read: set[Key] = set()  # sources of tensors whose values became numbers
        for path, weight in weights.items():
            if weight.ndim > 1:
                source = Source(Kind.WEIGHT, path)
                self.put(weight, {source.key: source})

    def of(self, tensors: Iterable[Tensor]) -> Sources:
        """The sources of several tensors together."""
        found = NOTHING
        for storage in filter(None, map(_storage, tensors)):
            sources = self._table.get(storage, NOTHING)
            if sources and sources is not found:
                found = {**found, **sources} if found else sources
        return found

    def put(self, tensor: Tensor, sources: Sources) -> None:
        """Replaces the sources of a tensor's storage."""
        storage = _storage(tensor)
        if storage is None or sources is self._table.get(storage, NOTHING):
            return
        if len(self._table) > self._sweep_at:
            self._table = {each: held for each, held in self._table.items() if not each.expired()}
            self._sweep_at = 2 * len(self._table) + 1024
        self._table[storage] = sources

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operator = getattr(func, "overloadpacket", func)
        if operator in OVERWRITING and is_whole(args[0]):
            self.put(args[0], self.of(tensors_in(args[1:])))
        elif operator is aten._local_scalar_dense:
            self.read.update(self.of(tensors_in(args)))
        elif operator not in VALUE_FREE:
            self._spread(operator, (args, kwargs), result)
        return result

    def _spread(self, operator: Any, arguments: Any, result: Any) -> None:
        sources = self.of(tensors_in(arguments))
        if operator in PRODUCTS:
            weights = [each for each in sources.values() if each.kind is Kind.WEIGHT]
            factors = [replace(each, kind=Kind.FACTOR) for each in weights]
            sources = {**sources, **{factor.key: factor for factor in factors}}
        if sources:
            for tensor in tensors_in(result):
                self.put(tensor, sources)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(each)


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor fills its storage."""
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def shares_memory(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors are views of one storage."""
    first, second = _storage(tensor), _storage(other)
    return bool(first and second and first == second)


def _storage(tensor: Tensor) -> Any:
    """A weak reference, equal for equal storages; None for tensors without one, such as sparse tensors."""
    refer: Callable[[torch.UntypedStorage], Any] = StorageWeakRef
    try:
        return refer(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):
        return None
