"""Watches one run of a model: what reaches each neuron, and from which layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..layers.connections import is_layer
from ..layers.inner import inner_layers
from ..observe.hook import SpikeHook
from ..observe.neurons import is_neuron, spikes_of
from .chains import NORMS
from .links import join
from .marks import (
    NOTHING,
    Arrival,
    Key,
    Marks,
    Source,
    Spreading,
    is_whole,
    shares_memory,
    tensors_in,
)

__all__ = ["Seen", "Watch"]


class Seen:
    """What was seen of one neuron.

    Attributes:
        calls: the layers whose output reached it, one set for each of its calls.
        first: the first arrival of each source.
        last: the last one.
        weights: paths of weights that reached it, used without their layer.
    """

    def __init__(self) -> None:
        self.calls: list[frozenset[str]] = []
        self.first: dict[Key, Arrival] = {}
        self.last: dict[Key, Arrival] = {}
        self.weights: set[str] = set()


class Watch:
    """Hooks on an isolated model, which forgets them.

    Zeros are added to the output of each layer, for derivatives to be taken by. What a layer
    puts out, and the spikes of a neuron, are cut from the graph behind them.

    Attributes:
        modules: of the model, by path.
        neurons: paths of its neurons.
        seen: of each neuron that was called.
        called: paths of the layers that were called.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.neurons = [path for path, module in self.modules.items() if is_neuron(module)]
        self.seen: dict[str, Seen] = {}
        self.called: set[str] = set()
        self._marks = Marks(dict(model.named_parameters()))
        self._shifts: dict[tuple[str, torch.Size], Tensor] = {}
        self._runs = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hooks layers, norms and neurons, and follows what the model computes meanwhile."""
        inside = {join(path, name) for path in self.neurons for name in inner_layers(self.modules[path])}
        for path, module in self.modules.items():
            _silence(module)
            if path in self.neurons:
                module.register_forward_hook(partial(self._after_neuron, path), with_kwargs=True)
            elif isinstance(module, NORMS):
                module.register_forward_hook(partial(self._after_norm, path), with_kwargs=True)
            elif is_layer(module) and path not in inside:
                module.register_forward_hook(partial(self._after_layer, path))
        self._runs = True
        with Spreading(self._marks):
            yield
        self._runs = False

    def _after_layer(self, path: str, module: nn.Module, args: Any, output: Any) -> Any:
        self.called.add(path)
        return self._put_out(output, [Source(path)])

    def _after_norm(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        received = _input(module, args, kwargs)
        if received is None:
            return None
        sources = [source for source in self._marks.of([received]).values() if source.shape is not None]
        if not sources:
            return self._after_layer(path, module, args, output) if is_layer(module) else None
        before = received.clone()
        return self._put_out(
            output, [Source(each.path, norm=path, before=Arrival(each, before)) for each in sources]
        )

    def _after_neuron(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        received = _input(module, args, kwargs)
        if received is None:
            return None
        spikes = spikes_of(module, output)
        if self._runs:
            self._record(path, received, is_step=isinstance(spikes, tuple))
        return self._cut(output, next(tensors_in(spikes)))

    def _record(self, path: str, received: Tensor, is_step: bool) -> None:
        seen = self.seen.setdefault(path, Seen())
        sources = self._marks.of([received])
        layers = {key: source for key, source in sources.items() if source.shape is not None}
        seen.weights.update(source.path for source in sources.values() if source.is_factor)
        if layers or received.count_nonzero():  # a neuron may wait for its first input
            seen.calls.append(frozenset(source.path for source in layers.values()))
        # a copy, since it may be changed in place later on
        samples = (received if is_step else received.flatten(0, 1)).clone()
        shares = not is_whole(received)
        arrivals = {key: Arrival(source, samples, shares) for key, source in layers.items()}
        seen.first = arrivals | seen.first
        seen.last |= arrivals

    def _put_out(self, output: Any, sources: Sequence[Source]) -> Any:
        """The output with zeros added, which all calls share, so that derivatives sum over them."""
        origin = sources[0].norm or sources[0].path

        def put_out(tensor: Tensor) -> Tensor:
            shift = None
            if tensor.is_floating_point() and torch.is_grad_enabled():
                shift = self._shift(origin, tensor)
                tensor = tensor.detach() + shift
            if self._runs:
                marked = [Source(each.path, tensor.shape, shift, each.norm, each.before) for each in sources]
                self._marks.put(tensor, {source.key: source for source in marked})
            return tensor

        return tree_map_only(Tensor, put_out, output)

    def _shift(self, origin: str, output: Tensor) -> Tensor:
        key = origin, output.shape
        if key not in self._shifts:
            self._shifts[key] = torch.zeros_like(output, requires_grad=True)
        return self._shifts[key]

    def _cut(self, output: Any, spikes: Tensor) -> Any:
        """The output with its spikes coming from nowhere: what they drive has layers of its own."""
        views = [tensor for tensor in tensors_in(output) if shares_memory(tensor, spikes)]
        cut = views or list(tensors_in(output))
        for tensor in cut:
            self._marks.put(tensor, NOTHING)
        return tree_map_only(
            Tensor, lambda each: each.detach() if any(each is other for other in cut) else each, output
        )


def _input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first tensor among the arguments, in the order in which the module names them."""
    named = [kwargs[name] for name in signature(module.forward).parameters if name in kwargs]
    return next(tensors_in((args, named)), None)


def _silence(module: nn.Module) -> None:
    """Takes off what must not see the run: homeostases that are attached, and hooks on gradients."""
    hooks = module._forward_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, SpikeHook)]:
        del hooks[key]
    module._backward_hooks.clear()
    module._backward_pre_hooks.clear()
