"""The face that every rule inherits: cells, attach, step, update, rates, remove, state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from .bounds import UpdateBounds
from .cells import Cell
from .changes import changes_of, joint_bounds, make_all, warn_stuck
from .checks import require, require_finite
from .discovery import Choice, announce, build_cells, find_cells
from .following import Release, at_end, step_after
from .settings import CellState, Settings, Target, check_target
from .slots import unchanged_on_error
from .state import NoCopy
from .units import Unit, require_no_waiting_graph

__all__ = ["Homeostasis"]


class Homeostasis(NoCopy, nn.Module, ABC):
    """Base of the rules, and the object that users hold.

    A forward hook on each neuron hands its spikes to the rate estimator of its cell. The
    rule compares rate and target and writes two magnitudes into an updater slot; it sees
    the layer only as a receptive view. `update` sends each slot through its bounds and adds
    the result to the parameter, in place. The model keeps its class, its ``state_dict`` and
    its Parameters, and `remove` leaves no trace.

    Args:
        defaults: the settings of cells that do not override them.
    """

    def __init__(self, defaults: Settings) -> None:
        super().__init__()
        self.defaults = defaults
        self.units = nn.ModuleDict()
        self._releases: dict[str, Release] = {}
        self._following: list[Release] = []

    @abstractmethod
    def parts(self, cell: Cell, state: CellState, rate: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """The rule: the positive and the negative part for the slot of ``state.param``.

        Args:
            cell: gives the receptive view.
            state: the cell's settings.
            rate: ``[B, *N]``, spikes per step.
            target: a number, or a tensor that broadcasts with the rate.

        Returns:
            ``(pos, neg)``, each broadcasting with the parameter; ``neg`` as a clamp gives it.
        """

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The registered cells by name, in order of registration."""
        return MappingProxyType({unit.name: unit.cell for unit in self._units()})

    def register_cell(self, name: str, cell: Cell, **overrides: Any) -> Unit:
        """Adds one cell.

        Args:
            name: how it is called in `rates`, `cells` and errors.
            cell: the cell.
            **overrides: any argument of the constructor, for this cell alone.

        Returns:
            The unit: ``unit.cell``, ``unit.state``, ``unit.rate``.

        Raises:
            ArgumentError: if the name, or the cell with this param, is registered already;
                if the layer lacks the param; or for a value that cannot work.
        """
        settings = self.defaults.override(overrides)
        self._require_new(name, cell, settings.param)
        unit = Unit(name, cell, settings)
        self._set_bounds(unit, settings.bounds)
        cell.listen(unit.rate)
        unit.train(self.training)
        self.units[_key(name)] = unit
        self._releases[name] = at_end(self, cell.unlisten, unit.rate)
        return unit

    def attach(
        self,
        model: nn.Module,
        example: Any = None,
        *,
        pairs: Mapping[str, str | Sequence[str]] | None = None,
        include: Choice | None = None,
        exclude: Choice | None = None,
        **overrides: Any,
    ) -> Self:
        """Finds the cells of a model and registers them all.

        Each layer that drives a neuron is a cell of its own. A parameter that drives several
        neurons has one slot, in which their parts are summed. Where a neuron fires less when its
        layer puts out more, the plasticity of the cell is taken with the sign reversed. Each of
        these is said in a warning.

        Args:
            model: any model with an ``example``; an `nn.Sequential`, nested or not, without.
            example: an input of the model, a tuple of its arguments, or a dict of them by name.
                The model is run on it once, and left as it was: see `find_cells`.
            pairs: neuron → layer, or a list of layers, by module path, in place of what would be
                found. Without an example, exactly these are registered.
            include: keep only the cells of these: paths of layers, of neurons or of modules
                around them, or types of layers.
            exclude: leave out the cells of these.
            **overrides: any argument of the constructor, for these cells.

        Returns:
            This object.

        Raises:
            UnpairedNeuronError: naming every neuron whose layer cannot be known.
            ArgumentError: naming every neuron whose layers lack the param.
        """
        settings = self.defaults.override(overrides)
        found = find_cells(model, example, pairs=pairs, include=include, exclude=exclude)
        cells = build_cells(model, found, settings.param, frozen=pairs or ())
        for each, cell in cells:
            self._require_new(each.name, cell, settings.param)
        announce(cells, settings.param, by_hand=bool(pairs or include or exclude))
        try:
            for each, cell in cells:
                sign = -1 if each.sign < 0 else 1
                self.register_cell(each.name, cell, **{**overrides, "plasticity": sign * settings.plasticity})
        except BaseException:  # a warning, for instance, that was made an error
            for name in {each.name for each, _ in cells} & set(self.cells):
                self.remove_cell(name)
            raise
        return self

    def forward(self, target: Target | None = None, cells: Iterable[str] | None = None) -> None:
        """Applies the rule: writes the slots of the cells, never a parameter.

        Frozen cells (in eval mode, or all if this object is) are left out.

        Args:
            target: for this call alone, in place of each cell's own.
            cells: names of the cells to take, all by default.

        Raises:
            NoSpikesError: if a cell was never observed.
            ArgumentError: for a target that cannot work, or an unknown name.
            NonFiniteError: if a rate or a membrane is not finite. Nothing is written then.
        """
        if target is not None:
            check_target(target)
        units = [unit for unit in self._selected(cells) if unit.active]
        with torch.no_grad():
            parts = [self._parts_of(unit, target) for unit in units]
            written = list(zip(units, parts, strict=True))
            require_finite(
                [(unit.name, "rate", part) for unit, both in written for part in both]
                + [(unit.name, "membrane", unit.cell.neuron.membrane) for unit in units]
            )
        with unchanged_on_error(unit.slot for unit in units):
            for unit, (pos, neg) in written:
                unit.slot.add(pos, neg)

    def update(self) -> None:
        """Applies every slot to its parameter through its bounds, once, and empties it.

        Slots of frozen cells stay as they are.

        Raises:
            NonFiniteError: if a change is not finite.
            WaitingGraphError: if a parameter is needed by a graph that waits for its backward.

        No parameter is touched then. An interruption leaves all parameters as they were, or
        all of them updated.
        """
        active = [unit for unit in self._units() if unit.active]
        owners = {slot: unit for unit in reversed(active) for slot in unit.all_slots}
        changes = changes_of(owners)
        changed = [(owners[slot], change) for change in changes for slot in change.slots]
        require_no_waiting_graph(changed)
        require_finite([(unit.name, "update", change.outcome) for unit, change in changed])
        make_all(changes)
        for unit, _ in changed:
            unit.cell.neuron.forget()
        warn_stuck({f"cell {unit.name!r}": change for unit, change in changed})

    def step(self, target: Target | None = None, cells: Iterable[str] | None = None) -> None:
        """`forward`, then `update`: call it after ``optimizer.step()``.

        Args:
            target: for this call alone, in place of each cell's own.
            cells: names of the cells to take, all by default.
        """
        with unchanged_on_error(slot for unit in self._units() for slot in unit.all_slots):
            self(target, cells)
            self.update()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Observes nothing inside the ``with`` block, where the hooks are off.

        For what runs the model more often than once for each `step`, as the closure of an
        LBFGS does. `step` still works inside, with what was observed before.
        """
        units = list(self._units())
        for unit in units:
            unit.pause()
        try:
            yield
        finally:
            for unit in units:
                unit.resume()

    def follow(self, optimizer: torch.optim.Optimizer) -> Self:
        """Calls `step` after every step of ``optimizer``, so that bounds hold after it."""
        self._following.append(step_after(optimizer, self))
        return self

    def rates(self) -> dict[str, Tensor]:
        """The current rate of every cell, mean over the batch: name → ``[*N]``.

        Raises:
            NoSpikesError: if a cell was never observed.
        """
        return {unit.name: unit.observed_rate().mean(0) for unit in self._units()}

    def clear(self) -> None:
        """Forgets the rate estimates and what is pending in the slots."""
        for unit in self._units():
            unit.rate.reset()
            unit.cell.neuron.forget()
            for slot in unit.all_slots:
                slot.empty()

    def remove(self) -> None:
        """Takes off all hooks and forgets the cells: the model is as it was before."""
        for name in list(self.cells):
            self.remove_cell(name)
        for release in self._following:
            release()
        self._following.clear()

    def remove_cell(self, name: str) -> None:
        """Takes the hook of one cell off and forgets it."""
        self._selected([name])
        self._releases.pop(name)()
        del self.units[_key(name)]

    def _units(self) -> Iterator[Unit]:
        for unit in self.units.values():
            assert isinstance(unit, Unit)
            yield unit

    def _selected(self, cells: Iterable[str] | None) -> list[Unit]:
        units = {unit.name: unit for unit in self._units()}
        names = units if cells is None else [cells] if isinstance(cells, str) else cells
        for name in names:
            known = ", ".join(map(repr, units)) or "none yet"
            require(name in units, "cells", f"name registered cells ({known})", name, "Check the spelling.")
        return [units[name] for name in dict.fromkeys(names)]

    def _parts_of(self, unit: Unit, target: Target | None) -> tuple[Tensor, Tensor]:
        rate = unit.observed_rate()
        return self.parts(unit.cell, unit.state, rate, unit.target_for(rate, target))

    def _set_bounds(self, new: Unit, bounds: UpdateBounds | None) -> None:
        leaf = new.slot.reference.leaf
        slots = [slot for unit in (*self._units(), new) for slot in unit.all_slots]
        tied = [slot.bounds for slot in slots if slot.reference.leaf is leaf]
        joint_bounds(str(new.slot.reference), *tied, bounds)
        if bounds is not None:
            new.slot.bounds = bounds

    def _require_new(self, name: str, cell: Cell, param: str) -> None:
        require(
            bool(name) and _key(name) not in self.units and not hasattr(nn.ModuleDict, _key(name)),
            "name",
            "be new and not empty, and no attribute of a module",
            name,
            "Choose another, or `remove_cell` the old one.",
        )
        for unit in self._units():
            same = unit.cell.connection.layer is cell.connection.layer
            same = same and unit.cell.neuron.module is cell.neuron.module
            same = same and unit.cell.connection.norm is cell.connection.norm
            require(
                not (same and unit.state.param == param),
                "cell",
                f"be regulated once by its {param}",
                None,
                "Remove one of the two.",
                show=f"the same layer and neuron in cell {unit.name!r}",
            )


def _key(name: str) -> str:
    return name.replace(".", "/")
