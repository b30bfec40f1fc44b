"""Modules that cannot run on copies of their tensors, or whose data cannot be followed."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ..layers import is_layer
from ..observe import is_neuron
from .links import Link

__all__ = ["unsupported_modules"]


def unsupported_modules(model: nn.Module, is_traced: bool) -> list[Link]:
    """The problems of a model's modules, each as a link with the module's path; fewer without a run."""
    registered = set(model.modules())
    return [
        Link(path, problem=problem)
        for path, module in model.named_modules()
        for problem in (*_missing_values(module), *(_problems(module, registered) if is_traced else ()))
    ]


def _missing_values(module: nn.Module) -> Iterator[str]:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if any(tensor.is_meta for tensor in tensors if not isinstance(tensor, UninitializedParameter)):
        yield "its tensors have no values: call `model.to_empty(device=...)` and load them before"


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
