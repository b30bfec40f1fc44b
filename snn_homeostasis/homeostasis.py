"""The face that every rule inherits: cells, attach, step, update, rates, remove, state."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from .calibration import Calibrating
from .cells import (
    Registration,
    Settings,
    Target,
    Unit,
    check_target,
    owner_of,
    require_finite_cells,
    require_new,
    require_ready,
    select,
    targets_of,
)
from .discovery import Choice, Pairs, build_cells, closed_on_error, find_cells, require_model, warn_about
from .distributed import AUTO, Group, Processes, ProcessGroups
from .following import Following
from .monitoring import Reports
from .rule import Rule
from .updates import Change, Slot, Waiting, apply_changes, changes_of, without_gradients

__all__ = ["Homeostasis"]


class Step(NamedTuple):
    """What one step asks for once."""

    processes: Processes
    slots: list[Slot]
    taken: list[Unit]  # what `forward` has taken, filled by it


class Homeostasis(Registration, Reports, Calibrating, Rule, nn.Module):
    """Base of the rules, and the object that users hold.

    A forward hook on each neuron hands its spikes to the rate estimator of its cell. The rule
    compares rate and target and adds to an updater slot; it sees the layer only as a receptive view.
    `update` sends each slot through its bounds and changes the parameter in place. The model keeps
    its class, its ``state_dict`` and its Parameters, and `remove` leaves no trace.

    A new rule defines `drive`; see `Rule`.

    Several processes that train one model count as one with all their samples: each `update` sums
    what they have, in one all-reduce. So every process calls it equally often, if only with an empty
    batch. A wrapper around the model, or sharded parameters, tell that processes train one model.
    Settings that differ raise in all of them; of a tensor as target the numbers are not compared.

    Args:
        defaults: the settings of cells that do not override them.
        process_group: of the processes that share the batch: ``"auto"`` for the group of the
            DistributedDataParallel or `fully_shard` around the model, None for this process alone,
            or a group, for models that the user keeps equal.

    >>> import snntorch as snn, torch
    >>> class SignHomeostasis(Homeostasis):
    ...     def drive(self, rate, target):
    ...         return torch.sign(target - rate)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
    >>> homeostasis = SignHomeostasis(Settings(0.01, target=0.1, param="bias")).attach(net)
    >>> before, spikes = net[0].bias.clone(), net(torch.zeros(16, 4))
    >>> homeostasis.step()
    >>> torch.allclose(net[0].bias, before + 0.01)
    True
    """

    ties = Registration.ties | {"_following", "_step_post_hooks", "_stepping"}

    def __init__(self, defaults: Settings, process_group: Group = AUTO) -> None:
        super().__init__(defaults)
        self._groups = ProcessGroups(process_group)

    def attach(
        self,
        model: nn.Module,
        example: Any = None,
        *,
        pairs: Pairs | None = None,
        include: Choice | None = None,
        exclude: Choice | None = None,
        **overrides: Any,
    ) -> Self:
        """Finds the cells of a model and registers them all.

        Each layer that drives a neuron is a cell of its own. A parameter that drives several neurons
        moves by the sum of what they ask for. Where a neuron fires less when its layer puts out more,
        the parameter changes the other way. Readouts, whose spikes nobody needs, are left out unless
        they are named. A warning says each of these.

        Args:
            model: any model with an ``example``; without, an `nn.Sequential`, nested or not.
            example: an input of the model, a tuple of its arguments, or a dict of them by name.
                The model runs on it once and is left as it was: see `find_cells`.
            pairs: neuron → layer, or a list of layers, by module path; replaces what would be
                found, unless that contradicts. Without an example, exactly these are registered.
            include: keep only the cells of these: paths of layers, of neurons or of modules
                around them, these modules themselves, or types of layers.
            exclude: leave out the cells of these.
            **overrides: any argument of the constructor, for these cells. A target may also be a dict
                by name of a cell or type of its layer; the other cells take the one of the constructor.

        Raises:
            UnpairedNeuronError: naming every neuron whose layer cannot be known.
            ArgumentError: naming every neuron whose layers lack the param.
            UnsupportedLayerError: naming every layer whose param cannot change in place.
        """
        require_model(model)
        several = {"target": overrides.pop("target")} if isinstance(overrides.get("target"), Mapping) else {}
        settings = self._overridden(overrides)
        group = self._groups.look_into(model)
        found = find_cells(model, example, pairs=pairs, include=include, exclude=exclude)
        self._groups.reshard()  # the run on the example has gathered them
        with closed_on_error() as opened:
            cells = build_cells(model, found, settings.param, frozen=pairs or (), opened=opened)
            for each, cell in cells:
                require_new(self._units, each.name, cell, settings.param)
            warn_about(cells, settings.param, by_hand=bool(pairs or include or exclude))
            layers = [(each.name, cell.connection.layer) for each, cell in cells]
            targets = targets_of(several, layers, self.defaults.target)
            before = set(self._units)
            try:
                for each, cell in cells:
                    cell.neuron.group = group
                    own = {"target": targets[each.name]} if targets else {}
                    self.register_cell(each.name, cell, **overrides | own)
            except BaseException:  # for instance a warning that the user has made an error
                for name in self._units.keys() - before:
                    self.remove_cell(name)
                raise
        return self

    @without_gradients
    def forward(self, target: Target | None = None, cells: Iterable[str] | None = None) -> None:
        """Applies the rule: adds to the slots of the cells, and changes no parameter.

        Frozen cells (in eval mode, or all if this object is) are left out.

        Args:
            target: for this call alone, in place of the targets of the cells.
            cells: names of the cells to take, all by default.

        Raises:
            NoSpikesError: if a cell was never observed.
            ArgumentError: for a target that cannot work, or an unknown name.
            NonFiniteError: if a rate or a membrane is not finite.

        Nothing is added then. In several processes all errors wait for `update`, where all raise.
        """
        step, is_part = self._stepping or self._begin(), self._stepping is not None
        before = None if is_part else Waiting(step.slots)  # `step` has its own
        try:
            units = [unit for unit in select(self._units, cells) if unit.active]
            step.taken.extend(units)
            self._contribute(units, step.slots, target, signed=is_part)
            if not is_part or step.processes.group is not None:  # otherwise `update` looks
                require_finite_cells(units, rated=units)
        except BaseException as error:
            if before is not None:
                before.put_back()
            step.processes.defer(error)

    @without_gradients
    def update(self) -> None:
        """Applies every slot of active cells to its parameter through its bounds, once, and empties it.

        Raises:
            NonFiniteError: if a change is not finite.
            WaitingGraphError: if a waiting graph needs a parameter; ReplacedModuleError: if no model does.
            ProcessMismatchError: if processes that train one model differ in their cells.
                All of them drop what waits in their slots, also when one of them has raised.

        No parameter changes then. An interruption leaves all parameters unchanged, or all updated.
        """
        step = self._stepping or self._begin()
        units, processes = list(self._units.values()), step.processes
        active = [unit for unit in units if unit.active]
        waiting, several = [unit for unit in active if unit.pending], processes.group is not None
        try:
            require_ready(active)
            self._groups.reshard()
            if several:  # membranes differ between processes: all learn of a fault before they sum
                require_finite_cells(waiting)
        except Exception as error:
            processes.defer(error)
        processes.reduce(units)
        changes: list[Change] = []
        try:
            changes = changes_of([slot for unit in waiting for slot in unit.slots.values()], step.slots)
            require_finite_cells([] if several else waiting, changes=changes, units=active)
            for unit in waiting:
                if unit.guard.is_due():
                    unit.look(several)
        except Exception as error:
            processes.defer(error)
        processes.confirm(units, changes)
        apply_changes(changes, lambda slot: f"cell {owner_of(slot, active).name!r}")
        for unit in waiting:
            unit.end_step()
        for hook in tuple(self._step_post_hooks.values()):
            hook(self)

    @without_gradients
    def step(self, target: Target | None = None, cells: Iterable[str] | None = None) -> None:
        """`forward` with these arguments, then `update`: call it after ``optimizer.step()``."""
        step = self._begin()
        before = Waiting(step.slots)
        try:
            self.__dict__["_stepping"] = step  # an attribute of a module takes longer to set
            try:
                self(target, cells)
                if target is None:  # with a target of its own it may well be meant
                    self._note_step(step.taken)  # before anything moves: a user may make warnings errors
            except Exception as error:
                step.processes.defer(error)
            self.update()
        except BaseException:
            before.put_back()
            raise
        finally:
            self.__dict__["_stepping"] = None
        if target is None:
            for unit in step.taken:
                unit.answered = unit.asked

    def follow(self, optimizer: torch.optim.Optimizer) -> Self:
        """Calls `step` after every step of ``optimizer``, which keeps this object alive.

        Raises:
            ArgumentError: if it has no hooks after its steps, or is followed already.
        """
        self._following.add(optimizer, self.step)
        return self

    def clear(self) -> None:
        """Forgets the rate estimates, what waits in the slots, and how many steps were made."""
        for unit in self._units.values():
            unit.reset()
        self._groups.of(self._units.values()).drop_errors()

    def remove(self) -> None:
        """Takes off all hooks and forgets the cells: the model is as it was before."""
        for name in list(self._units):
            self.remove_cell(name)
        self._following.release()

    def _admit(self, unit: Unit) -> None:
        self._groups.admit(unit)

    def _tie(self) -> None:
        self._following = Following()
        self._step_post_hooks = OrderedDict()
        self._stepping: Step | None = None  # the step that `forward` and `update` are parts of
        super()._tie()

    def _all_processes(self) -> Processes:
        self._groups.look_around(self._units.values())
        return self._groups.of(self._units.values())

    @property
    def _is_shared(self) -> bool:
        return self._groups.of(self._units.values()).group is not None

    def _begin(self) -> Step:
        units = self._units.values()
        return Step(self._groups.of(units), [slot for unit in units for slot in unit.slots.values()], [])

    def _contribute(
        self, units: Sequence[Unit], slots: Iterable[Slot], target: Target | None, signed: bool
    ) -> None:
        """Adds what the rule says to the slots of some cells; as one signed part, where that may be."""
        if target is not None:
            check_target(target)
        bounded = {id(slot.reference.leaf) for slot in slots if slot.bounds is not None}
        contributions = []
        for unit in units:
            needs_parts = bounded and id(unit.slot.reference.leaf) in bounded  # if only by a tied layer
            contributions.append(self.contribution(unit, target, signed and not needs_parts))
        for unit, each in zip(units, contributions, strict=True):
            unit.contribute(each)
