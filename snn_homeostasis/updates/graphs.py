"""Whether an autograd graph still needs a tensor for its backward."""

import functools
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor, strided
from torch.autograd.graph import Node

from ..layers import is_sharded

__all__ = ["is_needed_by"]

# from a membrane back to the layer that drives it; an LSTM with norm and dropout takes about 30
REACH = 128

# nodes that save something whenever the gradient of an input is wanted; for addmm, of its factors
SAVING = {
    "AddmmBackward0": 1,
    "BmmBackward0": 0,
    "ConvolutionBackward0": 0,
    "MmBackward0": 0,
    "MulBackward0": 0,
}


def is_needed_by(tensor: Tensor, node: Node | None) -> bool:
    """Whether a graph that has not run backward yet saves a tensor, or one that overlaps it in memory.

    Looks at the nearest nodes behind ``node``, where the graph ends. It does not see what
    `saved_tensors_hooks` save, in a checkpoint for instance, nor what a further node saves.
    """
    seen: set[Node] = set()
    queue = deque([] if node is None else [node])
    while queue and len(seen) < REACH:
        node = queue.popleft()
        if node in seen:
            continue
        seen.add(node)
        try:
            if _is_freed(node):
                continue
            if any(_is_same(saved, tensor) for saved in _saved_by(node)):
                return True
        except RuntimeError:  # freed by its backward, and so, unless that ended here, is what lies behind
            continue
        queue.extend(parent for parent, _ in node.next_functions if parent is not None)
    return False


def _is_freed(node: Node) -> bool:
    """Whether the backward of a node has freed what it saved, where that shows without an error.

    An error takes longer than all the rest.
    """
    first = SAVING.get(node.name())
    if first is None or all(parent is None for parent, _ in node.next_functions[first:]):
        return False
    return all(_is_empty(getattr(node, name)) for name in _names_of_saved(type(node)))


def _is_empty(raw: Any) -> bool:
    # older versions of torch do not tell
    return getattr(raw, "data", raw) is None and raw.unpack_hook is None


def _is_same(saved: Tensor, tensor: Tensor) -> bool:
    if saved.layout != strided:
        return False  # and has no storage to compare
    if is_sharded(tensor):  # what was saved was gathered, and is gathered again for its backward
        return saved.untyped_storage().nbytes() == 0 and saved.numel() == tensor.numel()
    # ranges of memory: `vector_to_parameters` leaves all parameters in one storage
    (start, end), (other_start, other_end) = _addresses(saved), _addresses(tensor)
    return start < other_end and other_start < end and saved.device == tensor.device


def _addresses(tensor: Tensor) -> tuple[int, int]:
    """The range of memory from the first entry of a tensor to the last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    entries = 0 if tensor.numel() == 0 else 1 + int(sum((size - 1) * stride for size, stride in steps))
    return tensor.data_ptr(), tensor.data_ptr() + entries * tensor.element_size()


@functools.cache
def _names_of_saved(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_raw_saved_")]


def _saved_by(node: Node) -> Iterator[Tensor]:
    """The tensors that a node saves; raises RuntimeError if they were freed."""
    for name in _names_of_saved(type(node)):
        if any(getattr(raw, "unpack_hook", None) for raw in _as_tuple(getattr(node, name))):
            continue  # to unpack it could compute a whole checkpoint again, as it does with torch 2.6
        public = name.removeprefix("_raw")
        # an autograd Function written in Python has `saved_tensors`, without the underscore
        saved = getattr(node, public if hasattr(node, public) else public.removeprefix("_"))
        yield from (each for each in _as_tuple(saved) if each is not None)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
