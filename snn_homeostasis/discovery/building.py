"""Builds the cells that were found, and warns about what may surprise."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from ..cells import Cell
from ..errors import HomeostasisError, require, warn
from .finding import FoundCell
from .links import Place, canonical_paths, is_within, join, plain, quoted

__all__ = ["build_cells", "closed_on_error", "warn_about"]

Built = Sequence[tuple[FoundCell, Cell]]


@contextmanager
def closed_on_error() -> Iterator[list[Cell]]:
    """Closes the cells that are put into a list if an error comes, whose traceback would keep them alive."""
    cells: list[Cell] = []
    try:
        yield cells
    except BaseException:
        for cell in cells:
            cell.close()
        raise


def build_cells(
    model: nn.Module, found: Sequence[FoundCell], param: str, frozen: Collection[Place], opened: list[Cell]
) -> Built:
    """Builds the cells whose layer has the parameter, for the frozen neurons also one without gradient.

    Puts every cell that it opens into ``opened``.
    """
    offering: list[tuple[FoundCell, Cell]] = []
    left_out: list[str] = []
    paths = canonical_paths(model)
    named = {paths.get(each) for each in frozen}
    built = _build(model, _distinct(model, found, param), opened)
    for each, cell in built:
        reference = cell.connection.references.get(param)
        if reference is not None and (each.neuron in named or not reference.is_frozen):
            offering.append((each, cell))
        elif not _is_inside(each):
            left_out.append(each.layer)
    lacking = {each.neuron for each in found} - {each.neuron for each, _ in offering}
    _require_changeable([*offering, *(each for each in built if each[0].neuron in lacking)], param)
    require(
        not lacking,
        "param",
        "be a trainable parameter of a layer of every neuron",
        param,
        f"None is there for {quoted(sorted(lacking))}: build its layer with one, choose another param, or "
        f"name a frozen layer in `pairs=`.{_about_norms(built, param, lacking)}",
    )
    if left_out:
        warn(f"Left out: {quoted(left_out)}, with no {param} or a frozen one. The neurons have other layers.")
    return offering


def warn_about(built: Built, param: str, by_hand: bool) -> None:
    """Warns about what a user may not expect; ``by_hand`` if the user chose among the layers."""
    sharing: dict[int, list[FoundCell]] = defaultdict(list)
    for each, cell in built:
        sharing[id(cell.connection.references[param].leaf)].append(each)
    for cells in sharing.values():
        if len(cells) > 1:
            warn(
                f"One {param} drives several neurons: the {param} of {quoted(each.layer for each in cells)} "
                f"drives {quoted(each.neuron for each in cells)}. It moves by the sum of their updates."
            )
    for each, _ in built:
        _warn_about_sign(each)
    if param == "weight":
        _warn_about_effects(built)
    if not by_hand:
        _warn_about_several_layers(each for each, _ in built if not _is_inside(each))


def _build(model: nn.Module, found: Sequence[FoundCell], opened: list[Cell]) -> Built:
    built: list[tuple[FoundCell, Cell]] = []
    errors: list[HomeostasisError] = []
    for each in found:
        try:
            opened.append(each.build(model))
            built.append((each, opened[-1]))
        except HomeostasisError as error:
            errors.append(error)
    _raise_all(errors)
    return built


def _require_changeable(built: Built, param: str) -> None:
    errors: list[HomeostasisError] = []
    for each, cell in built:
        slot = cell.updater.slots.get(param)
        owner = each.layer if each.norm is None or param != "bias" else each.norm
        try:
            if slot is not None:
                slot.require_changeable(f"`{join(owner, slot.reference.name)}`")
        except HomeostasisError as error:
            errors.append(error)
    _raise_all(errors)


def _about_norms(built: Built, param: str, lacking: Collection[str]) -> str:
    """How norms in front of neurons come to have the parameter, where they take the role of a bias."""
    bare = [(each.norm, cell) for each, cell in built if each.norm is not None and each.neuron in lacking]
    if param != "bias" or not bare:
        return ""
    return (
        f" A norm takes the role of the bias. Give one to {quoted(norm for norm, _ in bare)} before you "
        f"attach, as in `norm.bias = nn.Parameter(torch.zeros({bare[0][1].connection.features}))`."
    )


def _raise_all(errors: Sequence[HomeostasisError]) -> None:
    if errors:
        kind = type(errors[0]) if len(set(map(type, errors))) == 1 else HomeostasisError
        raise kind("\n".join(dict.fromkeys(map(str, errors))))


def _distinct(model: nn.Module, found: Sequence[FoundCell], param: str) -> Sequence[FoundCell]:
    """Leaves out cells that would regulate the same parameter of the same neuron once more."""
    if param == "threshold":
        modules = dict(model.named_modules(remove_duplicate=False))
        first: dict[str, FoundCell] = {}
        for each in found:
            first.setdefault(each.neuron, replace(each, name=plain(each.neuron, modules) or "neuron", sign=1))
        return list(first.values())
    return found if param == "bias" else _once_per_layer(model, found)


def _once_per_layer(model: nn.Module, found: Sequence[FoundCell]) -> list[FoundCell]:
    """One cell for each layer: its norms have a bias each, but they share its weight."""
    modules = dict(model.named_modules(remove_duplicate=False))
    once: dict[tuple[str, str], FoundCell] = {}
    for each in found:
        name = each.name if each.norm is None else each.name.removesuffix(f":{plain(each.norm, modules)}")
        once.setdefault((each.neuron, each.layer), replace(each, name=name))
    return list(once.values())


def _is_inside(found: FoundCell) -> bool:
    """Whether the neuron carries the layer."""
    return is_within(found.layer, found.neuron)


def _warn_about_several_layers(found: Iterable[FoundCell]) -> None:
    layers: dict[str, list[str]] = defaultdict(list)
    for each in found:
        layers[each.neuron].append(each.layer)
    for neuron, paths in layers.items():
        if len(set(paths)) > 1:
            warn(
                f"Several layers drive `{neuron}`: {quoted(paths)}. Each has a cell of its own. "
                "Choose among them with `include=` or `exclude=`."
            )


def _warn_about_sign(found: FoundCell) -> None:
    if found.sign < 0:
        warn(
            f"`{found.neuron}` fires less when `{found.layer}` puts out more: cell {found.name!r} "
            "changes its parameter the other way. Leave it out with `exclude=`."
        )
    elif found.sign == 0:
        warn(
            f"The input of `{found.neuron}` rises with `{found.layer}` in some places and falls in others: "
            f"cell {found.name!r} may not reach its target. Leave it out with `exclude=`."
        )


def _warn_about_effects(built: Built) -> None:
    """Warns once about all layers whose output does not rise with their weights on the example."""
    effects = [(each, each.effect) for each, _ in built if each.effect is not None and each.norm is None]
    cancelled = [each for each, effect in effects if effect.is_cancelled]
    doubtful = [each for each, effect in effects if effect.is_doubtful and not effect.is_cancelled]
    remedy = "Take param='bias', of layers built with one, or leave them out with `exclude=`."
    if cancelled:
        warn(
            f"What is added to the weight of {quoted(each.layer for each in cancelled)} changes nothing that "
            f"reaches {quoted(each.neuron for each in cancelled)}: the layer standardises its weight, or its "
            f"inputs cancel one another. {remedy}"
        )
    if doubtful:
        warn(
            f"What is added to the weight of {quoted(each.layer for each in doubtful)} does not only raise "
            f"what reaches {quoted(each.neuron for each in doubtful)}: on this example the inputs of the "
            "layer are negative in part, or its own code turns them round. Rates may not reach their target "
            f"while the weight drifts. {remedy}"
        )
