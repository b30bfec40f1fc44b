"""Records one run of a model: what reaches each neuron, from which layers, and who uses its spikes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only  # knows all containers of outputs; no public path yet

from ..delays import is_delay
from ..layers import inner_layers, is_layer
from ..observe import SpikeHook, is_neuron, spikes_of, threshold_without_reset
from .chains import NORMS, keeps_channels
from .links import is_within, join
from .provenance import Arrival, Key, Kind, Provenance, Source, is_whole, shares_memory, tensors_in
from .results import Opaque, leaves

__all__ = ["NeuronRecord", "Recorder"]

OF_NEURONS = (Kind.SPIKES, Kind.MEMBRANE)  # a layer may read the membrane in place of the spikes


@dataclass
class NeuronRecord:
    """What reaches one neuron: layers in each call, each layer's first and last arrival, and the rest."""

    calls: list[frozenset[str]] = field(default_factory=list)
    first: dict[Key, Arrival] = field(default_factory=dict)
    last: dict[Key, Arrival] = field(default_factory=dict)
    parts: list[Tensor] = field(default_factory=list)  # inputs in a memory that several layers fill
    others: dict[Kind, set[str]] = field(default_factory=lambda: defaultdict(set))
    peak: Tensor | None = None  # the largest size of the membrane of a neuron without a reset
    returned: list[Tensor] = field(default_factory=list)  # by the last call
    keeps_state: bool = True  # whether each call goes on from the state that the one before has returned


