"""Builds the cells that were found, and says what is peculiar about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from torch import nn

from ..cells.cell import Cell
from ..errors import HomeostasisError, require, warn
from .finding import FoundCell
from .links import listed

__all__ = ["announce", "build_cells"]

Built = Sequence[tuple[FoundCell, Cell]]


def build_cells(model: nn.Module, found: Sequence[FoundCell], param: str, frozen: Collection[str]) -> Built:
    """Builds the cells whose layer has a parameter, or raises for all that cannot be built.

    Args:
        model: has the modules.
        found: the cells.
        param: the parameter to be regulated.
        frozen: paths of neurons whose layers may be frozen (``requires_grad=False``).

    Raises:
        ArgumentError: naming every neuron none of whose layers has the parameter.
        HomeostasisError: for what cannot be built, all at once.
    """
    built = _build(model, found if param == "bias" else _once_per_layer(found))
    offering = [(each, cell) for each, cell in built if _offers(cell, param, each.neuron in frozen)]
    lacking = {each.neuron for each in found} - {each.neuron for each, _ in offering}
    require(
        not lacking,
        "param",
        "be a parameter of a layer of every neuron, and not frozen",
        param,
        f"None is there for {listed(sorted(lacking))}: build its layer with one, take another param, or "
        "name a frozen layer in `pairs=`.",
    )
    offered = {id(cell) for _, cell in offering}
    left_out = [each.layer for each, cell in built if id(cell) not in offered and not _is_inside(each)]
    if left_out:
        warn(f"Left out: {listed(left_out)}, with no {param}, or a frozen one. Their neurons have others.")
    return offering


def announce(built: Built, param: str, by_hand: bool) -> None:
    """Warns of what a user may not expect of the cells together.

    Args:
        built: the cells.
        param: the regulated parameter.
        by_hand: whether the user has chosen among the layers.
    """
    messages = [*_of_shared_parameters(built, param), *_of_signs(built)]
    if not by_hand:
        messages += _of_several_layers(built)
    for message in messages:
        warn(message)


def _build(model: nn.Module, found: Sequence[FoundCell]) -> Built:
    built: list[tuple[FoundCell, Cell]] = []
    errors: list[HomeostasisError] = []
    for each in found:
        try:
            built.append((each, each.build(model)))
        except HomeostasisError as error:
            errors.append(error)
    if errors:
        kinds = {type(error) for error in errors}
        kind = kinds.pop() if len(kinds) == 1 else HomeostasisError
        raise kind("\n".join(dict.fromkeys(map(str, errors))))
    return built


def _once_per_layer(found: Sequence[FoundCell]) -> list[FoundCell]:
    """Where a layer has several norms, their biases are parameters apart, but its own are not."""
    once: dict[tuple[str, str], FoundCell] = {}
    for each in found:
        once.setdefault(
            (each.neuron, each.layer), replace(each, name=each.name.removesuffix(f":{each.norm}"))
        )
    return list(once.values())


def _is_inside(found: FoundCell) -> bool:
    """Whether the layer is one that the neuron carries."""
    return found.layer.startswith(f"{found.neuron}.")


def _offers(cell: Cell, param: str, frozen: bool) -> bool:
    reference = cell.connection.references.get(param)
    return reference is not None and (frozen or reference.leaf.requires_grad)


def _of_several_layers(built: Built) -> Iterator[str]:
    layers: dict[str, list[str]] = defaultdict(list)
    for each, _ in built:
        if not _is_inside(each):
            layers[each.neuron].append(each.layer)
    for neuron, paths in layers.items():
        if len(set(paths)) > 1:
            yield (
                f"Several layers drive `{neuron}`: {listed(paths)}. Each is regulated as a cell of its own; "
                "choose among them with `include=` or `exclude=`."
            )


def _of_shared_parameters(built: Built, param: str) -> Iterator[str]:
    sharing: dict[int, list[FoundCell]] = defaultdict(list)
    for each, cell in built:
        sharing[id(cell.connection.references[param].leaf)].append(each)
    for cells in sharing.values():
        if len(cells) > 1:
            yield (
                f"One {param} drives several neurons: that of {listed(each.layer for each in cells)} drives "
                f"{listed(each.neuron for each in cells)}. It moves by the sum of what they ask for."
            )


def _of_signs(built: Built) -> Iterator[str]:
    for each, _ in built:
        if each.sign < 0:
            yield (
                f"`{each.neuron}` fires less when `{each.layer}` puts out more: the plasticity of cell "
                f"{each.name!r} is taken with the sign reversed. Leave it out with `exclude=`."
            )
        elif each.sign == 0:
            yield (
                f"`{each.neuron}` receives `{each.layer}` with a sign that differs from place to place: cell "
                f"{each.name!r} may stay away from its target. Leave it out with `exclude=`."
            )
