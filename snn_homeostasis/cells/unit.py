"""A registered cell, with all that a rule keeps for it."""

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, NoSpikesError, require, warn
from ..observe import RateEstimator
from ..updates import Contribution, Slot
from .band import Band
from .cell import Cell
from .guard import Guard
from .settings import Settings
from .state import CellState
from .targets import Rate, Target, draw_target, exceeds, fit_target

__all__ = ["Unit"]

Memory = Callable[[], Tensor | None]  # a weak reference


class View(NamedTuple):
    """A total, laid out against a parameter."""

    total: Memory
    param: str
    rows: Tensor  # [B, ..., L]
    only: Tensor | None  # [..., L], if there is one sample


class Unit:
    """A registered cell with its settings (``state``), its estimator (``rate``) and its slots by kind."""

    def __init__(self, name: str, cell: Cell, settings: Settings) -> None:
        self.name, self.cell, self.slots = name, cell, cell.updater.slots
        self.hook, self.connection = cell.neuron, cell.connection
        self.state = CellState(name, cell, settings)
        self.rate: RateEstimator = settings.rate()
        self.guard = Guard(name, cell, self.state)
        self.answered: tuple[Memory, Memory] = (_nothing, _nothing)  # spikes and total of the last step
        self.asked: tuple[Memory, Memory] = self.answered  # those of the step that is being made
        self._view: View | None = None  # one that stays right while spikes are added to its total
        self._warn()

    @property
    def active(self) -> bool:
        """Whether neither the model nor the homeostasis is in eval mode."""
        return self.rate.training and self.hook.module.training

    @property
    def regulated(self) -> tuple[int, int, str]:
        """What this unit regulates: the layer and the neuron, by identity, and the param."""
        return id(self.connection.layer), id(self.hook.module), self.state.param

    @property
    def pending(self) -> bool:
        """Whether something waits in a slot."""
        return bool(self.state.slot.contributions) or any(slot.pending for slot in self.slots.values())

    @property
    def slot(self) -> Slot:
        """The slot that the rule writes to."""
        return self.state.slot

    def saved(self) -> nn.ModuleDict:
        """Returns all that a checkpoint holds of this unit."""
        slots = nn.ModuleDict(self.slots)
        return nn.ModuleDict({"rate": self.rate, "state": self.state, "slots": slots, "guard": self.guard})

    def contribute(self, contribution: Contribution) -> None:
        """Adds what the rule gives to the slot, without what the guard holds."""
        if self.guard.blocked is not None:
            contribution = self.guard.hold(contribution)
        self.state.slot.contributions.append(contribution)
        self.state.__dict__["contributed"] = 1  # an attribute of a module takes longer to set

    def end_step(self) -> None:
        """Closes a step after its update: drops the graph, and closes the estimate that it used."""
        self.hook.membranes.forget()
        if self.state.contributed:
            self.rate.close()
            self.state.count_step()

    def reset(self) -> None:
        """Forgets what was observed, the steps made, and what waits in the slots, except from other rules."""
        self.rate.reset()
        self._view = None
        self.state.restart()
        self.hook.membranes.forget()
        self.guard.clear()
        for slot in self.slots.values():
            slot.drop(self.rate, None)

    def is_news(self) -> bool:
        """Whether a step that begins now has something to answer that the last one did not have."""
        spikes, total = self.hook.observed, self.rate.total  # an estimate that was loaded has another total
        old_spikes, old_total = self.asked = self.answered
        if spikes is None or total is None or self._pauses:
            return True
        self.asked = weakref.ref(spikes), weakref.ref(total)
        return old_spikes() is not spikes or old_total() is not total

    def listen(self) -> None:
        """Starts the observation."""
        self._pauses: set[object] = set()
        self.cell.listen(self.rate)

    def leave(self) -> None:
        """Ends the observation, and takes back what the slots have of this unit."""
        for slot in self.slots.values():
            slot.leave(self.rate)
        self.cell.unlisten(self.rate)

    def pause(self, reason: object) -> None:
        """Stops the observation until each reason is gone."""
        self._pauses.add(reason)
        self.cell.switch(self.rate, is_on=False)

    def resume(self, reason: object) -> None:
        """Ends a `pause`."""
        self._pauses.discard(reason)
        self.cell.switch(self.rate, is_on=not self._pauses)

    def target_for(self, total: Tensor, target: Target | None, is_blank: bool = False) -> Rate | Band:
        """Returns the target of this call, or of the cell, in spikes per step.

        Args:
            total: shaped as the rate ``[B, *N]`` that it is for.
            target: of this call; None for the target of the cell.
            is_blank: whether no sample stands behind the total, so that nobody uses the target.

        Raises:
            ArgumentError: for a target that cannot work.
        """
        found = self.state.target if target is None else target
        if found is None:
            raise ArgumentError(
                f"`target` should be set for cell {self.name!r}. Found `target = None`. Give it to the "
                "constructor, to `register_cell` or to this call."
            )
        if type(found) is not float:  # most are
            found = self._fitted(found, total, is_blank, keep=target is None)
        if self.state.dt is not None:
            found = found * self.state.dt
        if getattr(self.hook.module, "inhibition", False):  # at most one neuron of a sample fires per step
            self._require_reachable(found, total)
        return found

    def _fitted(self, target: Target, total: Tensor, is_blank: bool, keep: bool) -> Rate | Band:
        """Fits a tensor to a rate; one that is drawn here may be kept as the target of the cell."""
        if isinstance(target, Band):
            return target
        if not isinstance(target, Tensor) and not callable(target):
            return float(target)
        if not isinstance(target, Tensor):
            self._require_alone()
            target = draw_target(target, total.shape[1:])
            if keep:
                self.state.target = target
        if is_blank:
            return 1.0  # there are no samples that a tensor could be fitted to
        target = fit_target(target, total)
        neurons = tuple(range(target.ndim == total.ndim, target.ndim))  # without the batch
        return target.mean(neurons, keepdim=True) if self.state.population and neurons else target

    def _require_alone(self) -> None:
        show = "a function, which would draw another tensor in each of them"
        remedy = "Draw a tensor with a seeded generator, and pass that in every process."
        expected = "be drawn before where several processes train the model"
        require(not self.slot.shared, "target", expected, None, remedy, show=show)

    def estimate(self) -> Tensor:
        """Returns the rate ``[B, *N]`` in spikes per step, the same for all neurons of a population."""
        if self.state.population or self._is_blank():
            return (self.observation()[0] / (self.rate.weight or 1.0)).float()
        return self.rate.rate

    def summed_estimate(
        self, total: Tensor, target: Rate, samples: bool
    ) -> tuple[Tensor, float, Rate] | None:
        """Returns a sum of a total and a number, whose product is a mean rate, and the target laid out alike.

        The mean is taken over the positions that share a parameter, ``[B, ...]`` against the weight,
        and over the samples if these are wanted, ``[...]``. None if targets differ among them.
        """
        connection, param = self.connection, self.state.param
        if isinstance(target, Tensor):
            laid = connection.receptive(param, target.expand(total.shape))
            if any(laid.shape[dim] > 1 and laid.stride(dim) for dim in ((0, -1) if samples else (-1,))):
                return None
            target = laid[0, ..., 0] if samples else laid[..., 0]
        _, _, rows, only = self._view_of(total)
        batch, positions = rows.shape[0], rows.shape[-1]
        number = (self.rate.weight or 1.0) * positions
        if samples and only is None:
            if positions > 1:
                rows = rows.sum(-1, keepdim=True)  # both at once take twice as long
            return rows.sum((0, -1)), 1.0 / (number * batch), target
        each = only if samples and only is not None else rows
        return each.sum(-1) if positions > 1 else each.squeeze(-1), 1.0 / number, target

    def _view_of(self, total: Tensor) -> View:
        """Lays a total out against the parameter: once for all steps, if it shares its memory."""
        param, view = self.state.param, self._view
        if view is not None and view.total() is total and view.param == param:
            return view
        rows = self.connection.receptive(param, total)
        # weak: a copy of this unit has a total of its own
        view = View(weakref.ref(total), param, rows, rows[0] if len(rows) == 1 else None)
        if rows.data_ptr() == total.data_ptr() and param != "threshold":  # whose shape may change
            self._view = view
        return view

    def in_units(self, rate: Tensor) -> Tensor:
        """Returns a rate in spikes per step in the units of the target: in Hz with a `dt`."""
        return rate if self.state.dt is None else rate / self.state.dt

    def observation(self) -> tuple[Tensor, int]:
        """Returns the total ``[B, *N]`` that the rule sees, and of how many samples it is.

        Raises:
            NoSpikesError: if there is none, with the reason.
        """
        if self._is_blank():
            # gives parts of the right shape; the sum over the processes weighs them with 0 samples
            return torch.zeros(1, *self.hook.neurons or (), device=self.slot.reference.tensor.device), 0
        total = self._observed_total()
        if self.state.population:
            total = total.mean(tuple(range(1, total.ndim)), keepdim=True).expand_as(total)
        return total, total.shape[0]

    def _is_blank(self) -> bool:
        """Whether other processes have the samples, and this one has none."""
        return self.state.slot.shared and self._is_empty_batch()

    def _is_empty_batch(self) -> bool:
        """Whether the model ran, but on no samples."""
        return self.hook.neurons is not None and not self.hook.samples

    def mean_rate(self, shared: bool) -> Tensor:
        """Returns the mean rate ``[*N]`` over the batch, or over the joint batch at the last update."""
        if not shared:
            return self.in_units((self._observed_total().mean(0) / self.rate.weight).float())
        if self.rate.joint is None:
            raise NoSpikesError(
                f"the rate of cell {self.name!r} should have been shared before it is read. Found no "
                "`update()` since it was observed. Call `update()` in every process; if nothing is pending, "
                "it only shares the rates."
            )
        return self.in_units(self.rate.joint)

    def look(self, shared: bool) -> None:
        """Lets the guard compare what waits in the slot with the rate."""
        if self.slot.pending:
            with suppress(NoSpikesError):  # the user may add to the slot of a cell that never ran
                self.guard.look(self.mean_rate(shared), is_alone=not shared)

    def _observed_total(self) -> Tensor:
        total = self.rate.total
        if total is None or not self.rate.steps:
            raise NoSpikesError(
                f"cell {self.name!r} should have been observed before its rate is used. Found no spikes "
                f"of {type(self.hook.module).__name__}: {self._why_unobserved()}."
            )
        if total.shape != self.hook.shape:  # a compiled step has not been checked
            self.hook.require_shape(total.shape)
        return total

    def _require_reachable(self, target: Rate | Band, total: Tensor) -> None:
        least = (target.low or 0.0) if isinstance(target, Band) else target
        expected = float(torch.as_tensor(least).expand(total.shape).sum() / len(total))
        if expected > 1 + 1e-6:
            raise ArgumentError(
                f"`target` should sum to at most 1 over the neurons of cell {self.name!r}, since with "
                f"inhibition one of them fires per step. Found a sum of {expected:g}. Lower the target."
            )

    def _why_unobserved(self) -> str:
        hook, places = self.hook, self.cell.places
        if places is not None and places.replaced():
            return "the model holds another module in its place; call `remove()`, then `attach` it again"
        if hook.frozen:
            return "it ran in eval mode; call `.train()` on the model"
        if self._is_empty_batch():
            return "its batch was empty; call `step()` once a batch had samples"
        if hook.samples:
            return "since it ran, the estimate was cleared"
        return (
            "it was not called while observed; if the model did run, it may have run in `pause()`, or while "
            "the homeostasis was in eval mode; it may call `neuron.forward(...)` in place of `neuron(...)`; "
            "or it was compiled before `attach`, and a compiled graph does not notice new hooks: call "
            "`torch.compiler.reset()` after `attach`"
        )

    def _warn(self) -> None:
        target, norm = self.state.target, self.connection.norm
        if exceeds(target, 1.0 / (self.state.dt or 1.0)):
            warn(
                f"The target of cell {self.name!r} is above 1 spike per step, and a neuron makes at most "
                "one. Pass `dt`, the seconds per step, to give a rate in Hz."
            )
        if self.state.param == "weight" and norm is not None:
            features, has_bias = self.connection.features, self.connection.bias is not None
            first = f", after `norm.bias = nn.Parameter(torch.zeros({features}))`, since it has none"
            warn(
                f"{type(norm).__name__} cancels most of what the weight rule does in cell {self.name!r}: "
                f"take param='bias'{'' if has_bias else first}."
            )


def _nothing() -> None:
    """Remembers nothing."""
