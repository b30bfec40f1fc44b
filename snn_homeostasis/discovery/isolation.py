"""A model that can be run without a trace: on copies of everything that a run may change."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["copied", "isolated"]

Memo = dict[int, Any]


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Within it, all modules hold copies of their tensors, containers and hooks.

    The originals are put back untouched, with their identity and their version counters, also
    after an exception. The random states of Python, NumPy and torch are restored. Tensors that
    are found in several places are one copy. What the model keeps outside its modules, and
    objects of other classes, are not covered.

    Args:
        model: is run eagerly within, also where it is compiled.
    """
    saved = [(module.__dict__, dict(module.__dict__)) for module in model.modules()]
    memo: Memo = {}
    with ExitStack() as stack:
        stack.enter_context(_random_states(model))
        stack.callback(_put_back, saved)
        for attributes, originals in saved:
            attributes |= {name: copied(value, memo) for name, value in originals.items()}
            attributes["_compiled_call_impl"] = None
        yield


def copied(value: Any, memo: Memo | None = None) -> Any:
    """A copy of tensors and built-in containers, to any depth; other objects as they are.

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
    return value


@_copy.register
def _(value: Tensor, memo: Memo) -> Tensor:
    return value.detach().clone().requires_grad_(value.requires_grad)


@_copy.register
def _(value: nn.Parameter, memo: Memo) -> Any:
    return copy.deepcopy(value)


@_copy.register
def _(value: dict, memo: Memo) -> Any:  # type: ignore[type-arg]
    new = memo[id(value)] = copy.copy(value)
    for key, each in value.items():
        new[key] = copied(each, memo)
    return new


@_copy.register
def _(value: list, memo: Memo) -> Any:  # type: ignore[type-arg]
    new = memo[id(value)] = copy.copy(value)
    new[:] = [copied(each, memo) for each in value]
    return new


@_copy.register
def _(value: tuple, memo: Memo) -> Any:  # type: ignore[type-arg]
    items = [copied(each, memo) for each in value]
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    make: Callable[..., Any] = getattr(type(value), "_make", type(value))
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
