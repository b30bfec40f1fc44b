"""Links of any model: it runs once, and its data is followed from layers to neurons."""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import HomeostasisError
from ..layers.connections import Connection
from ..layers.inner import connect_cell, inner_layers
from ..observe.neurons import all_neurons, is_neuron
from .alignment import Alignment, align
from .isolation import copied, isolated
from .links import Link, inner_links, join, listed
from .marks import Arrival, Key, Source
from .obstacles import obstacles
from .watching import Seen, Watch

__all__ = ["traced_links"]


def traced_links(model: nn.Module, example: Any) -> list[Link]:
    """The links of a model, seen while it runs on an example. It is left as it was.

    Args:
        model: runs once, in the mode it is in, from fresh membranes.
        example: what it takes: a tensor, or a tuple or dict of arguments.
    """
    if isinstance(model, DistributedDataParallel):  # its own forward would wait for other processes
        return [link.below("module") for link in traced_links(model.module, example)]
    if found := obstacles(model):
        return found
    wants_graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        try:
            return _trace(model, example)
        except RuntimeError:
            if wants_graph:
                raise
    with torch.inference_mode(False), torch.no_grad():  # it may be made for that alone
        return _trace(model, example)


def _trace(model: nn.Module, example: Any) -> list[Link]:
    bystanders = all_neurons() - set(model.modules())  # `utils.reset` reaches them from any model
    with _eagerly(), isolated(model, bystanders):
        watch = Watch(model)
        with watch.running():
            _run(model, copied(example))
        return [link for path in watch.neurons for link in _links(watch, path)]


def _links(watch: Watch, path: str) -> list[Link]:
    """The links of the neuron with this path."""
    seen = watch.seen.get(path)
    if seen is None:
        return [Link(path, problem="it was not called, or as `neuron.forward(...)`, which no hook sees")]
    problem = _problem(watch, path, seen)
    drivers = _drivers(watch, path, seen) if problem is None else [Link(path, problem=problem)]
    return inner_links(path, watch.modules[path], drivers)


def _problem(watch: Watch, path: str, seen: Seen) -> str | None:
    """Why the layers of a neuron cannot be known, if they cannot."""
    known = {join(path, name) for name in inner_layers(watch.modules[path])}
    unknown = {layer for layer in watch.called - known if layer.startswith(f"{path}.")}
    if unknown:
        return f"it computes with {listed(sorted(unknown))}, not known to be a layer inside such a neuron"
    calls = dict.fromkeys(seen.calls)
    layers: frozenset[str] = frozenset().union(*calls)
    if not layers:
        return f"no layer reaches it{_unfollowed(watch, seen)}"
    if layers not in calls or frozenset() in calls:
        sets = " or ".join(listed(sorted(each)) or "no layer" for each in calls)
        return f"different layers drive this one object in different calls: {sets}"
    return None


def _unfollowed(watch: Watch, seen: Seen) -> str:
    """What may stand in place of a layer."""
    if seen.weights:
        return f", but weights that are used without their layer: {listed(sorted(seen.weights))}"
    quantised = [path for path, module in watch.modules.items() if "quantized" in type(module).__module__]
    if quantised:
        return f". Quantised layers are not regulated, attach before quantising: {listed(sorted(quantised))}"
    return ". Data that passes through NumPy, or lists, cannot be followed"


def _drivers(watch: Watch, path: str, seen: Seen) -> list[Link]:
    """The layers that reach a neuron, with what is known of each."""
    first = _align(watch, path, seen.first)
    last = first if seen.last == seen.first else _align(watch, path, seen.last)
    aligned = {key: Alignment.of_all([first[key], last[key]]) for key in first}
    idle = {key for key, each in aligned.items() if each.slope == 0.0 and each.problem is None}
    moving = any(each.slope for each in aligned.values())
    elsewhere = {key for key in idle if moving and seen.last[key].shares}
    notes = tuple(_notes(path, seen, {seen.last[key].source.path for key in elsewhere}))
    return [
        _link(path, seen.last[key].source, aligned[key], notes) for key in aligned if key not in elsewhere
    ]


def _link(path: str, source: Source, alignment: Alignment, notes: tuple[str, ...]) -> Link:
    problem = alignment.problem
    if problem is None and alignment.slope == 0.0:
        problem = f"adding to the output of `{source.path}` changes nothing of its input on this example"
    verified = alignment.slope is not None
    return Link(path, source.path, source.norm, alignment.sign, problem, notes, verified)


def _notes(path: str, seen: Seen, elsewhere: set[str]) -> Iterator[str]:
    if elsewhere:
        yield (
            f"Left out: {listed(sorted(elsewhere))}, of which nothing arrives at `{path}` on this example, "
            "only at what shares memory with its input."
        )
    if seen.weights:
        weights = listed(sorted(seen.weights))
        yield f"Not regulated: {weights}, used without their layer, which drive `{path}` too."


def _align(watch: Watch, path: str, arrivals: Mapping[Key, Arrival]) -> dict[Key, Alignment]:
    """How the arrivals follow their layers, first to the norm in front of the neuron, if there is one."""
    aligned: dict[Key, Alignment] = {}
    together: dict[Tensor, list[tuple[Key, Connection]]] = defaultdict(list)
    for key, arrival in arrivals.items():
        try:
            connection = connect_cell(watch.modules[arrival.source.path], watch.modules[path])
        except HomeostasisError:  # is said again, and better, when the cell is built
            aligned[key] = Alignment(1.0)
        else:
            together[arrival.received].append((key, connection))
    for received, group in together.items():
        drivers = [(connection, arrivals[key].source) for key, connection in group]
        aligned |= zip([key for key, _ in group], align(received, drivers), strict=True)
    at_norms = {key: each.source.before for key, each in arrivals.items() if each.source.before is not None}
    before = _align(watch, path, at_norms) if at_norms else {}
    return aligned | {key: alignment for key, alignment in before.items() if alignment.problem}


def _run(model: nn.Module, example: Any) -> None:
    """Calls the model from fresh membranes."""
    for module in model.modules():
        reset = getattr(module, "reset_mem", None)
        if is_neuron(module) and callable(reset):
            reset()
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    args = args if isinstance(args, tuple) else (args,)
    try:
        result = model(*args, **kwargs)
        if isinstance(result, Iterator):
            deque(result, maxlen=0)
    except Exception as error:
        error.add_note(
            f"Raised by the model while it ran on `example`, to find its cells, with {len(args)} arguments "
            f"by position and {list(kwargs)} by name. A tuple gives several arguments, a dict gives them "
            "by name; where the model cannot run so, name its cells in `pairs=`, without an example."
        )
        raise


def _eagerly() -> Any:
    set_stance = getattr(torch.compiler, "set_stance", None)  # from torch 2.6 on
    if set_stance is None or "torch._dynamo" not in sys.modules:  # which takes seconds to import
        return nullcontext()
    return set_stance("force_eager")
