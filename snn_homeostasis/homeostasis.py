"""The face that every rule inherits: cells, attach, step, update, rates, remove, state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from .cells.cell import Cell
from .cells.registry import key_of, owners_of, require_new, select, set_bounds
from .cells.settings import CellState, Settings, Target, check_target
from .cells.unit import Unit, require_no_waiting_graph
from .discovery import Choice, announce, build_cells, find_cells
from .distributed.groups import AUTO, Group, Team
from .distributed.reduction import Processes
from .errors import HomeostasisError, NonFiniteError, NoSpikesError, WaitingGraphError
from .following import Release, at_end, step_after
from .observe.shortcuts import is_current
from .rules.sweep import Sweep
from .state import NoCopy
from .updates.changes import changes_of, make_all, warn_stuck
from .updates.finite import require_finite
from .updates.ledger import Parts
from .updates.slots import unchanged_on_error

__all__ = ["Homeostasis"]

GLOBAL_HOOKS = (modules._global_forward_hooks, modules._global_forward_pre_hooks)


class Homeostasis(NoCopy, nn.Module, ABC):
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
        self._releases: dict[str, Release] = {}
        self._following: list[Release] = []
        self._team = Team(process_group)
        self._sweep: Sweep | None = None

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

    def affine(self, state: CellState, target: Target) -> tuple[float, Target] | None:
        """The rule once more, if all it does is to split a term ``offset + slope * rate``.

        That is, if `parts` gives the term's mean over the positions that share a parameter, split by
        its sign, each part as the mean over samples. A `step` takes less time then. A subclass with
        another `parts` and no `affine` of its own does without.

        Args:
            state: the cell's settings.
            target: a number, or a tensor that broadcasts with the rate.

        Returns:
            ``(offset, slope)``, or None if the rule is not of this kind; ``slope`` is a number or
            broadcasts with the rate.
        """
        return None

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
        require_new(self._units(), name, cell, settings.param)
        self._sweep = None
        unit = Unit(name, cell, settings)
        set_bounds(self._units(), unit, settings.bounds)
        self._team.admit(unit)
        cell.listen(unit.rate)
        unit.train(self.training)
        self.units[key_of(name)] = unit
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
        group = self._team.meet(model)
        found = find_cells(model, example, pairs=pairs, include=include, exclude=exclude)
        self._team.reshard()  # the example has gathered them
        cells = build_cells(model, found, settings.param, frozen=pairs or ())
        for each, cell in cells:
            require_new(self._units(), each.name, cell, settings.param)
        announce(cells, settings.param, by_hand=bool(pairs or include or exclude))
        try:
            for each, cell in cells:
                cell.neuron.group = group
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
                With several processes this and NoSpikesError wait for `update`, where all
                processes raise.
        """
        if target is not None:
            check_target(target)
        units = [unit for unit in select(self._units(), cells) if unit.active]
        self._processes.open(units)
        with self._processes.deferring(NoSpikesError, NonFiniteError), torch.no_grad():
            parts = [self._parts_of(unit, target) for unit in units]
            written = list(zip(units, parts, strict=True))
            require_finite(
                [(unit.name, "rate", part) for unit, pairs in written for pair in pairs for part in pair]
                + [(unit.name, "membrane", unit.cell.neuron.membrane) for unit in units]
            )
            with unchanged_on_error(unit.slot for unit in units):
                for unit, pairs in written:
                    unit.add(*pairs)

    def update(self) -> None:
        """Applies every slot to its parameter through its bounds, once, and empties it.

        Slots of frozen cells stay as they are.

        Raises:
            NonFiniteError: if a change is not finite.
            WaitingGraphError: if a parameter is needed by a graph that waits for its backward.
            ProcessMismatchError: if processes that train one model differ in their cells.
                What was pending is dropped in all of them, also when one of them has raised.

        No parameter is touched then. An interruption leaves all parameters as they were, or
        all of them updated.
        """
        units, processes = list(self._units()), self._processes
        owners = owners_of(units)
        with processes.deferring(WaitingGraphError):
            require_no_waiting_graph(owners)
        self._team.reshard()
        processes.share(units)
        changes = changes_of(owners)
        changed = [(owners[slot], change) for change in changes for slot in change.slots]
        outcomes = [(unit.name, "update", change.outcome) for unit, change in changed]
        require_finite(outcomes, processes.agree)
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
        if target is None and cells is None and self._swept():
            return
        with unchanged_on_error(slot for unit in self._units() for slot in unit.all_slots):
            with self._processes.deferring(Exception):
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
            unit.reset()
        if self._sweep is not None:
            self._sweep.release()
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
        select(self._units(), [name])
        self._sweep = None
        self._releases.pop(name)()
        del self.units[key_of(name)]

    def _units(self) -> Iterator[Unit]:
        for unit in self.units.values():
            assert isinstance(unit, Unit)
            yield unit

    def _swept(self) -> bool:
        """Makes a step in one sweep; false if that is not possible, and nothing was changed.

        Errors are left to `forward` and `update`, which know all that is wrong, but for those of bounds.
        """
        is_hooked = any(hooks for hooks in (self._forward_hooks, self._forward_pre_hooks, *GLOBAL_HOOKS))
        if is_hooked or not vars(self).keys().isdisjoint(("forward", "update", "parts", "affine")):
            return False
        try:
            sweep = self._fitting_sweep()
        except HomeostasisError:
            return False
        return sweep is not None and sweep.run()

    def _fitting_sweep(self) -> Sweep | None:
        if self._sweep is None or not self._sweep.fits():
            self._sweep = self._new_sweep()
            if self._sweep is not None and not self._sweep.fits():
                self._sweep = None
        return self._sweep

    def _new_sweep(self) -> Sweep | None:
        own = type(self)
        unchanged = own.forward is Homeostasis.forward and own.update is Homeostasis.update
        unchanged = unchanged and is_current(own, "affine", "parts")
        if not unchanged or self._processes.group is not None:
            return None
        return Sweep.of(self.affine, list(self._units()))

    def _parts_of(self, unit: Unit, target: Target | None) -> list[Parts]:
        return [self.parts(unit.cell, unit.state, *estimate) for estimate in unit.estimates(target)]

    @property
    def _processes(self) -> Processes:
        return self._team.of(unit.cell for unit in self._units())
