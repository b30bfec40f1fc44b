"""Pairs that the user names: held against what is found, and against the norms that may lie between."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from ..errors import HomeostasisError, require
from ..layers import connect, is_layer
from ..observe import is_neuron
from .chains import NORMS
from .links import Link, Pairs, canonical_paths, is_within, norm_inside, places_in, quoted

__all__ = ["paired"]

SIZES = ("num_features", "num_channels", "normalized_shape")  # attributes of norms


def paired(model: nn.Module, links: Sequence[Link], pairs: Pairs, is_traced: bool) -> list[Link]:
    """Replaces the links of paired neurons. Without a run, only these are left.

    A pair that was also found keeps its norm, its delay, its sign and its problem. The user's word
    stands where nothing contradicts it.
    """
    remedy = "Name layers by neuron: pairs={'neuron': 'layer'}, or {'neuron': ['layer', 'other']}."
    require(isinstance(pairs, Mapping), "pairs", "be a dict of module paths", pairs, remedy)
    paths = canonical_paths(model)
    named = {str(paths.get(neuron, neuron)): places_in("pairs", layers) for neuron, layers in pairs.items()}
    flow = list(dict.fromkeys(link.neuron for link in links))
    result: list[Link] = []
    for neuron in [*flow, *(each for each in named if each not in flow)]:
        known = [link for link in links if link.neuron == neuron]
        if neuron in named:
            layers = [str(paths.get(layer, layer)) for layer in named[neuron]]
            result += _pair(model, neuron, layers, known, is_traced)
        elif is_traced:
            result += known
    return result


def _pair(
    model: nn.Module, neuron: str, layers: Sequence[str], known: Sequence[Link], is_traced: bool
) -> Iterator[Link]:
    modules = dict(model.named_modules())
    if neuron not in modules or not is_neuron(modules[neuron]):
        yield Link(neuron, problem="no neuron of the model has this path")
        return
    taking_turns = {link.layer for link in known if link.reuse and link.layer is not None}
    for layer in layers:
        found = [link for link in known if link.layer == layer]
        if layer not in modules:
            yield Link(neuron, layer, problem=f"no module of the model has the path `{layer}`")
        elif found:
            for link in found:
                problem = None if link.is_open else link.problem
                reuse = None if taking_turns <= {*layers} else link.reuse
                yield replace(link, problem=problem, reuse=reuse, notes=(), is_verified=True, readout=None)
        else:
            problem = _contradiction(modules, neuron, layer, known, is_traced)
            yield Link(neuron, layer, problem=problem, is_verified=problem is not None or not is_traced)


def _contradiction(
    modules: dict[str, nn.Module], neuron: str, layer: str, known: Sequence[Link], is_traced: bool
) -> str | None:
    """What speaks against a pair that was not found, or None."""
    norms = [path for path, each in modules.items() if isinstance(each, NORMS) and is_within(path, neuron)]
    if is_within(layer, neuron):
        return norm_inside(norms) if norms and layer not in norms else None
    closed = [link.problem for link in known if link.layer is None and not link.is_open]
    if closed:
        return closed[0]
    drivers = [link.layer for link in known if link.layer is not None]
    if drivers and len(drivers) == len(known):
        return f"`{layer}` does not reach it; what does is {quoted(drivers)}"
    rivals = [] if is_traced else _norms_that_fit(modules, layer)
    if rivals:
        return (
            f"{quoted(rivals)} may lie between `{layer}` and it, which only a run shows: pass `example=`, or "
            "build the cell yourself: register_cell(name, Cell(layer, neuron, norm=...))"
        )
    return None


def _norms_that_fit(modules: dict[str, nn.Module], layer: str) -> list[str]:
    """The norms that could lie behind a layer, by the number of its features."""
    try:
        features = connect(modules[layer]).features if is_layer(modules[layer]) else 0
    except HomeostasisError:  # the cell raises it again, with more detail
        return []
    return [
        path
        for path, norm in modules.items()
        if isinstance(norm, NORMS) and path != layer and features in _sizes(norm)
    ]


def _sizes(norm: nn.Module) -> tuple[int, ...]:
    size = next(getattr(norm, name) for name in SIZES if hasattr(norm, name))
    return (size,) if isinstance(size, int) else tuple(size)
