"""Finds the cells of a model, or says for every neuron why its layers cannot be known."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..cells import Cell, Places
from ..delays import is_trainable_delay
from ..errors import UnpairedNeuronError, require, warn
from ..layers import is_layer
from .chains import chain_links
from .effects import Effect
from .links import Choice, Link, Pairs, apply_choices, describe, plain, quoted
from .pairing import paired
from .readouts import without_readouts
from .tracing import traced_links
from .unsupported import modules_without_values, unsupported_modules

__all__ = ["FoundCell", "find_cells", "require_model"]


@dataclass(frozen=True)
class FoundCell:
    """The module paths of a neuron and of a layer that drives it.

    Args:
        name: name of the cell: the neuron's path, then the layer's path if several layers drive
            the neuron, then the norm's path if several norms follow the layer.
        layer: path of the layer.
        neuron: path of the neuron.
        norm: path of the normalisation between the two, or None.
        sign: 1 if the neuron's input rises with the output of the layer, or of the norm, -1 if
            it falls, 0 if some entries rise and others fall.
        delay: path of a module between the two that delays each channel by a Parameter, or None.
        effect: how the output of the layer follows its weight on the example, None if unknown.

    >>> import snntorch as snn, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
    >>> FoundCell("lif", layer="0", neuron="1").build(model)
    Cell(Linear -> Leaky)
    """

    name: str
    layer: str
    neuron: str
    norm: str | None = None
    sign: int = 1
    delay: str | None = None
    effect: Effect | None = field(default=None, repr=False, compare=False)

    def build(self, model: nn.Module) -> Cell:
        """Builds the cell of these modules; errors as in `Cell`."""
        paths = (self.layer, self.neuron, self.norm, self.delay)
        modules = {path: model.get_submodule(path) for path in paths if path is not None}
        between = (None if path is None else modules[path] for path in (self.norm, self.delay))
        cell = Cell(modules[self.layer], modules[self.neuron], *between, sign=-1 if self.sign < 0 else 1)
        cell.places = Places(model, modules)
        return cell


def require_model(model: object) -> None:
    """Raises ArgumentError for what is no model, such as its class, its name, or a list of its parts."""
    remedy = "Build it first, as in `model = Net()`; a list of layers goes into an `nn.Sequential`."
    require(isinstance(model, nn.Module), "model", "be an nn.Module", model, remedy)


def find_cells(
    model: nn.Module,
    example: Any = None,
    *,
    pairs: Pairs | None = None,
    include: Choice | None = None,
    exclude: Choice | None = None,
) -> list[FoundCell]:
    """Finds which layers drive which neurons of a model: one cell for each layer of each neuron.

    With an example, the model runs once. Every operation on the data is followed, from the output
    of each layer to the input of each neuron. Derivatives then show whether the neurons are the
    layer's channels, in order. The run changes no buffer, parameter, gradient, hook, container or
    random state. It does change what the model keeps in objects of its own classes. It takes the
    memory of a training step and of a second copy of the model.

    Without an example, the order of calls is read from each `nn.Sequential`.

    Readouts are left out with a warning, unless ``include`` or ``pairs`` names them: a neuron without a
    reset whose threshold is out of reach, or one whose spikes reach neither a layer nor what the model
    returns, while no layer reads its membrane.

    Args:
        model: a model in any mode; it runs in that mode.
        example: an input of the model, a tuple of its arguments, or a dict of them by name.
        pairs: neuron → layer, or a list of layers, by module path. They replace what is found;
            without an example, there are no other cells. A pair that was found keeps its norm, its
            delay and its sign; one that a run or a `nn.Sequential` contradicts is refused.
        include: paths of layers, of neurons or of modules around them, these modules themselves, or
            types of layers. Only their cells are kept.
        exclude: the same, for cells to leave out, known or not.

    Raises:
        UnpairedNeuronError: if the layers of a neuron cannot be known. It names all such neurons.
        ArgumentError: if nothing in the model matches ``include`` or ``exclude``.

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
    [FoundCell(name='lif', layer='fc', neuron='lif', norm=None, sign=1, delay=None)]
    """
    require_model(model)
    is_traced = example is not None
    links = _links(model, example)
    if pairs is not None:
        links = paired(model, links, pairs, is_traced)
    links = apply_choices(model, links, include, exclude)
    left_out: list[str] = []
    if include is None:
        links, left_out = without_readouts(links)
    if not links or any(link.problem or link.reuse for link in links):
        raise UnpairedNeuronError(_report(model, links))
    for note in dict.fromkeys([*left_out, *(note for link in links for note in link.notes)]):
        warn(note)
    return _named_cells(model, links)


def _links(model: nn.Module, example: Any) -> list[Link]:
    if example is not None and (problems := unsupported_modules(model)):
        raise UnpairedNeuronError(_report(model, problems))
    try:
        return chain_links(model) if example is None else traced_links(model, example)
    except Exception as error:  # what a meta tensor raises does not say where it is
        if problems := modules_without_values(model):
            raise UnpairedNeuronError(_report(model, problems)) from error
        raise


def _named_cells(model: nn.Module, links: Sequence[Link]) -> list[FoundCell]:
    modules = dict(model.named_modules(remove_duplicate=False))
    paths = {(link.neuron, link.layer, link.norm) for link in links}
    norms = Counter((neuron, layer) for neuron, layer, _ in paths)
    layers = Counter(neuron for neuron, _ in norms)
    cells = []
    for link in links:
        layer = link.layer or ""
        name = plain(link.neuron, modules) or "neuron"
        name += f":{plain(layer, modules)}" if layers[link.neuron] > 1 else ""
        name += f":{plain(link.norm, modules)}" if link.norm and norms[link.neuron, layer] > 1 else ""
        delay = link.delay
        if delay is not None and not is_trainable_delay(modules[delay], modules[layer]):
            delay = None
        cells.append(FoundCell(name, layer, link.neuron, link.norm, link.sign, delay, link.effect))
    return cells


def _report(model: nn.Module, links: Sequence[Link]) -> str:
    modules = dict(model.named_modules(remove_duplicate=False))
    problems = dict.fromkeys(
        f"  {describe(link.neuron, modules.get(link.neuron))}: {link.reuse or link.problem}"
        for link in links
        if link.problem or link.reuse
    )
    layers = quoted(path for path, module in modules.items() if path and is_layer(module))
    lines = "\n".join(problems) or "  the model has no spiking neuron"
    return (
        "`model` should show which layer drives each neuron. Found a model of class "
        f"{type(model).__name__}, where this cannot be known:\n{lines}\n"
        "Name the layers by module path: attach(model, pairs={'neuron': 'layer'}), or leave cells out: "
        f"exclude=['neuron'], or ['layer']. The layers are {layers or 'none'}."
    )
