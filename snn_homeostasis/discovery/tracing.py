"""Links of any model: it runs once, and its data is followed from layers to neurons."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedParameter

from ..connections import Connection, is_layer
from ..errors import HomeostasisError
from ..inner import connect_cell, inner_layers
from ..neurons import is_neuron, spikes_of
from ..taps import SpikeTap
from .alignment import Alignment, align
from .chains import NORMS
from .isolation import copied, isolated
from .links import Link, inner_links, join
from .marks import NOTHING, Arrival, Marks, Source, Spreading, tensors_in

__all__ = ["traced_links"]


def traced_links(model: nn.Module, example: Any) -> list[Link]:
    """The links of a model, seen while it runs on an example. It is left as it was.

    Args:
        model: runs once, in the mode it is in, from fresh membranes.
        example: what it takes: a tensor, or a tuple or dict of arguments.
    """
    if isinstance(model, DistributedDataParallel):  # its own forward would wait for other processes
        return [link.below("module") for link in traced_links(model.module, example)]
    if obstacles := _obstacles(model):
        return obstacles
    with torch.inference_mode(False), torch.enable_grad(), _eagerly(), isolated(model):
        trace = _Trace(model)
        with trace.watching():
            _run(model, copied(example))
        return [link for path in trace.neurons for link in trace.links(path)]


class _Trace:
    """What is seen of an isolated model in one run."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.neurons = [path for path, module in self.modules.items() if is_neuron(module)]
        self.calls: dict[str, list[frozenset[str]]] = {}
        self.arrivals: dict[str, dict[tuple[str, str | None], Arrival]] = {}
        self.weights: dict[str, set[str]] = {}
        self._marks = Marks(dict(model.named_parameters()))
        self._shifts: dict[tuple[str, torch.Size], Tensor] = {}
        self._runs = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks layers, norms and neurons, and follows what the model computes meanwhile."""
        inside = {join(path, name) for path in self.neurons for name in inner_layers(self.modules[path])}
        for path, module in self.modules.items():
            _forget_taps(module)
            if path in self.neurons:
                module.register_forward_hook(partial(self._after_neuron, path), with_kwargs=True)
            elif isinstance(module, NORMS):
                module.register_forward_hook(partial(self._after_norm, path))
            elif is_layer(module) and path not in inside:
                module.register_forward_hook(partial(self._after_layer, path))
        self._runs = True
        with Spreading(self._marks):
            yield
        self._runs = False

    def links(self, path: str) -> list[Link]:
        """The links of the neuron with this path."""
        problem = self._problem(path)
        if path not in self.calls:
            return [Link(path, problem=problem)]
        drivers = self._drivers(path) if problem is None else [Link(path, problem=problem)]
        return inner_links(path, self.modules[path], drivers)

    def _after_layer(self, path: str, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            output, shift = self._shifted(path, output)
            source = Source(path, output.shape, shift)
        else:  # an LSTM cell, an RNN: its states have the same features
            source = Source(path, next(tensors_in(output)).shape)
        self._mark(output, [source])
        return output

    def _after_norm(self, path: str, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Any:
        sources = [source for source in self._marks.of(args[:1]).values() if source.shape is not None]
        if not sources:
            return self._after_layer(path, module, args, output) if is_layer(module) else None
        before = args[0].clone()
        output, shift = self._shifted(path, output)
        behind = [
            Source(source.path, output.shape, shift, path, Arrival(source, before)) for source in sources
        ]
        self._mark(output, behind)
        return output

    def _after_neuron(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if not self._runs:
            return
        spikes, received = spikes_of(module, output), _first_argument(module, args, kwargs)
        one_step = isinstance(spikes, tuple)
        sources = self._marks.of([received])
        layers = {key: source for key, source in sources.items() if source.shape is not None}
        self._marks.put(next(tensors_in(spikes)), NOTHING)
        self.weights.setdefault(path, set()).update(
            source.path for key, source in sources.items() if key not in layers
        )
        calls = self.calls.setdefault(path, [])
        if layers or received.count_nonzero():  # a neuron may wait for its first input
            calls.append(frozenset(source.path for source in layers.values()))
        arrivals = self.arrivals.setdefault(path, {})
        fresh = [key for key in layers if key not in arrivals]
        if fresh:
            samples = received if one_step else received.flatten(0, 1)
            samples = samples.clone()  # it may be changed in place later on
            arrivals |= {key: Arrival(layers[key], samples) for key in fresh}

    def _shifted(self, path: str, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output with zeros added, which all calls share, so that derivatives sum over them."""
        if not (output.is_floating_point() and torch.is_grad_enabled()):
            return output, None
        key = path, output.shape
        if key not in self._shifts:
            self._shifts[key] = torch.zeros_like(output, requires_grad=True)
        return output.detach() + self._shifts[key], self._shifts[key]

    def _mark(self, output: Any, sources: Sequence[Source]) -> None:
        if self._runs:
            for tensor in tensors_in(output):
                self._marks.put(tensor, {source.key: source for source in sources})

    def _problem(self, path: str) -> str | None:
        """Why the layers of a neuron cannot be known, if they cannot."""
        if path not in self.calls:
            return "it was not called, or as `neuron.forward(...)`, which no hook sees"
        calls = dict.fromkeys(self.calls[path])
        layers: frozenset[str] = frozenset().union(*calls)
        if not layers:
            return f"no layer reaches it{self._unfollowed(path)}"
        if layers not in calls or frozenset() in calls:
            sets = " or ".join(_listed(each) or "no layer" for each in calls)
            return f"different layers drive this one object in different calls: {sets}"
        return None

    def _unfollowed(self, path: str) -> str:
        """What may stand in place of a layer."""
        if self.weights[path]:
            return f", but weights that are used without their layer: {_listed(self.weights[path])}"
        quantised = {each for each, module in self.modules.items() if "quantized" in type(module).__module__}
        if quantised:
            return f". Quantised layers are not regulated, attach before quantising: {_listed(quantised)}"
        return ". Data that passes through NumPy, or lists, cannot be followed"

    def _drivers(self, path: str) -> list[Link]:
        """The layers that reach a neuron, with what is known of each."""
        arrivals = list(self.arrivals[path].values())
        alignments = self._align(path, arrivals)
        aligned = [(each.source, alignments[each]) for each in arrivals]
        moving = [source for source, alignment in aligned if alignment.slope]
        idle = {source.path for source, alignment in aligned if moving and alignment.slope == 0.0}
        notes = tuple(self._notes(path, idle))
        several = len({source.path for source, _ in aligned}) > 1
        return [
            Link(
                path,
                source.path,
                source.norm,
                alignment.sign,
                alignment.problem or (_unclear(source) if several and alignment.slope is None else None),
                notes,
            )
            for source, alignment in aligned
            if source.path not in idle
        ]

    def _notes(self, path: str, idle: set[str]) -> Iterator[str]:
        if idle:
            yield (
                f"Left out: {_listed(idle)}, of which nothing arrives at `{path}` on this example, only at "
                "what shares memory with its input."
            )
        if self.weights[path]:
            weights = _listed(self.weights[path])
            yield f"Not regulated: {weights}, used without their layer, which drive `{path}` too."

    def _align(self, path: str, arrivals: Sequence[Arrival]) -> dict[Arrival, Alignment]:
        """How the arrivals follow their layers, first to the norm in front of the neuron, if there is one."""
        aligned: dict[Arrival, Alignment] = {}
        together: dict[Tensor, list[tuple[Arrival, Connection]]] = defaultdict(list)
        for arrival in arrivals:
            try:
                connection = connect_cell(self.modules[arrival.source.path], self.modules[path])
            except HomeostasisError:  # is said again, and better, when the cell is built
                aligned[arrival] = Alignment()
            else:
                together[arrival.received].append((arrival, connection))
        for received, group in together.items():
            drivers = [(connection, arrival.source) for arrival, connection in group]
            aligned |= zip([arrival for arrival, _ in group], align(received, drivers), strict=True)
        at_norms = {
            arrival: arrival.source.before for arrival in arrivals if arrival.source.before is not None
        }
        before = self._align(path, list(at_norms.values())) if at_norms else {}
        return aligned | {
            arrival: before[at_norm] for arrival, at_norm in at_norms.items() if before[at_norm].problem
        }


