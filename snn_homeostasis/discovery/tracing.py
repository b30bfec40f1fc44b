"""Links of any model: it runs once on an example, and its data is followed from layers to neurons."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import HomeostasisError
from ..layers import Connection, connect_cell, inner_layers
from ..observe import all_neurons, reset_membranes
from .alignment import Alignment, align
from .arguments import arguments_of
from .effects import Effect, effect_of_weight
from .isolation import copied, eagerly, isolated
from .links import Link, inner_links, is_within, norm_inside, quoted
from .provenance import Arrival, Key, Kind, Source
from .readouts import UNUSED, out_of_reach
from .recorder import NeuronRecord, Recorder

__all__ = ["traced_links"]


def traced_links(model: nn.Module, example: Any) -> list[Link]:
    """The links that a run on an example shows. The run leaves the model unchanged."""
    failures = () if torch.is_grad_enabled() else (RuntimeError,)
    with torch.inference_mode(False):
        with torch.enable_grad(), suppress(*failures):
            return _trace(model, example)
        # the model may change parameters in place, which works without gradients alone
        with torch.no_grad():
            return _trace(model, example)


def _trace(model: nn.Module, example: Any) -> list[Link]:
    other_neurons = all_neurons() - set(model.modules())  # `utils.reset` in any model resets them all
    with eagerly(), isolated(model, other_neurons):
        recorder, example = Recorder(model), copied(example)
        with recorder.running(example):
            recorder.finish(_run(model, example))
        in_order = dict.fromkeys([*recorder.records, *recorder.neurons])
        return [link for path in in_order for link in _links(recorder, path)]


def _links(recorder: Recorder, path: str) -> list[Link]:
    record, neuron = recorder.records.get(path), recorder.modules[path]
    if record is None:
        return [Link(path, problem="it was not called as `neuron(...)`; no hook sees `neuron.forward(...)`")]
    problem = _problem(recorder, path)
    if problem is not None:
        drivers = [Link(path, problem=problem)]
    elif any(record.calls):
        reuse = _reuse(recorder, path, record)
        drivers = [replace(link, reuse=reuse) for link in _drivers(recorder, path, record)]
    else:
        drivers = [Link(path, problem=f"no layer reaches it{_instead(recorder, path, record)}", is_open=True)]
    readout = _readout(recorder, path, record)
    return [replace(link, readout=readout) for link in inner_links(path, neuron, drivers)]


def _problem(recorder: Recorder, path: str) -> str | None:
    """Why no layer in front of a neuron can be regulated, or None."""
    unknown = {layer for layer in recorder.called if is_within(layer, path)}
    if unknown:
        return f"it computes with {quoted(sorted(unknown))}, which is not a known layer of such a neuron"
    norms = recorder.norms_inside.get(path)
    return norm_inside(sorted(norms)) if norms else None


def _reuse(recorder: Recorder, path: str, record: NeuronRecord) -> str | None:
    """How one neuron object serves several layers in turn, unless it is one population all the time."""
    calls = dict.fromkeys(record.calls)
    layers: frozenset[str] = frozenset().union(*calls)
    if layers in calls and frozenset() not in calls:
        return None
    is_behind_itself = frozenset() in calls or any(path in recorder.behind[layer] for layer in layers)
    if record.keeps_state and not is_behind_itself:
        return None  # one membrane takes in one layer after the other
    sets = " or ".join(quoted(sorted(each)) or "no layer" for each in calls)
    return f"different layers drive this one object in different calls: {sets}"


def _readout(recorder: Recorder, path: str, record: NeuronRecord) -> str | None:
    """Why nobody needs the spikes of a neuron, or None."""
    neuron = recorder.modules[path]
    is_recurrent = any(layer.recurrent for layer in inner_layers(neuron).values())
    if path not in recorder.used and not recorder.is_blind and not is_recurrent:
        return UNUSED
    return out_of_reach(neuron, None if record.peak is None else float(record.peak))


def _instead(recorder: Recorder, path: str, record: NeuronRecord) -> str:
    """What reaches a neuron instead of a layer."""
    if weights := record.others[Kind.FACTOR]:
        return f", only weights that are used without their layer: {quoted(sorted(weights))}"
    quantised = [path for path, module in recorder.modules.items() if "quantized" in type(module).__module__]
    if quantised:
        return f". Quantised layers are not regulated: attach before quantising {quoted(sorted(quantised))}"
    remedy = f"Put a layer in between, or leave it out: exclude=[{path!r}]"
    if spikes := record.others[Kind.SPIKES]:
        return f", only the spikes of {quoted(sorted(spikes))}. {remedy}"
    if record.others[Kind.EXAMPLE]:
        return f", only the input of the model. {remedy}"
    return ". Data cannot be followed through NumPy or lists"


def _drivers(recorder: Recorder, path: str, record: NeuronRecord) -> list[Link]:
    first = _align(recorder, path, record.first)
    last = first if record.last == record.first else _align(recorder, path, record.last)
    aligned = {key: Alignment.of_all([first[key], last[key]]) for key in first}
    # several tensors may share a storage: a source that moves nothing can belong to another one
    idle = {key for key, each in aligned.items() if each.slope == 0.0 and each.problem is None}
    if idle and len(record.parts) > 2:  # or it arrives in a call between the first and the last
        between = torch.cat(record.parts[1:-1])
        aligned |= _align(recorder, path, {key: replace(record.last[key], received=between) for key in idle})
        idle = {key for key in idle if aligned[key].slope == 0.0}
    is_driven = any(each.slope for each in aligned.values())
    elsewhere = {key for key in idle if is_driven and record.last[key].is_part}
    notes = tuple(_notes(path, record, {record.last[key].source.path for key in elsewhere}))
    links = {key: _link(path, record.last[key].source, aligned[key], notes) for key in aligned}
    return [
        replace(link, effect=_effect(recorder, path, record.last[key].source))
        for key, link in links.items()
        if key not in elsewhere
    ]


def _link(path: str, source: Source, alignment: Alignment, notes: tuple[str, ...]) -> Link:
    problem, is_open = alignment.problem, alignment.is_open
    if problem is None and alignment.slope == 0.0:
        problem = f"its input does not change with the output of `{source.path}` on this example"
        is_open = True
    verified = alignment.slope is not None
    return Link(
        path, source.path, source.norm, alignment.sign, problem, notes, verified, source.delay, is_open
    )


def _effect(recorder: Recorder, path: str, source: Source) -> Effect | None:
    outputs = recorder.outputs.get(source.path, ())
    try:
        connection = connect_cell(recorder.modules[source.path], recorder.modules[path])
    except HomeostasisError:  # the cell raises it again
        return None
    return effect_of_weight(connection, dict.fromkeys(outputs))


def _notes(path: str, record: NeuronRecord, elsewhere: set[str]) -> Iterator[str]:
    if elsewhere:
        yield (
            f"Left out: {quoted(sorted(elsewhere))}. On this example the input of `{path}` does not change "
            "with it, only other tensors in the same memory do."
        )
    if weights := record.others[Kind.FACTOR]:
        yield (
            f"Not regulated: {quoted(sorted(weights))}. The model uses it without its layer, and it "
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


def _run(model: nn.Module, example: Any) -> Any:
    """Calls the model from fresh membranes, and returns what it returns."""
    reset_membranes(model.modules())
    args, kwargs = arguments_of(example)
    try:
        # the wrapper's own forward waits for other processes
        forward = model.module if isinstance(model, DistributedDataParallel) else model
        result = forward(*args, **kwargs)
        return list(result) if isinstance(result, Iterator) else result
    except Exception as error:
        error.add_note(
            f"Raised by the model while it ran on `example` to find its cells, with {len(args)} arguments by "
            f"position and {list(kwargs)} by name. Pass several arguments as a tuple, or as a dict by name. "
            "If the model cannot run on an example, pass none and name its cells in `pairs=`."
        )
        raise
