"""The face that every rule inherits: cells, attach, step, update, rates, remove, state."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from .cells import Cell
from .checks import require, require_finite
from .discovery import build_cells, find_cells, named_cells
from .distributed import Processes
from .errors import HomeostasisError, NonFiniteError, NoSpikesError
from .settings import CellState, Settings, Target, check_target
from .teams import AUTO, Group, Team
from .units import Unit, set_bounds
from .updates import Parts, Slot

__all__ = ["Homeostasis"]


class Homeostasis(nn.Module, ABC):
    """Base of the rules, and the object that users hold.

    A forward hook on each neuron hands its spikes to the rate estimator of its cell. The
    rule compares rate and target and writes two magnitudes into an updater slot; it sees
    the layer only as a receptive view. `update` sends each slot through its bounds and adds
    the result to the parameter, in place. The model keeps its class, its ``state_dict`` and
    its Parameters, and `remove` leaves no trace.

    Several processes that train one model count as one with all their samples: each `update`
    sums what they have, in one all-reduce, so every process calls it equally often, if only
    with an empty batch. That they train one model is told by the wrapper, which is looked for
    in what is attached, around it when it runs, and in sharded parameters. A process group
    alone does not tell: processes may as well train models of their own.

    Args:
        defaults: the settings of cells that do not override them.
        process_group: of the processes that share the batch: ``"auto"`` for that of the
            DistributedDataParallel or `fully_shard` the model is under, None for this process
            alone, or a group, for models that are kept equal by hand.
    """

    def __init__(self, defaults: Settings, process_group: Group = AUTO) -> None:
        super().__init__()
        self.defaults = defaults
        self.units = nn.ModuleDict()
        self._releases: dict[str, weakref.finalize[Any, Any]] = {}
        self._following: list[weakref.finalize[Any, Any]] = []
        self._team = Team(process_group)

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
        self._share_slots(cell)
        unit = Unit(name, cell, settings)
        self._team.admit(unit)
        unit.train(self.training)
        cell.listen(unit.observe)
        self.units[_key(name)] = unit
        self._releases[name] = _at_end(self, cell.unlisten, unit.observe)
        return unit

    def attach(
        self, model: nn.Module, *, pairs: Mapping[str, str | Sequence[str]] | None = None, **overrides: Any
    ) -> Self:
        """Finds the cells of a model and registers them all.

        Args:
            model: an `nn.Sequential`, nested or not, or any model with ``pairs``.
            pairs: neuron → layer, or a list of layers, by module path. Exactly these are
                registered.
            **overrides: any argument of the constructor, for these cells.

        Returns:
            This object.

        Raises:
            UnpairedNeuronError: naming every neuron whose layer cannot be known.
            ArgumentError: naming every neuron whose layers lack the param.
        """
        param = self.defaults.override(overrides).param
        group = self._team.meet(model)
        found = find_cells(model) if pairs is None else named_cells(model, pairs)
        cells = [
            (each, cell)
            for each, cell in build_cells(model, found)
            if _offers(cell, param, frozen=pairs is not None)
        ]
        lacking = {each.neuron for each in found} - {each.neuron for each, _ in cells}
        require(
            not lacking,
            "param",
            "be a parameter of a layer of every neuron, and not frozen",
            param,
            f"None is there for {', '.join(sorted(f'`{path}`' for path in lacking))}: build its layer with "
            "one, take another param, or name a frozen layer in `pairs=`.",
        )
        for each, cell in cells:
            self._require_new(each.name, cell, param)
        for each, cell in cells:
            cell.neuron.group = group
            self.register_cell(each.name, cell, **overrides)
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
                With several processes this and NoSpikesError wait for `update`, where all
                processes raise.
        """
        if target is not None:
            check_target(target)
        units = [unit for unit in self._selected(cells) if unit.active]
        self._processes.open(units)
        with self._processes.deferring(NoSpikesError, NonFiniteError), torch.no_grad():
            parts = [self._parts_of(unit, target) for unit in units]
            written = list(zip(units, parts, strict=True))
            require_finite(
                [(unit.name, "rate", part) for unit, pairs in written for pair in pairs for part in pair]
                + [(unit.name, "membrane", unit.cell.neuron.membrane) for unit in units]
            )
            for unit, pairs in written:
                unit.add(*pairs)

    def update(self) -> None:
        """Applies every slot to its parameter through its bounds, once, and empties it.

        Slots of frozen cells stay as they are.

        Raises:
            NonFiniteError: if a change is not finite. No parameter is touched then.
            ProcessMismatchError: if processes that train one model differ in their cells.
                What was pending is dropped in all of them, also when one of them has raised.
        """
        self._team.reshard()
        self._processes.share(list(self._units()))
        active = {unit.name for unit in self._units() if unit.active}
        pending = {slot: name for name, slot in self._slots() if slot.pending and name in active}
        deltas = [(slot, slot.delta()) for slot in pending]
        changes = [(pending[slot], "update", delta) for slot, delta in deltas]
        require_finite(changes, lambda flags: self._processes.agree(flags, [delta for _, delta in deltas]))
        for slot, delta in deltas:
            slot.commit(delta)

    def step(self, target: Target | None = None, cells: Iterable[str] | None = None) -> None:
        """`forward`, then `update`: call it after ``optimizer.step()``.

        Args:
            target: for this call alone, in place of each cell's own.
            cells: names of the cells to take, all by default.
        """
        with self._processes.deferring(Exception):
            self(target, cells)
        self.update()

    def follow(self, optimizer: torch.optim.Optimizer) -> Self:
        """Calls `step` after every step of ``optimizer``, so that bounds hold after it."""
        this = weakref.ref(self)

        def step(*_: Any) -> None:
            homeostasis = this()
            if homeostasis is not None:
                homeostasis.step()

        self._following.append(_at_end(self, optimizer.register_step_post_hook(step).remove))
        return self

    def rates(self) -> dict[str, Tensor]:
        """The current rate of every cell, mean over the batch: name → ``[*N]``.

        With several processes: of all their samples, as of the last `update`, so that a
        single process may ask.

        Raises:
            NoSpikesError: if a cell was never observed.
        """
        shared = self._processes.group is not None
        return {unit.name: unit.mean_rate(shared) for unit in self._units()}

    def clear(self) -> None:
        """Forgets the rate estimates and what is pending in the slots."""
        for unit in self._units():
            unit.rate.reset()
            unit.joint.reset()
            unit.cell.neuron.membrane = None
        for _, slot in self._slots():
            slot.empty()
        self._processes.forget()

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

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self._refuse_copy("copied")

    def __reduce__(self) -> NoReturn:
        self._refuse_copy("pickled")

    def _refuse_copy(self, how: str) -> NoReturn:
        raise HomeostasisError(
            f"`{type(self).__name__}` should not be {how}: it holds hooks on the modules of one model. "
            "Attach a new one to the other model and load this one's `state_dict()` into it."
        )

    def _units(self) -> Iterator[Unit]:
        for unit in self.units.values():
            assert isinstance(unit, Unit)
            yield unit

    def _slots(self) -> Iterator[tuple[str, Slot]]:
        for unit in self._units():
            for slot in unit.cell.updater.slots.values():
                yield unit.name, slot

    def _selected(self, cells: Iterable[str] | None) -> list[Unit]:
        units = {unit.name: unit for unit in self._units()}
        names = units if cells is None else [cells] if isinstance(cells, str) else cells
        for name in names:
            known = ", ".join(map(repr, units)) or "none yet"
            require(name in units, "cells", f"name registered cells ({known})", name, "Check the spelling.")
        return [units[name] for name in dict.fromkeys(names)]

    def _parts_of(self, unit: Unit, target: Target | None) -> list[Parts]:
        return [self.parts(unit.cell, unit.state, *estimate) for estimate in unit.estimates(target)]

    @property
    def _processes(self) -> Processes:
        return self._team.of(unit.cell for unit in self._units())

    def _share_slots(self, cell: Cell) -> None:
        """Gives tied parameters the one slot that another cell has for them."""
        slots = cell.updater.slots
        for _, other in list(self._slots()):
            for kind, slot in slots.items():
                if other is not slot and other.reference.leaf is slot.reference.leaf:
                    set_bounds(other, slot.bounds)
                    slots[kind] = other

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
            require(
                not (same and unit.state.param == param),
                "cell",
                f"be regulated once by its {param}",
                None,
                "Remove one of the two.",
                show=f"the same layer and neuron in cell {unit.name!r}",
            )


def _at_end(owner: object, call: Callable[..., object], *args: Any) -> weakref.finalize[Any, Any]:
    """Has something called when ``owner`` is gone, or earlier by hand; once in any case."""
    release = weakref.finalize(owner, call, *args)
    release.atexit = False
    return release


def _key(name: str) -> str:
    return name.replace(".", "/")


def _offers(cell: Cell, param: str, frozen: bool) -> bool:
    reference = cell.connection.references.get(param)
    return reference is not None and (frozen or reference.leaf.requires_grad)
