"""What keeps a model from being run on copies of its tensors, and followed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ..layers.connections import is_layer
from ..observe.neurons import is_neuron
from .links import Link

__all__ = ["obstacles"]


def obstacles(model: nn.Module) -> list[Link]:
    """Problems of a model, each as a link of the module that has it."""
    registered = set(model.modules())
    return [
        Link(path, problem=problem)
        for path, module in model.named_modules()
        for problem in _problems(module, registered)
    ]


def _problems(module: nn.Module, registered: set[nn.Module]) -> Iterator[str]:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if isinstance(module, torch.jit.ScriptModule) and tensors:
        yield "it is scripted, and cannot be followed: attach before scripting"
    elif any(isinstance(tensor, UninitializedParameter) for tensor in tensors):
        yield "its parameters have no values yet: run the model once before"
    elif any(tensor.is_meta for tensor in tensors):
        yield "its tensors have no values: move the model from the meta device to a real one before"
    for name, value in vars(module).items():
        if any(_has_cells(each) for each in set(_modules_in(value)) - registered):
            yield f"its `{name}` holds modules that are not registered: make it an nn.ModuleList"


def _modules_in(value: Any) -> Iterator[nn.Module]:
    values = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
    return (each for each in values if isinstance(each, nn.Module))


def _has_cells(module: nn.Module) -> bool:
    return any(is_neuron(each) or is_layer(each) for each in module.modules())
