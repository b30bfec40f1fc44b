"""What a call costs: the operations of torch that it runs, and what they allocate, touch and wait for."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VIEWS = (
    "detach",
    "view",
    "unsqueeze",
    "expand",
    "select",
    "alias",
    "squeeze",
    "t",
    "_unsafe_view",
    "split",
    "permute",
)


class Operations(TorchDispatchMode):
    """Notes operations, the bytes they newly allocate, and in `sizes` those they read and write.

    Attributes:
        names: in order.
        entries: of the result of each; 0 where it is no tensor.
        reads: how many wait for a device: values that Python reads, and copies to the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.entries: list[int] = []
        self.sizes: list[int] = []
        self.bytes = 0
        self.largest = 0
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        self.names.append(name)
        self.entries.append(output.numel() if isinstance(output, torch.Tensor) else 0)
        is_new = name not in VIEWS and not name.endswith("_")
        new = [size_of(each) for each in tree_leaves(output) if is_new]
        self.bytes += sum(new)
        self.largest = max([self.largest, *new])
        self.sizes.append(0 if name in VIEWS else sum(map(size_of, tree_leaves((args, kwargs, output)))))
        is_copy = func is torch.ops.aten._to_copy.default and (kwargs or {}).get("device") is not None
        self.reads += is_copy or func is torch.ops.aten._local_scalar_dense.default
        return output

    @property
    def traffic(self) -> int:
        """The bytes of all that is read and written."""
        return sum(self.sizes)

    def on(self, size: int) -> list[str]:
        """The operations that read or write at least so many bytes."""
        return [name for name, touched in zip(self.names, self.sizes, strict=True) if touched >= size]

    @property
    def computing(self) -> list[str]:
        """The operations that are no views."""
        return [name for name in self.names if name not in VIEWS]

    def count(self, name: str, entries: int) -> int:
        """How often an operation gave a result of so many entries."""
        return list(zip(self.names, self.entries, strict=True)).count((name, entries))


def size_of(value: object) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def cost_of(call: Callable[[], object]) -> Operations:
    with Operations() as operations:
        call()
    return operations
