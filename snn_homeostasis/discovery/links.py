"""Links: a layer that drives a neuron, or the problem that keeps the layer unknown."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import require
from ..layers import inner_layers
from .effects import Effect

__all__ = [
    "Choice", "Link", "Pairs", "Place", "apply_choices", "canonical_paths", "describe", "inner_links",
    "is_within", "join", "norm_inside", "places_in", "plain", "quoted",
]  # fmt: skip

Place = str | nn.Module
Selector = Place | type[nn.Module]
Choice = Sequence[Selector] | Selector
Pairs = Mapping[Any, Place | Sequence[Place]]
Modules = Mapping[str, nn.Module]

PARALLEL = (nn.DataParallel, DistributedDataParallel)


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
    delay: str | None = None
    is_open: bool = False  # whether `pairs=` may settle the problem, since nothing contradicts the user
    reuse: str | None = None  # how one object serves several layers; `pairs=` has to name them all
    readout: str | None = None  # why nobody needs its spikes
    effect: Effect | None = None  # of the weight on the output of the layer


def inner_links(path: str, neuron: nn.Module, outer: Sequence[Link]) -> list[Link]:
    """The links of a neuron: of its inner layers, and of outer ones unless an inner layer takes the input."""
    layers = inner_layers(neuron)
    inner = [Link(path, join(path, name)) for name in layers]
    return [*outer, *inner] if all(layer.recurrent for layer in layers.values()) else inner


def norm_inside(norms: Iterable[str]) -> str:
    """The problem of a neuron that normalises what it receives."""
    first = next(iter(norms))
    return (
        f"it normalises its input inside, which cancels what a layer in front of it adds: pair it with "
        f"that norm, `{first}`"
    )


def apply_choices(
    model: nn.Module, links: Sequence[Link], include: Choice | None, exclude: Choice | None
) -> list[Link]:
    """The links that the user wants; `ArgumentError` if nothing matches a choice, or no link is left."""
    paths = canonical_paths(model)
    wanted = links if include is None else _matching(model, links, "include", include, paths)
    unwanted = () if exclude is None else set(_matching(model, links, "exclude", exclude, paths))
    wanted = [link for link in wanted if link not in unwanted]
    show = f"`include = {include!r}, exclude = {exclude!r}`, which leave none"
    remedy = "Choose among the paths and the types of the model's layers and neurons."
    require(bool(wanted) or not links, "include, exclude", "leave a cell", None, remedy, show=show)
    return _marked(wanted)


def canonical_paths(model: nn.Module) -> dict[Place, str]:
    """The first path of each module, by the module and by all its paths, with names of wrappers or not."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first: dict[Place, str] = {}
    for path, module in modules.items():
        first.setdefault(module, path)
    paths = {path: first[module] for path, module in modules.items()}
    return first | {plain(path, modules): known for path, known in paths.items()} | paths


def places_in(name: str, given: Any) -> list[Any]:
    """Returns one or several paths, modules or types as a list; raises ArgumentError for anything else."""
    is_several = isinstance(given, Iterable) and not isinstance(given, str | type | nn.Module | Tensor)
    places = list(given) if is_several else [given]
    is_known = all(isinstance(each, str | type | nn.Module) for each in places)
    remedy = "Write one as it is, and several as a list."
    require(is_known, name, "be a path or a module, or a list of them", given, remedy)
    return places


def _matching(
    model: nn.Module, links: Sequence[Link], name: str, choice: Choice, paths: Mapping[Place, str]
) -> list[Link]:
    """The links whose neuron or layer a choice selects: by path, by type, or as a module."""
    choices = places_in(name, choice)
    modules = dict(model.named_modules())
    known = {*paths, *(kind for module in modules.values() for kind in type(module).__mro__)}
    for each in choices:
        remedy = "Spell a path as in `model.named_modules()`."
        require(each in known, name, "name paths or types of modules of the model", each, remedy)
    around = tuple(f"{paths[each]}." for each in choices if not isinstance(each, type))
    kinds = tuple(each for each in choices if isinstance(each, type))

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


def is_within(path: str, outer: str) -> bool:
    """Whether a module is a part of another one; the empty path is the model itself."""
    return path != outer and (not outer or path.startswith(f"{outer}."))


def plain(path: str, modules: Modules) -> str:
    """A path without the names that `torch.compile` and wrappers for data parallelism add to it."""
    parts, here = [], ""
    for part in path.split("."):
        is_added = part == "_orig_mod" or (part == "module" and isinstance(modules[here], PARALLEL))
        parts += [] if is_added else [part]
        here = join(here, part)
    return ".".join(parts)


def quoted(paths: Iterable[str]) -> str:
    """Paths as messages show them, each once."""
    return ", ".join(f"`{path}`" for path in dict.fromkeys(paths))


def describe(path: str, module: nn.Module | None) -> str:
    """A module as messages show it; None if no module has the path."""
    kind = "" if module is None else f" ({type(module).__name__})"
    return f"`{path or 'model'}`{kind}"
