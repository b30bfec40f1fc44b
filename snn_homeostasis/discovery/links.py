"""Links: a layer that drives a neuron, or the problem that keeps the layer unknown."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from ..errors import require
from ..layers import inner_layers
from ..observe import is_neuron

__all__ = ["Choice", "Link", "Pairs", "apply_choices", "describe", "inner_links", "join", "quoted"]

Selector = str | type[nn.Module]
Choice = Sequence[Selector] | Selector
Pairs = Mapping[str, str | Sequence[str]]
Modules = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Link:
    """The paths of a layer and of a neuron that it drives, or a problem with the two."""

    neuron: str
    layer: str | None = None  # None if the problem concerns the neuron alone
    norm: str | None = None
    sign: int = 1  # as in `FoundCell`
    problem: str | None = None
    notes: tuple[str, ...] = ()
    is_verified: bool = True  # whether derivatives show that the layer's channels arrive in order


def inner_links(path: str, neuron: nn.Module, outer: Sequence[Link]) -> list[Link]:
    """The links of a neuron: of its inner layers, and of outer ones unless an inner layer takes the input."""
    layers = inner_layers(neuron)
    inner = [Link(path, join(path, name)) for name in layers]
    return [*outer, *inner] if all(layer.recurrent for layer in layers.values()) else inner


def apply_choices(
    model: nn.Module, links: Sequence[Link], pairs: Pairs, include: Choice | None, exclude: Choice | None
) -> list[Link]:
    """The links that the user wants; `ArgumentError` if nothing matches a choice, or no link is left."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first: dict[nn.Module, str] = {}
    for path, module in modules.items():
        first.setdefault(module, path)
    paths = {path: first[module] for path, module in modules.items()}
    links = _paired(links, pairs, modules, paths)
    wanted = links if include is None else _matching(links, "include", include, modules, paths)
    unwanted = () if exclude is None else set(_matching(links, "exclude", exclude, modules, paths))
    wanted = [link for link in wanted if link not in unwanted]
    show = f"`include = {include!r}, exclude = {exclude!r}`, which leave none"
    remedy = "Choose among the paths and the types of the model's layers and neurons."
    require(bool(wanted) or not links, "include, exclude", "leave a cell", None, remedy, show=show)
    return _marked(wanted)


def _paired(links: Sequence[Link], pairs: Pairs, modules: Modules, paths: Mapping[str, str]) -> list[Link]:
    """Replaces the links of paired neurons; a pair that was also found keeps its norm and its sign."""
    found = {(link.neuron, link.layer): link for link in links}
    paired = {paths.get(neuron) for neuron in pairs}
    result = [link for link in links if link.neuron not in paired]
    for neuron, layers in pairs.items():
        if neuron not in modules or not is_neuron(modules[neuron]):
            result.append(Link(neuron, problem="no neuron of the model has this path"))
        for layer in [layers] if isinstance(layers, str) else layers:
            ends = paths.get(neuron, neuron), paths.get(layer, layer)
            problem = None if layer in modules else f"no module of the model has the path `{layer}`"
            link = found.get(ends, Link(*ends))
            result.append(replace(link, problem=problem, notes=(), is_verified=True))
    return result


def _matching(
    links: Sequence[Link], name: str, choice: Choice, modules: Modules, paths: Mapping[str, str]
) -> list[Link]:
    """The links whose neuron or layer a choice selects, by path or type."""
    choice = [choice] if isinstance(choice, str | type) else choice
    known = {*modules, *(kind for module in modules.values() for kind in type(module).__mro__)}
    for each in choice:
        remedy = "Spell a path as in `model.named_modules()`."
        require(each in known, name, "name paths or types of modules of the model", each, remedy)
    around = tuple(f"{paths[each]}." for each in choice if isinstance(each, str))
    kinds = tuple(each for each in choice if not isinstance(each, str))

    def is_selected(link: Link) -> bool:
        ends = [f"{path}." for path in (link.neuron, link.layer) if path is not None]
        kind = None if link.layer is None else modules.get(link.layer)
        return any(end.startswith(around) for end in ends) or isinstance(kind, kinds)

    return [link for link in links if is_selected(link)]


def _marked(links: Sequence[Link]) -> list[Link]:
    """Adds a problem to links that no derivative verifies, but only a note to a neuron's only one."""
    layers = Counter(neuron for neuron, _ in {(link.neuron, link.layer) for link in links})
    marked = []
    for link in links:
        if link.is_verified or link.problem:
            marked.append(link)
        elif layers[link.neuron] > 1:
            problem = f"no gradient shows whether `{link.layer}` reaches it: name its layers in `pairs=`"
            marked.append(replace(link, problem=problem))
        else:
            note = (
                f"No gradient connects `{link.layer}` with `{link.neuron}`. It is taken on trust that the "
                "neurons are the layer's channels, in order."
            )
            marked.append(replace(link, notes=(*link.notes, note)))
    return marked


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
