"""Runs a model on copies, and then puts everything back that the run may change."""

import copy
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["copied", "eagerly", "isolated", "keeping_random_states"]

Memo = dict[int, Any]


@contextmanager
def isolated(model: nn.Module, others: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Gives a model copies of its tensors, containers and hooks while the body runs.

    The originals and the random states then come back. Other modules keep their buffers.
    """
    saved = [(vars(module), dict(vars(module))) for module in model.modules()]
    # `named_buffers` hides buffers that are None; a public list of all would replace this
    saved += [(module._buffers, dict(module._buffers)) for module in others]
    memo: Memo = {}
    with ExitStack() as stack:
        stack.enter_context(keeping_random_states([*model.parameters(), *model.buffers()]))
        for attributes, originals in saved:
            stack.callback(attributes.update, originals)
            stack.callback(attributes.clear)  # the last callback runs first
        for module in model.modules():
            attributes = vars(module)
            attributes |= {name: copied(value, memo) for name, value in attributes.items()}
            # compiled code does not see the copies; a public way back to eager would replace this
            attributes["_compiled_call_impl"] = None
        yield


def copied(value: Any, memo: Memo | None = None) -> Any:
    """Copies tensors (without their graph), arrays, generators and built-in containers; keeps the rest."""
    memo = {} if memo is None else memo
    if id(value) not in memo:
        memo[id(value)] = _copy(value, memo)
    return memo[id(value)]


@singledispatch
def _copy(value: Any, memo: Memo) -> Any:
    # by name: to import NumPy takes time, and a model may do without
    is_array_or_generator = type(value).__module__.partition(".")[0] in ("numpy", "random")
    return copy.deepcopy(value) if is_array_or_generator and not callable(value) else value


@_copy.register
def _(value: Tensor, memo: Memo) -> Tensor:
    new = value.detach().clone()
    if type(new) is not type(value):  # a class of Parameters
        new = nn.Parameter(new) if type(value) is nn.Parameter else new.as_subclass(type(value))
    new.requires_grad_(value.requires_grad)
    if not value.is_leaf:
        new = new.clone()  # in-place operations refuse leaves
    elif value.grad is not None:
        new.grad = value.grad.detach().clone()
    memo[id(value)] = new  # first, since an attribute may lead back
    # what a class needs it has set in the clone
    vars(new).update({k: copied(each, memo) for k, each in vars(value).items() if k not in vars(new)})
    return new


@_copy.register
def _(value: torch.Generator, memo: Memo) -> torch.Generator:
    return torch.Generator(value.device).set_state(value.get_state())


@_copy.register(dict)
@_copy.register(list)
@_copy.register(deque)
def _(value: Any, memo: Memo) -> Any:
    if type(value) not in (dict, OrderedDict, defaultdict, list, deque):
        return value
    new = memo[id(value)] = copy.copy(value)  # first, since a container may hold itself
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        new[key] = copied(each, memo)
    return new


@_copy.register(tuple)
def _(value: tuple[Any, ...], memo: Memo) -> Any:
    make: Callable[..., Any] | None = tuple if type(value) is tuple else getattr(type(value), "_make", None)
    items = [copied(each, memo) for each in value]
    if make is None or all(new is old for new, old in zip(items, value, strict=True)):
        return value
    return make(items)


_copy.register(set, lambda value, memo: copy.copy(value))


@contextmanager
def keeping_random_states(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Has Python, NumPy and torch, on the devices of some tensors, return to their random states."""
    devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    with ExitStack() as stack:
        for kind in {device.type for device in devices} or {"cuda"}:
            indices = [device.index for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(indices, device_type=kind))
        stack.callback(random.setstate, random.getstate())
        if (numpy := sys.modules.get("numpy")) is not None:
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        yield


def eagerly() -> Any:
    """Runs compiled models without their graphs, which do not notice new hooks."""
    if "torch._dynamo" not in sys.modules:  # an import takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
