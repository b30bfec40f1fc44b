"""Builds the cells that were found, and warns about what may surprise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from torch import nn

from ..cells import Cell
from ..errors import HomeostasisError, require, warn
from .finding import FoundCell
from .links import quoted

__all__ = ["build_cells", "warn_about"]

Built = Sequence[tuple[FoundCell, Cell]]


def build_cells(model: nn.Module, found: Sequence[FoundCell], param: str, frozen: Collection[str]) -> Built:
    """Builds the cells whose layer has the parameter; only the named neurons may have a frozen layer.

    Raises:
        ArgumentError: if no layer of a neuron has the parameter. It names all such neurons.
        HomeostasisError: if cells cannot be built. It has the messages of all of them.
    """
    offering: list[tuple[FoundCell, Cell]] = []
    left_out: list[str] = []
    for each, cell in _build(model, found if param == "bias" else _once_per_layer(found)):
        if _offers(cell, param, each.neuron in frozen):
            offering.append((each, cell))
        elif not _is_inside(each):
            left_out.append(each.layer)
    lacking = {each.neuron for each in found} - {each.neuron for each, _ in offering}
    require(
        not lacking,
        "param",
        "be a trainable parameter of a layer of every neuron",
        param,
        f"None is there for {quoted(sorted(lacking))}: build its layer with one, choose another param, or "
        "name a frozen layer in `pairs=`.",
    )
    if left_out:
        warn(f"Left out: {quoted(left_out)}, with no {param} or a frozen one. The neurons have other layers.")
    return offering


def warn_about(built: Built, param: str, by_hand: bool) -> None:
    """Warns about what a user may not expect; ``by_hand`` if the user chose among the layers."""
    messages = [*_shared_parameters(built, param), *_signs(built)]
    if not by_hand:
        messages += _several_layers(built)
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
        kind = type(errors[0]) if len(set(map(type, errors))) == 1 else HomeostasisError
        raise kind("\n".join(dict.fromkeys(map(str, errors))))
    return built


def _once_per_layer(found: Sequence[FoundCell]) -> list[FoundCell]:
    """One cell for each layer: its norms have a bias each, but they share its weight."""
    once: dict[tuple[str, str], FoundCell] = {}
    for each in found:
        name = each.name.removesuffix(f":{each.norm}")
        once.setdefault((each.neuron, each.layer), replace(each, name=name))
    return list(once.values())


def _is_inside(found: FoundCell) -> bool:
    """Whether the neuron carries the layer."""
    return found.layer.startswith(f"{found.neuron}.")


def _offers(cell: Cell, param: str, frozen: bool) -> bool:
    reference = cell.connection.references.get(param)
    return reference is not None and (frozen or reference.leaf.requires_grad)


def _several_layers(built: Built) -> Iterator[str]:
    layers: dict[str, list[str]] = defaultdict(list)
    for each, _ in built:
        if not _is_inside(each):
            layers[each.neuron].append(each.layer)
    for neuron, paths in layers.items():
        if len(set(paths)) > 1:
            yield (
                f"Several layers drive `{neuron}`: {quoted(paths)}. Each has a cell of its own. "
                "Choose among them with `include=` or `exclude=`."
            )


def _shared_parameters(built: Built, param: str) -> Iterator[str]:
    sharing: dict[int, list[FoundCell]] = defaultdict(list)
    for each, cell in built:
        sharing[id(cell.connection.references[param].leaf)].append(each)
    for cells in sharing.values():
        if len(cells) > 1:
            yield (
                f"One {param} drives several neurons: the {param} of {quoted(each.layer for each in cells)} "
                f"drives {quoted(each.neuron for each in cells)}. It moves by the sum of their updates."
            )


def _signs(built: Built) -> Iterator[str]:
    for each, _ in built:
        if each.sign < 0:
            yield (
                f"`{each.neuron}` fires less when `{each.layer}` puts out more: the plasticity of cell "
                f"{each.name!r} is taken with the sign reversed. Leave it out with `exclude=`."
            )
        elif each.sign == 0:
            yield (
                f"The input of `{each.neuron}` rises with `{each.layer}` in some places and falls in others: "
                f"cell {each.name!r} may not reach its target. Leave it out with `exclude=`."
            )
