"""Links: a layer that drives a neuron, or the problem that keeps the layer unknown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from ..errors import require
from ..layers import inner_layers
from ..observe import is_neuron

__all__ = [
    "Choice", "Link", "Pairs", "apply_pairs", "describe", "filter_links", "inner_links", "join",
    "mark_unverified", "quoted",
]  # fmt: skip

Selector = str | type[nn.Module]
Choice = Sequence[Selector] | Selector
Pairs = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Link:
    """A layer that drives a neuron, or a problem with the two.

    Attributes:
        neuron: path of the neuron.
        layer: path of the layer; None if the problem concerns the neuron alone.
        norm: path of the normalisation between the two, or None.
        sign: 1 if the neuron's input rises with the output of the layer, or of the norm, -1 if
            it falls, 0 if some entries rise and others fall.
        problem: why the layer cannot regulate the neuron, or None.
        notes: warnings about the neuron.
        is_verified: whether derivatives show that the layer's channels arrive in order.
    """

    neuron: str
    layer: str | None = None
    norm: str | None = None
    sign: int = 1
    problem: str | None = None
    notes: tuple[str, ...] = ()
    is_verified: bool = True

    def below(self, path: str) -> Link:
        """The link in a larger model, where this model has the given path."""
        layer, norm = (None if each is None else join(path, each) for each in (self.layer, self.norm))
        return replace(self, neuron=join(path, self.neuron), layer=layer, norm=norm)


def inner_links(path: str, neuron: nn.Module, outer: Sequence[Link]) -> list[Link]:
    """The links of a neuron: of its inner layers, and of outer ones unless an inner layer takes the input."""
    layers = inner_layers(neuron)
    inner = [Link(path, join(path, name)) for name in layers]
    return [*outer, *inner] if all(layer.recurrent for layer in layers.values()) else inner


def apply_pairs(model: nn.Module, links: Sequence[Link], pairs: Pairs) -> list[Link]:
    """Replaces the links of the neurons that the user pairs with layers, by module path.

    A pair that was also found keeps its norm and its sign.
    """
    modules, first = _modules_by_path(model)
    found = {(link.neuron, link.layer): link for link in links}
    paired = {first.get(neuron) for neuron in pairs}
    result = [link for link in links if link.neuron not in paired]
    for neuron, layers in pairs.items():
        if neuron not in modules or not is_neuron(modules[neuron]):
            result.append(Link(neuron, problem="no neuron of the model has this path"))
        for layer in [layers] if isinstance(layers, str) else layers:
            ends = first.get(neuron, neuron), first.get(layer, layer)
            link = found.get(ends, Link(*ends))
            problem = None if layer in modules else f"no module of the model has the path `{layer}`"
            result.append(replace(link, problem=problem, notes=(), is_verified=True))
    return result


def filter_links(
    model: nn.Module, links: Sequence[Link], include: Choice | None, exclude: Choice | None
) -> list[Link]:
    """The links that the user wants, by paths and types of modules.

    Raises:
        ArgumentError: if no module has a path or a type, or if no link is left.
    """
    modules, first = _modules_by_path(model)
    included, excluded = (
        [first[each] if isinstance(each, str) else each for each in _known(name, choice, modules)]
        for name, choice in (("include", include), ("exclude", exclude))
    )
    wanted = [link for link in links if include is None or _matches(link, included, modules)]
    wanted = [link for link in wanted if not _matches(link, excluded, modules)]
    require(
        bool(wanted) or not links,
        "include, exclude",
        "leave a cell",
        None,
        "Choose among the paths and the types of the model's layers and neurons.",
        show=f"`include = {include!r}, exclude = {exclude!r}`, which leave none",
    )
    return wanted


def mark_unverified(links: Sequence[Link]) -> list[Link]:
    """Adds a note or a problem to each link that no derivative verifies.

    A neuron's only layer is taken on trust, with a note. Where a neuron has several layers, it
    is unclear which of them reach it, and each gets a problem.
    """
    layers: dict[str, set[str | None]] = defaultdict(set)
    for link in links:
        layers[link.neuron].add(link.layer)
    return [
        link if link.is_verified or link.problem else _marked(link, len(layers[link.neuron]))
        for link in links
    ]


def _marked(link: Link, layers: int) -> Link:
    if layers > 1:
        problem = f"no gradient shows whether `{link.layer}` reaches it: name its layers in `pairs=`"
        return replace(link, problem=problem)
    note = (
        f"No gradient connects `{link.layer}` with `{link.neuron}`. It is taken on trust that the neurons "
        "are the layer's channels, in order."
    )
    return replace(link, notes=(*link.notes, note))


def join(path: str, name: str) -> str:
    """The path of a child; the empty path is the model itself."""
    return f"{path}.{name}" if path and name else path or name


def quoted(paths: Iterable[str]) -> str:
    """Paths as messages show them, each once."""
    return ", ".join(f"`{path}`" for path in dict.fromkeys(paths))


def describe(path: str, module: nn.Module | None) -> str:
    """A module as messages show it; None if no module has the path."""
    kind = "" if module is None else f" ({type(module).__name__})"
    return f"`{path or 'model'}`{kind}"


def _modules_by_path(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """All modules by path, and the first path of each module by each of its paths."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first: dict[nn.Module, str] = {}
    for path, module in modules.items():
        first.setdefault(module, path)
    return modules, {path: first[module] for path, module in modules.items()}


def _known(name: str, choice: Choice | None, modules: Mapping[str, nn.Module]) -> Sequence[Selector]:
    """A choice as a sequence, after a check that a module has each path and type."""
    if choice is None:
        return []
    choice = [choice] if isinstance(choice, str | type) else choice
    known = {*modules, *(kind for module in modules.values() for kind in type(module).__mro__)}
    for each in choice:
        require(each in known, name, "name paths or types of modules of the model", each, "Check its name.")
    return choice


def _matches(link: Link, choice: Iterable[Selector], modules: Mapping[str, nn.Module]) -> bool:
    paths = [path for path in (link.neuron, link.layer) if path is not None]
    return any(
        any(path == each or path.startswith(f"{each}.") for path in paths)
        if isinstance(each, str)
        else link.layer is not None and isinstance(modules[link.layer], each)
        for each in choice
    )
