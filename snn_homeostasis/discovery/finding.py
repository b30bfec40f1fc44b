"""Finds the cells of a model, or says of every neuron why its layers cannot be known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..cells.cell import Cell
from ..errors import UnpairedNeuronError, warn
from ..layers.connections import is_layer
from .chains import chain_links
from .links import Choice, Link, chosen, listed, paired, title, told_apart
from .tracing import traced_links

__all__ = ["FoundCell", "find_cells"]


@dataclass(frozen=True)
class FoundCell:
    """Module paths of a neuron and of a layer that drives it.

    Attributes:
        name: of the cell: the neuron's path, followed by the layer's if it has several, and by
            the norm's if the layer has several.
        layer: path of the layer.
        neuron: path of the neuron.
        norm: path of the normalisation between the two, or None.
        sign: 1 if the neuron's input rises with the output of the layer, or of the norm, -1 if it
            falls, 0 if that differs from place to place.
    """

    name: str
    layer: str
    neuron: str
    norm: str | None = None
    sign: int = 1

    def build(self, model: nn.Module) -> Cell:
        """The cell of these modules."""
        norm = None if self.norm is None else model.get_submodule(self.norm)
        return Cell(model.get_submodule(self.layer), model.get_submodule(self.neuron), norm)


def find_cells(
    model: nn.Module,
    example: Any = None,
    *,
    pairs: Mapping[str, str | Sequence[str]] | None = None,
    include: Choice | None = None,
    exclude: Choice | None = None,
) -> list[FoundCell]:
    """Finds which layers drive which neurons of a model.

    With an example the model runs once, and its data is followed from the output of each layer,
    through every operation, to the input of each neuron. Derivatives then tell whether the
    neurons are the layer's channels in their order. The run leaves no trace in the model's
    modules: buffers, parameters, gradients, hooks, containers and random states are as before.
    What it keeps elsewhere, in objects of its own classes say, sees the run. It takes about the
    memory of a training step and of a second copy of the model.

    Without an example, the order of calls has to be that of an `nn.Sequential`.

    Args:
        model: is run in the mode it is in.
        example: an input of the model, or a tuple of its arguments, or a dict of them by name.
        pairs: neuron → layer, or a list of layers, by module path. They take the place of what
            is found; without an example, exactly these are taken.
        include: keep only the cells of these: paths of layers, of neurons or of modules around
            them, or types of layers.
        exclude: leave out the cells of these, with whatever cannot be known of them.

    Raises:
        UnpairedNeuronError: naming every neuron whose layers cannot be known, and why.
        ArgumentError: for a choice that nothing in the model fits.

    >>> import snntorch as snn, torch
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.lif, self.fc = snn.Leaky(beta=0.9), torch.nn.Linear(4, 8)
    ...
    ...     def forward(self, x):
    ...         mem = self.lif.init_leaky()
    ...         for step in x:
    ...             spikes, mem = self.lif(self.fc(step), mem)
    ...         return spikes
    >>> find_cells(Net(), torch.rand(5, 2, 4))
    [FoundCell(name='lif', layer='fc', neuron='lif', norm=None, sign=1)]
    """
    links: list[Link] = []
    if example is not None:
        links = traced_links(model, example)
    elif pairs is None:
        links = chain_links(model)
    links = told_apart(chosen(model, paired(model, links, pairs or {}), include, exclude))
    if not links or any(link.problem for link in links):
        raise UnpairedNeuronError(_describe(model, links))
    for note in dict.fromkeys(note for link in links for note in link.notes):
        warn(note)
    return _named(links)


def _named(links: Sequence[Link]) -> list[FoundCell]:
    norms: dict[str, dict[str, set[str | None]]] = defaultdict(lambda: defaultdict(set))
    for link in links:
        assert link.layer is not None
        norms[link.neuron][link.layer].add(link.norm)
    found = []
    for link in links:
        assert link.layer is not None
        name = [link.neuron or "neuron"]
        name += [link.layer] if len(norms[link.neuron]) > 1 else []
        name += [link.norm] if link.norm and len(norms[link.neuron][link.layer]) > 1 else []
        found.append(FoundCell(":".join(name), link.layer, link.neuron, link.norm, link.sign))
    return found


def _describe(model: nn.Module, links: Sequence[Link]) -> str:
    modules = dict(model.named_modules(remove_duplicate=False))
    problems = dict.fromkeys(
        f"  {title(link.neuron, modules.get(link.neuron))}: {link.problem}" for link in links if link.problem
    )
    layers = listed(path for path, module in modules.items() if path and is_layer(module))
    lines = "\n".join(problems) or "  the model has no spiking neuron"
    return (
        f"`model` should tell which layer drives each neuron. Found {type(model).__name__}, where this "
        f"cannot be known:\n{lines}\nName them by module path: attach(model, pairs={{'neuron': 'layer'}}), "
        f"or leave them out: exclude=['neuron'], or ['layer']. The layers are {layers or 'none'}."
    )
