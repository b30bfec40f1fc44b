"""What is known of a model: which layer drives which neuron, or why that cannot be known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from ..checks import require
from ..inner import inner_layers
from ..neurons import is_neuron

__all__ = ["Choice", "Link", "chosen", "inner_links", "join", "paired", "title"]

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
    """

    neuron: str
    layer: str | None = None
    norm: str | None = None
    sign: int = 1
    problem: str | None = None
    notes: tuple[str, ...] = ()

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
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {(link.neuron, link.layer): link for link in links}
    result = [link for link in links if link.neuron not in pairs]
    for neuron, layers in pairs.items():
        if neuron not in modules or not is_neuron(modules[neuron]):
            result.append(Link(neuron, problem="no neuron of the model has this path"))
        for layer in [layers] if isinstance(layers, str) else layers:
            link = replace(found.get((neuron, layer), Link(neuron, layer)), problem=None, notes=())
            if layer not in modules:
                link = replace(link, problem=f"no module of the model has the path `{layer}`")
            result.append(link)
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
        ArgumentError: for a path or a type that nothing in the model has.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, choice in (("include", include), ("exclude", exclude)):
        for each in _listed(choice):
            known = (
                each in modules
                if isinstance(each, str)
                else any(map(each.__instancecheck__, modules.values()))
            )
            require(known, name, "name paths or types of modules of the model", each, "Check the spelling.")
    wanted = [link for link in links if include is None or _is_among(link, _listed(include), modules)]
    return [link for link in wanted if not _is_among(link, _listed(exclude), modules)]


def join(path: str, name: str) -> str:
    """The path of a child; either may be empty, which is the model itself."""
    return f"{path}.{name}" if path and name else path or name


def title(path: str, module: nn.Module | None) -> str:
    """How messages call a module; None where a path leads nowhere."""
    kind = "" if module is None else f" ({type(module).__name__})"
    return f"`{path or 'model'}`{kind}"


def _listed(choice: Choice | None) -> Iterable[str | type[nn.Module]]:
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
