"""Records one run of a model: what reaches each neuron, and from which layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only  # knows all containers of outputs; no public path yet

from ..layers import inner_layers, is_layer
from ..observe import SpikeHook, is_neuron, spikes_of
from .chains import NORMS
from .links import join
from .provenance import Arrival, Key, Provenance, Source, is_whole, shares_memory, tensors_in

__all__ = ["NeuronRecord", "Recorder"]


@dataclass
class NeuronRecord:
    """What reaches one neuron: layers in each call, each source's first and last arrival, and weights."""

    calls: list[frozenset[str]] = field(default_factory=list)
    first: dict[Key, Arrival] = field(default_factory=dict)
    last: dict[Key, Arrival] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)  # paths of weights that are used without their layer


class Recorder:
    """Hooks an isolated model, which drops the hooks when its isolation ends."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.neurons = [path for path, module in self.modules.items() if is_neuron(module)]
        self.records: dict[str, NeuronRecord] = {}
        self.called: set[str] = set()  # layers
        self._provenance = Provenance(dict(model.named_parameters()))
        self._shifts: dict[tuple[str, torch.Size], Tensor] = {}
        self._is_running = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hooks layers, norms and neurons, and records what the model computes in the body."""
        inside = {join(path, name) for path in self.neurons for name in inner_layers(self.modules[path])}
        for path, module in self.modules.items():
            _remove_hooks(module)
            if path in self.neurons:
                module.register_forward_hook(partial(self._after_neuron, path), with_kwargs=True)
            elif isinstance(module, NORMS):
                module.register_forward_hook(partial(self._after_norm, path), with_kwargs=True)
            elif is_layer(module) and path not in inside:
                module.register_forward_hook(partial(self._after_layer, path))
        self._is_running = True
        with self._provenance:
            yield
        self._is_running = False  # derivatives may run a checkpoint again

    def _after_layer(self, path: str, module: nn.Module, args: Any, output: Any) -> Any:
        self.called.add(path)
        return self._mark(output, path, [Source(path)])

    def _after_norm(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        received = _input(module, args, kwargs)
        if received is None:
            return None
        sources = [source for source in self._provenance.of([received]).values() if source.shape is not None]
        if not sources:
            return self._after_layer(path, module, args, output) if is_layer(module) else None
        before = received.clone()
        marks = [Source(each.path, norm=path, before=Arrival(each, before)) for each in sources]
        return self._mark(output, path, marks)

    def _after_neuron(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        received = _input(module, args, kwargs)
        if received is None:
            return None
        spikes = spikes_of(module, output)
        if self._is_running:
            self._record(path, received, is_step=isinstance(spikes, tuple))
        return self._cut(output, next(tensors_in(spikes)))

    def _record(self, path: str, received: Tensor, is_step: bool) -> None:
        record = self.records.setdefault(path, NeuronRecord())
        sources = self._provenance.of([received])
        layers = {key: source for key, source in sources.items() if source.shape is not None}
        record.weights.update(source.path for source in sources.values() if source.is_factor)
        if layers or received.count_nonzero():  # a delay line feeds zeros at first
            record.calls.append(frozenset(source.path for source in layers.values()))
        # a copy, since the model may change it in place later
        samples = (received if is_step else received.flatten(0, 1)).clone()
        is_part = not is_whole(received)
        arrivals = {key: Arrival(source, samples, is_part) for key, source in layers.items()}
        record.first = arrivals | record.first
        record.last |= arrivals

    def _mark(self, output: Any, path: str, sources: Sequence[Source]) -> Any:
        """The output, cut from its graph, plus zeros; all calls share them, so derivatives sum over calls."""

        def mark(tensor: Tensor) -> Tensor:
            shift = None
            if tensor.is_floating_point() and torch.is_grad_enabled():
                zeros = torch.zeros_like(tensor, requires_grad=True)
                shift = self._shifts.setdefault((path, tensor.shape), zeros)
                tensor = tensor.detach() + shift
            if self._is_running:
                marked = {each.key: replace(each, shape=tensor.shape, shift=shift) for each in sources}
                self._provenance.put(tensor, marked)
            return tensor

        return tree_map_only(Tensor, mark, output)

    def _cut(self, output: Any, spikes: Tensor) -> Any:
        """The output without the provenance of its spikes: other layers carry them on."""
        views = {tensor for tensor in tensors_in(output) if shares_memory(tensor, spikes)}
        cut = views or set(tensors_in(output))
        for tensor in cut:
            self._provenance.put(tensor, {})
        return tree_map_only(Tensor, lambda each: each.detach() if each in cut else each, output)


def _input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first tensor among the arguments, in the order of the module's signature."""
    named = [kwargs[name] for name in signature(module.forward).parameters if name in kwargs]
    return next(tensors_in((args, named)), None)


def _remove_hooks(module: nn.Module) -> None:
    """Removes what must not see the run: the hooks of other homeostases, and hooks on gradients."""
    # no public call removes a hook without its handle; one that does would replace this
    forward, *backward = module._forward_hooks, module._backward_hooks, module._backward_pre_hooks
    for key in [key for key, hook in forward.items() if isinstance(hook, SpikeHook)]:
        del forward[key]
    for hooks in backward:
        hooks.clear()
