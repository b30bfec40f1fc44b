"""Links of any model: it runs once on an example, and its data is followed from layers to neurons."""

import sys
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import HomeostasisError
from ..layers import Connection, connect_cell
from ..observe import all_neurons, is_neuron
from .alignment import Alignment, align
from .isolation import copied, isolated
from .links import Link, inner_links, quoted
from .provenance import Arrival, Key, Source
from .recorder import NeuronRecord, Recorder
from .unsupported import unsupported_modules

__all__ = ["traced_links"]


def traced_links(model: nn.Module, example: Any) -> list[Link]:
    """The links that a run on an example shows. The run leaves the model unchanged."""
    if problems := unsupported_modules(model):
        return problems
    failures = () if torch.is_grad_enabled() else (RuntimeError,)
    with torch.inference_mode(False):
        with torch.enable_grad(), suppress(*failures):
            return _trace(model, example)
        # the model may change parameters in place, which works without gradients alone
        with torch.no_grad():
            return _trace(model, example)


def _trace(model: nn.Module, example: Any) -> list[Link]:
    other_neurons = all_neurons() - set(model.modules())  # `utils.reset` in any model resets them all
    with _eagerly(), isolated(model, other_neurons):
        recorder = Recorder(model)
        with recorder.running():
            _run(model, copied(example))
        return [link for path in recorder.neurons for link in _links(recorder, path)]


def _links(recorder: Recorder, path: str) -> list[Link]:
    record = recorder.records.get(path)
    if record is None:
        return [Link(path, problem="it was not called as `neuron(...)`; no hook sees `neuron.forward(...)`")]
    problem = _problem(recorder, path, record)
    drivers = _drivers(recorder, path, record) if problem is None else [Link(path, problem=problem)]
    return inner_links(path, recorder.modules[path], drivers)


def _problem(recorder: Recorder, path: str, record: NeuronRecord) -> str | None:
    """Why the layers of a neuron cannot be known, or None."""
    unknown = {layer for layer in recorder.called if layer.startswith(f"{path}.")}
    if unknown:
        return f"it computes with {quoted(sorted(unknown))}, which is not a known layer of such a neuron"
    calls = dict.fromkeys(record.calls)
    layers: frozenset[str] = frozenset().union(*calls)
    if not layers:
        return f"no layer reaches it{_instead(recorder, record)}"
    if layers not in calls or frozenset() in calls:
        sets = " or ".join(quoted(sorted(each)) or "no layer" for each in calls)
        return f"different layers drive this one object in different calls: {sets}"
    return None


def _instead(recorder: Recorder, record: NeuronRecord) -> str:
    """What may reach a neuron instead of a layer."""
    if record.weights:
        return f", only weights that are used without their layer: {quoted(sorted(record.weights))}"
    quantised = [path for path, module in recorder.modules.items() if "quantized" in type(module).__module__]
    if quantised:
        return f". Quantised layers are not regulated: attach before quantising {quoted(sorted(quantised))}"
    return ". Data cannot be followed through NumPy or lists"


def _drivers(recorder: Recorder, path: str, record: NeuronRecord) -> list[Link]:
    first = _align(recorder, path, record.first)
    last = first if record.last == record.first else _align(recorder, path, record.last)
    aligned = {key: Alignment.of_all([first[key], last[key]]) for key in first}
    # several tensors may share a storage: a source that moves nothing can belong to another one
    idle = {key for key, each in aligned.items() if each.slope == 0.0 and each.problem is None}
    is_driven = any(each.slope for each in aligned.values())
    elsewhere = {key for key in idle if is_driven and record.last[key].is_part}
    notes = tuple(_notes(path, record, {record.last[key].source.path for key in elsewhere}))
    return [
        _link(path, record.last[key].source, aligned[key], notes) for key in aligned if key not in elsewhere
    ]


def _link(path: str, source: Source, alignment: Alignment, notes: tuple[str, ...]) -> Link:
    problem = alignment.problem
    if problem is None and alignment.slope == 0.0:
        problem = f"its input does not change with the output of `{source.path}` on this example"
    verified = alignment.slope is not None
    return Link(path, source.path, source.norm, alignment.sign, problem, notes, verified)


def _notes(path: str, record: NeuronRecord, elsewhere: set[str]) -> Iterator[str]:
    if elsewhere:
        yield (
            f"Left out: {quoted(sorted(elsewhere))}. On this example the input of `{path}` does not change "
            "with it, only other tensors in the same memory do."
        )
    if record.weights:
        yield (
            f"Not regulated: {quoted(sorted(record.weights))}. The model uses it without its layer, and it "
            f"drives `{path}` too."
        )


def _align(recorder: Recorder, path: str, arrivals: Mapping[Key, Arrival]) -> dict[Key, Alignment]:
    """Compares each arrival with its layer; a problem at the norm in front of the neuron comes first."""
    aligned: dict[Key, Alignment] = {}
    layouts: dict[tuple[Tensor, type, int], dict[Key, Connection]] = defaultdict(dict)
    for key, arrival in arrivals.items():
        try:
            connection = connect_cell(recorder.modules[arrival.source.path], recorder.modules[path])
        except HomeostasisError:  # the cell raises it again, with more detail
            aligned[key] = Alignment(1.0)
        else:
            layouts[arrival.received, type(connection), connection.features][key] = connection
    for (received, *_), connections in layouts.items():
        connection, sources = next(iter(connections.values())), [arrivals[key].source for key in connections]
        aligned |= zip(connections, align(received, connection, sources), strict=True)
    at_norms = {key: each.source.before for key, each in arrivals.items() if each.source.before is not None}
    before = _align(recorder, path, at_norms) if at_norms else {}
    aligned |= {key: alignment for key, alignment in before.items() if alignment.problem}
    return {key: aligned[key] for key in arrivals}


def _run(model: nn.Module, example: Any) -> None:
    """Calls the model from fresh membranes."""
    for module in model.modules():
        reset = getattr(module, "reset_mem", None)
        if is_neuron(module) and callable(reset):
            reset()
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    args = args if isinstance(args, tuple) else (args,)
    try:
        # the wrapper's own forward waits for other processes
        forward = model.module if isinstance(model, DistributedDataParallel) else model
        result = forward(*args, **kwargs)
        if isinstance(result, Iterator):
            deque(result, maxlen=0)
    except Exception as error:
        error.add_note(
            f"Raised by the model while it ran on `example` to find its cells, with {len(args)} arguments by "
            f"position and {list(kwargs)} by name. Pass several arguments as a tuple, or as a dict by name. "
            "If the model cannot run on an example, pass none and name its cells in `pairs=`."
        )
        raise


def _eagerly() -> Any:
    set_stance = getattr(torch.compiler, "set_stance", None)  # from torch 2.6 on
    if set_stance is None or "torch._dynamo" not in sys.modules:  # an import takes seconds
        return nullcontext()
    return set_stance("force_eager")
