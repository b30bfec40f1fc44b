"""Modules that cannot run on copies of their tensors, or whose data cannot be followed."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ..layers import is_layer
from ..observe import is_neuron
from .links import Link

__all__ = ["modules_without_values", "unsupported_modules"]

NO_VALUES = "its tensors have no values: call `model.to_empty(device=...)` and load them before"


def unsupported_modules(model: nn.Module) -> list[Link]:
    """The problems that modules have with a run, each as a link with the path of the module."""
    registered = set(model.modules())
    return [
        Link(path, problem=problem)
        for path, module in model.named_modules()
        for problem in _problems(module, registered)
    ]


def modules_without_values(model: nn.Module) -> list[Link]:
    """The modules with a tensor on the meta device, as links. Nothing fails that does not use them."""
    return [
        Link(path, problem=NO_VALUES)
        for path, module in model.named_modules()
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if tensor.is_meta and not isinstance(tensor, UninitializedParameter)
    ]


def _problems(module: nn.Module, registered: set[nn.Module]) -> Iterator[str]:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if isinstance(module, torch.jit.ScriptModule) and tensors:
        yield "it is scripted, and its data cannot be followed: attach before scripting"
    elif any(isinstance(tensor, UninitializedParameter) for tensor in tensors):
        yield "its parameters have no values yet: run the model once before"
    for name, value in vars(module).items():
        values = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
        hidden = {each for each in values if isinstance(each, nn.Module)} - registered
        if any(is_neuron(inner) or is_layer(inner) for each in hidden for inner in each.modules()):
            yield f"its `{name}` holds modules that are not registered: make it an nn.ModuleList"
