"""A model that can be run without a trace: on copies of everything that a run may change."""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["copied", "isolated"]

Memo = dict[int, Any]


@contextmanager
def isolated(model: nn.Module, bystanders: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Within it, all modules hold copies of their tensors, containers and hooks.

    The originals are put back untouched, with their identity and their version counters, also
    after an exception. The random states of Python, NumPy and torch are restored. A tensor that
    is found in several places is one copy. What the model keeps outside its modules, and objects
    of other classes than tensors, arrays, generators and built-in containers, are not covered.

    Args:
        model: is run eagerly within, also where it is compiled.
        bystanders: other modules, whose buffers may be replaced meanwhile.
    """
    saved = [(module.__dict__, dict(module.__dict__)) for module in model.modules()]
    saved += [(module._buffers, dict(module._buffers)) for module in bystanders]
    memo: Memo = {}
    with ExitStack() as stack:
        stack.enter_context(_random_states(model))
        stack.callback(_put_back, saved)
        for module in model.modules():
            attributes = module.__dict__
            attributes |= {name: copied(value, memo) for name, value in attributes.items()}
            attributes["_compiled_call_impl"] = None
        yield


def copied(value: Any, memo: Memo | None = None) -> Any:
    """A copy of tensors, arrays, generators and built-in containers; other objects as they are.

    Args:
        value: a tensor is detached from its graph.
        memo: id of an original → its copy, kept over several calls.
    """
    memo = {} if memo is None else memo
    if id(value) not in memo:
        memo[id(value)] = _copy(value, memo)
    return memo[id(value)]


@singledispatch
def _copy(value: Any, memo: Memo) -> Any:
    # their classes are not imported: they are there if the model has them
    is_array_or_generator = type(value).__module__.partition(".")[0] in ("numpy", "random")
    return copy.deepcopy(value) if is_array_or_generator and not callable(value) else value


@_copy.register
def _(value: Tensor, memo: Memo) -> Tensor:
    new = value.detach().clone()
    if not value.requires_grad:
        return new
    leaf = new.requires_grad_()
    return leaf if value.is_leaf else leaf.clone()  # which may be changed in place


@_copy.register
def _(value: nn.Parameter, memo: Memo) -> Any:
    return nn.Parameter(value.detach().clone(), value.requires_grad)


@_copy.register
def _(value: torch.Generator, memo: Memo) -> torch.Generator:
    return torch.Generator(value.device).set_state(value.get_state())


@_copy.register
def _(value: dict, memo: Memo) -> Any:  # type: ignore[type-arg]
    if type(value) not in (dict, OrderedDict, defaultdict):
        return value
    new = memo[id(value)] = copy.copy(value)
    for key, each in value.items():
        new[key] = copied(each, memo)
    return new


@_copy.register(list)
@_copy.register(deque)
def _(value: Any, memo: Memo) -> Any:
    if type(value) not in (list, deque):
        return value
    new = memo[id(value)] = copy.copy(value)
    for index, each in enumerate(value):
        new[index] = copied(each, memo)
    return new


@_copy.register
def _(value: tuple, memo: Memo) -> Any:  # type: ignore[type-arg]
    make: Callable[..., Any] | None = tuple if type(value) is tuple else getattr(type(value), "_make", None)
    items = [copied(each, memo) for each in value]
    if make is None or all(new is old for new, old in zip(items, value, strict=True)):
        return value
    return make(items)


@_copy.register
def _(value: set, memo: Memo) -> Any:  # type: ignore[type-arg]
    return copy.copy(value)


def _put_back(saved: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for attributes, originals in saved:
        attributes.clear()
        attributes.update(originals)


@contextmanager
def _random_states(model: nn.Module) -> Iterator[None]:
    tensors = [*model.parameters(), *model.buffers()]
    devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    numpy = sys.modules.get("numpy")
    state = random.getstate(), numpy and numpy.random.get_state()
    with ExitStack() as stack:
        for kind in {device.type for device in devices} or {"cuda"}:
            indices = [device.index for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(indices, device_type=kind))
        try:
            yield
        finally:
            random.setstate(state[0])
            if numpy is not None:
                numpy.random.set_state(state[1])
