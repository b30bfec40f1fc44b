"""What is known of a model: which layer drives which neuron, or why that cannot be known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from ..errors import require
from ..layers.inner import inner_layers
from ..observe.neurons import is_neuron

__all__ = ["Choice", "Link", "chosen", "inner_links", "join", "listed", "paired", "title", "told_apart"]

Choice = Sequence[str | type[nn.Module]] | str | type[nn.Module]


@dataclass(frozen=True)
class Link:
    """A layer that drives a neuron, or a problem of the two.

    Attributes:
        neuron: path of the neuron.
        layer: path of the layer; None if the problem is the neuron's.
        norm: path of the normalisation between the two, or None.
        sign: 1 if the neuron's input rises with the output of the layer, or of the norm, -1 if it
            falls, 0 if that differs from place to place.
        problem: what stands against regulating the neuron by the layer, or None.
        notes: what else the user should know of the neuron.
        is_verified: whether derivatives showed that the layer's channels arrive in their order.
    """

    neuron: str
    layer: str | None = None
    norm: str | None = None
    sign: int = 1
    problem: str | None = None
    notes: tuple[str, ...] = ()
    is_verified: bool = True

    def below(self, path: str) -> Link:
        """The link in a model that holds this one under a path."""
        layer, norm = (None if each is None else join(path, each) for each in (self.layer, self.norm))
        return replace(self, neuron=join(path, self.neuron), layer=layer, norm=norm)


def inner_links(path: str, neuron: nn.Module, drivers: Sequence[Link]) -> list[Link]:
    """The links of a neuron that may carry layers inside.

    Args:
        path: of the neuron.
        neuron: the module.
        drivers: the links of the layers outside; they count unless an inner layer takes the input.
    """
    inner = inner_layers(neuron)
    own = [Link(path, join(path, name)) for name in inner]
    return [*drivers, *own] if all(each.recurrent for each in inner.values()) else own


def paired(model: nn.Module, links: Sequence[Link], pairs: Mapping[str, str | Sequence[str]]) -> list[Link]:
    """The links with those of some neurons replaced by what the user names.

    A norm and a sign that were found for a named pair are kept.

    Args:
        model: has the modules.
        links: as found.
        pairs: neuron → layer or layers, by module path.
    """
    modules, first = _paths(model)
    found = {(link.neuron, link.layer): link for link in links}
    result = [link for link in links if link.neuron not in {first.get(neuron) for neuron in pairs}]
    for neuron, layers in pairs.items():
        if neuron not in modules or not is_neuron(modules[neuron]):
            result.append(Link(neuron, problem="no neuron of the model has this path"))
        for layer in [layers] if isinstance(layers, str) else layers:
            ends = first.get(neuron, neuron), first.get(layer, layer)
            link = found.get(ends, Link(*ends))
            problem = None if layer in modules else f"no module of the model has the path `{layer}`"
            result.append(replace(link, problem=problem, notes=(), is_verified=True))
    return result


def chosen(
    model: nn.Module, links: Sequence[Link], include: Choice | None, exclude: Choice | None
) -> list[Link]:
    """The links that are wanted.

    Args:
        model: has the modules.
        links: as found.
        include: paths of layers, of neurons or of modules around them, and types of layers;
            None for all.
        exclude: the same, for those not wanted.

    Raises:
        ArgumentError: for a path or a type that nothing in the model has, or if nothing is left.
    """
    modules, first = _paths(model)
    choices: dict[str, list[str | type[nn.Module]]] = {}
    for name, choice in (("include", include), ("exclude", exclude)):
        for each in _each_of(choice):
            known = (
                each in modules
                if isinstance(each, str)
                else any(map(each.__instancecheck__, modules.values()))
            )
            require(known, name, "name paths or types of modules of the model", each, "Check the spelling.")
        choices[name] = [first[each] if isinstance(each, str) else each for each in _each_of(choice)]
    wanted = [link for link in links if include is None or _is_among(link, choices["include"], modules)]
    wanted = [link for link in wanted if not _is_among(link, choices["exclude"], modules)]
    require(
        bool(wanted) or not links,
        "include, exclude",
        "leave a cell",
        None,
        "Choose among the paths and the types of its layers and neurons.",
        show=f"`include = {include!r}, exclude = {exclude!r}`, which leave none",
    )
    return wanted


def told_apart(links: Sequence[Link]) -> list[Link]:
    """The links with what stands against those that no derivative has verified.

    One layer alone is taken on trust, which is noted. Of several it is not clear which of them
    reaches the neuron.
    """
    layers: dict[str, set[str | None]] = defaultdict(set)
    for link in links:
        layers[link.neuron].add(link.layer)
    return [
        link if link.is_verified or link.problem else _unverified(link, several=len(layers[link.neuron]) > 1)
        for link in links
    ]


def _unverified(link: Link, several: bool) -> Link:
    if several:
        problem = f"without a gradient it is not clear whether `{link.layer}` reaches it: name its layers"
        return replace(link, problem=problem)
    note = (
        f"No gradient connects `{link.layer}` with `{link.neuron}`: that its neurons are the layer's "
        "channels in their order is taken on trust."
    )
    return replace(link, notes=(*link.notes, note))


def join(path: str, name: str) -> str:
    """The path of a child; either may be empty, which is the model itself."""
    return f"{path}.{name}" if path and name else path or name


def listed(paths: Iterable[str]) -> str:
    """How messages list paths, each once."""
    return ", ".join(f"`{path}`" for path in dict.fromkeys(paths))


def title(path: str, module: nn.Module | None) -> str:
    """How messages call a module; None where a path leads nowhere."""
    kind = "" if module is None else f" ({type(module).__name__})"
    return f"`{path or 'model'}`{kind}"


def _paths(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """All modules by path, and the first path of the module with each path."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first: dict[nn.Module, str] = {}
    for path, module in modules.items():
        first.setdefault(module, path)
    return modules, {path: first[module] for path, module in modules.items()}


def _each_of(choice: Choice | None) -> Iterable[str | type[nn.Module]]:
    if choice is None:
        return []
    return [choice] if isinstance(choice, str | type) else choice


def _is_among(link: Link, choice: Iterable[str | type[nn.Module]], modules: Mapping[str, nn.Module]) -> bool:
    paths = [path for path in (link.neuron, link.layer) if path is not None]
    return any(
        any(path == each or path.startswith(f"{each}.") for path in paths)
        if isinstance(each, str)
        else link.layer is not None and isinstance(modules[link.layer], each)
        for each in choice
    )