def _unclear(source: Source) -> str:
    return f"without a gradient it is not clear whether `{source.path}` reaches it, or shares its memory"


def _obstacles(model: nn.Module) -> list[Link]:
    """Modules that cannot be run on copies of their tensors."""
    obstacles = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            obstacles.append(
                Link(path, problem="it is scripted, and cannot be followed: attach before scripting")
            )
        elif any(isinstance(each, UninitializedParameter) for each in module._parameters.values()):
            obstacles.append(
                Link(path, problem="its parameters have no values yet: run the model once before")
            )
    return obstacles


def _run(model: nn.Module, example: Any) -> None:
    """Calls the model from fresh membranes."""
    for module in model.modules():
        reset = getattr(module, "reset_mem", None)
        if is_neuron(module) and callable(reset):
            reset()
    try:
        if isinstance(example, dict):
            model(**example)
        else:
            model(*example) if isinstance(example, tuple) else model(example)
    except Exception as error:
        error.add_note("Raised by the model while it ran on `example`, to find its cells.")
        raise


def _first_argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    value = args[0] if args else kwargs[next(iter(signature(module.forward).parameters))]
    return next(tensors_in(value))


def _forget_taps(module: nn.Module) -> None:
    # a homeostasis that is attached already must not count this run
    hooks = module._forward_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, SpikeTap)]:
        del hooks[key]


def _eagerly() -> Any:
    set_stance = getattr(torch.compiler, "set_stance", None)  # from torch 2.6 on
    if set_stance is None or "torch._dynamo" not in sys.modules:  # which takes seconds to import
        return nullcontext()
    return set_stance("force_eager")


def _listed(paths: frozenset[str] | set[str]) -> str:
    return ", ".join(f"`{path}`" for path in sorted(paths))