class Recorder:
    """Hooks an isolated model, which drops the hooks when its isolation ends."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.neurons = [path for path, module in self.modules.items() if is_neuron(module)]
        self.records: dict[str, NeuronRecord] = {}  # in order of the first call
        self.called: set[str] = set()  # layers
        self.norms_inside: dict[str, set[str]] = defaultdict(set)  # by neuron
        self.behind: dict[str, set[str]] = defaultdict(set)  # module → neurons whose spikes lead to it
        self.used: set[str] = set()  # neurons whose spikes reach a layer or the result
        self.is_blind = False  # whether data came from where it cannot be followed
        self.outputs: dict[str, list[Tensor]] = {}  # of layers and norms, with graphs: the first, the last
        self._provenance = Provenance(dict(model.named_parameters()))
        self._shifts: dict[tuple[str, torch.Size], Tensor] = {}
        self._is_running = False
        self._unreset = {n for n in self.neurons if threshold_without_reset(self.modules[n]) is not None}

    @contextmanager
    def running(self, example: Any) -> Iterator[None]:
        """Hooks layers, norms, delays and neurons, and records what the model computes in the body."""
        for path, module in self.modules.items():
            _remove_hooks(module)
            if (after := self._hook_for(path, module)) is not None:
                module.register_forward_hook(partial(after, path), with_kwargs=True)
        source = Source(Kind.EXAMPLE, "")
        for tensor in tensors_in(example):
            self._provenance.put(tensor, {source.key: source})
        self._is_running = True
        with self._provenance:
            yield
        self._is_running = False  # derivatives may run a checkpoint again

    def finish(self, result: Any) -> None:
        """Takes in what the model has returned, and what it keeps in its attributes."""
        kept = [vars(module) for path, module in self.modules.items() if path not in self.neurons]
        returned = list(leaves(result, into_objects=True))
        self.is_blind |= not returned or any(isinstance(leaf, Opaque) for leaf in returned)
        tensors = [leaf for leaf in (*returned, *leaves(kept)) if isinstance(leaf, Tensor)]
        keys = {*self._provenance.of(tensors), *self._provenance.read}
        self.used.update(path for kind, path, *_ in keys if kind is Kind.SPIKES)

    def _hook_for(self, path: str, module: nn.Module) -> Any:
        if path in self.neurons:
            return self._after_neuron
        around = self._neuron_around(path)
        if around is not None and path in (join(around, name) for name in inner_layers(self.modules[around])):
            return None
        if isinstance(module, NORMS):
            return self._after_stage if around is None else self._after_norm_inside
        if is_delay(module):
            return self._after_stage
        if is_layer(module):
            return self._after_layer
        is_on_the_way = around is None and "parametrizations" not in path.split(".")
        return self._after_other if is_on_the_way and not any(module.children()) else None

    def _neuron_around(self, path: str) -> str | None:
        return next((neuron for neuron in self.neurons if is_within(path, neuron)), None)

    def _after_layer(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        self.called.add(path)
        self._receive(path, (args, kwargs))
        return self._mark(output, path, [Source(Kind.LAYER, path)])

    def _after_stage(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Norms and delays keep the channels of the layers in front of them; a norm may be a layer itself."""
        received = _input(module, args, kwargs)
        if received is None:
            return None
        sources = self._layers_of(received)
        kept = all(keeps_channels(module, self.modules[each.path]) for each in sources)
        if not sources or not kept:
            return self._after_layer(path, module, args, kwargs, output) if is_layer(module) else None
        before = received.clone()
        sources = [replace(each, before=Arrival(each, before), through=()) for each in sources]
        if is_delay(module):
            return self._mark(output, path, [replace(each, delay=path) for each in sources])
        return self._mark(output, path, [replace(each, norm=path) for each in sources])

    def _after_other(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Notes a module on the way, for messages."""
        for tensor in tensors_in(output) if self._is_running else ():
            layers = [each for each in self._layers_of(tensor) if path not in each.through]
            passed = {each.key: replace(each, through=(*each.through, path)) for each in layers}
            self._provenance.put(tensor, {**self._provenance.of([tensor]), **passed})

    def _layers_of(self, tensor: Tensor) -> list[Source]:
        return [each for each in self._provenance.of([tensor]).values() if each.kind is Kind.LAYER]

    def _after_norm_inside(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.norms_inside[self._neuron_around(path) or ""].add(path)

    def _after_neuron(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        received = _input(module, args, kwargs)
        if received is None:
            return None
        spikes = spikes_of(module, output)
        fired = next(tensors_in(spikes))
        if self._is_running:
            self._record(path, received, is_step=isinstance(spikes, tuple))
            self._record_state(path, module, (args, kwargs), output)
            if path in self._unreset:
                self._record_peak(path, module, output, fired)
        return self._cut(path, module, output, fired)

    def _record(self, path: str, received: Tensor, is_step: bool) -> None:
        record = self.records.setdefault(path, NeuronRecord())
        sources = self._receive(path, received)
        layers = {key: source for key, source in sources.items() if source.kind is Kind.LAYER}
        for source in sources.values():
            record.others[source.kind].add(source.path)
        if layers or received.any():  # a delay line feeds zeros at first
            record.calls.append(frozenset(source.path for source in layers.values()))
        # a copy, since the model may change it in place later
        samples = (received if is_step else received.flatten(0, 1)).clone()
        is_part = not is_whole(received)
        if is_part and len(layers) > 1:
            record.parts.append(samples)
        for key, source in layers.items():
            record.last[key] = Arrival(source, samples, is_part)
            record.first.setdefault(key, record.last[key])

    def _record_state(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        record = self.records[path]
        if record.returned and not getattr(module, "init_hidden", False):
            pairs = product(tensors_in(inputs), record.returned)
            record.keeps_state &= any(shares_memory(given, known) for given, known in pairs)
        record.returned = list(tensors_in(output))

    def _record_peak(self, path: str, module: nn.Module, output: Any, fired: Tensor) -> None:
        kept = getattr(module, "mem", None)
        states = [each for each in tensors_in((output, kept)) if not shares_memory(each, fired)]
        record = self.records[path]
        sizes = (each.detach().abs().max() for each in states if each.is_floating_point() and each.numel())
        for size in sizes:
            record.peak = size if record.peak is None else torch.maximum(record.peak, size)

    def _receive(self, path: str, values: Any) -> Any:
        """The sources of what a module receives; notes the neurons whose spikes lead to it."""
        tensors = list(tensors_in(values))
        sources = self._provenance.of(tensors)
        if self._is_running:
            self.is_blind |= not sources and any(bool(each.any()) for each in tensors)
            for source in sources.values():
                if source.kind in OF_NEURONS:
                    self.used.add(source.path)
                    self.behind[path] |= {source.path, *self.behind[source.path]}
                elif source.kind is Kind.LAYER:
                    self.behind[path] |= self.behind[source.path]
        return sources

    def _mark(self, output: Any, path: str, sources: Sequence[Source]) -> Any:
        """The output, cut from its graph, plus zeros; all calls share them, so derivatives sum over calls."""

        def mark(tensor: Tensor) -> Tensor:
            shift = None
            if self._is_running and tensor.requires_grad:
                self.outputs.setdefault(path, [tensor])[1:] = [tensor]
            if tensor.is_floating_point() and torch.is_grad_enabled():
                zeros = torch.zeros_like(tensor, requires_grad=True)
                shift = self._shifts.setdefault((path, tensor.shape), zeros)
                tensor = tensor.detach() + shift
            if self._is_running:
                marked = {each.key: replace(each, shape=tensor.shape, shift=shift) for each in sources}
                self._provenance.put(tensor, marked)
            return tensor

        return tree_map_only(Tensor, mark, output)

    def _cut(self, path: str, module: nn.Module, output: Any, spikes: Tensor) -> Any:
        """The output with the neuron as the source of its spikes: other layers carry them on."""
        returned = set(tensors_in(output))
        cut = {tensor for tensor in returned if shares_memory(tensor, spikes)} or returned
        fired, state = Source(Kind.SPIKES, path), Source(Kind.MEMBRANE, path)
        for tensor in returned.union(tensors_in(dict(module.named_buffers(recurse=False)))) - cut:
            self._provenance.put(tensor, {**self._provenance.of([tensor]), state.key: state})
        for tensor in cut:
            self._provenance.put(tensor, {fired.key: fired})
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
