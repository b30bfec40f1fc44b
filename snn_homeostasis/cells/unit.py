"""A registered cell, with the state that the rule keeps for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, NoSpikesError, WaitingGraphError, warn
from ..observe.estimator import RateEstimator
from ..observe.joint import JointRate
from ..observe.neurons import is_inhibited
from ..updates.graphs import is_needed_by
from ..updates.ledger import Parts, Share, is_sum
from ..updates.slots import Slot
from .cell import Cell
from .settings import CellState, Settings, Target, fit_target

__all__ = ["Unit", "require_no_waiting_graph"]


class Unit(nn.Module):
    """A registered cell with all that belongs to it.

    Attributes:
        name: as registered.
        cell: the `Cell`.
        state: plasticity, target, param, batch_reduction.
        rate: the estimator of this cell alone.
        joint: the rate over the samples of all processes, where there are several.
        slots: the updater slots of the cell.
        slot: the one that the rule writes to.

    Raises:
        ArgumentError: if the layer lacks the param.
    """

    state: CellState
    rate: RateEstimator

    def __init__(self, name: str, cell: Cell, settings: Settings) -> None:
        super().__init__()
        _require_param(name, cell, settings.param)
        self.name = name
        self.cell = cell
        self.state = CellState(settings)
        self.rate = settings.rate()
        self.joint = JointRate()
        self.slots = nn.ModuleDict(cell.updater.slots)
        self._pauses = 0
        self._warn()

    @property
    def active(self) -> bool:
        """Whether neither the model nor the homeostasis is frozen by eval mode."""
        return self.training and self.cell.training

    @property
    def slot(self) -> Slot:
        """The updater slot that the rule writes to."""
        return self.cell.updater.slots[self.state.param]

    @property
    def all_slots(self) -> Iterable[Slot]:
        """All updater slots of the cell."""
        return self.cell.updater.slots.values()

    @property
    def samples(self) -> int:
        """How many samples the estimate is of; 0 before any and after an empty batch."""
        return len(self.rate.rate) if self.rate.steps and self.cell.neuron.samples else 0

    def share(self, carried: Parts | None = None) -> Share:
        """How what this process adds now counts among all processes."""
        return Share(self.samples, self.joint.samples, is_sum(self.state.batch_reduction), carried)

    def add(self, own: Parts, carried: Parts | None = None) -> None:
        """Adds what the rule made of each of the `estimates`."""
        self.slot.add(*own, share=self.share(carried) if self.slot.ledger.is_open else None)

    def reset(self) -> None:
        """Forgets what was observed and what is pending."""
        self.rate.reset()
        self.joint.reset()
        self.cell.neuron.forget()
        for slot in self.all_slots:
            slot.empty()

    def train(self, mode: bool = True) -> Self:
        """Freezes this unit, or thaws it: a frozen one does not observe."""
        super().train(mode)
        self._tune()
        return self

    def pause(self) -> None:
        """Stops observing, until `resume` was called as often."""
        self._pauses += 1
        self._tune()

    def resume(self) -> None:
        """Ends one `pause`."""
        self._pauses -= 1
        self._tune()

    def _tune(self) -> None:
        self.cell.tune(self.rate, is_on=self.training and not self._pauses)

    def estimates(self, target: Target | None) -> list[tuple[Tensor, Target]]:
        """The rate ``[B, *N]`` with its target, and where processes share a batch also the carried rate.

        A process with an empty batch has a blank, which gives its parts their shape and counts nothing.

        Raises:
            NoSpikesError: if there is no estimate, with the reason.
            ArgumentError: for a target that cannot work.
        """
        neurons = self.cell.neuron.neurons
        if self.slot.ledger.is_open and neurons is not None and not self.cell.neuron.samples:
            return [(torch.zeros(1, *neurons, device=self.slot.reference.tensor.device), 1.0)]
        rate = self.observed_rate()
        fitted = self.target_for(rate, target)
        carried = self.joint.carried(rate, self.rate)
        return [(rate, fitted)] if carried is rate else [(rate, fitted), (carried, fitted)]

    def mean_rate(self, shared: bool) -> Tensor:
        """The rate ``[*N]``, mean over the batch.

        Args:
            shared: over the samples of all processes, as of the last update.

        Raises:
            NoSpikesError: if it is not known.
        """
        if not shared:
            return self.observed_rate().mean(0)
        if self.joint.mean is None:
            raise NoSpikesError(
                f"the rate of cell {self.name!r} should have been shared before it is read. Found no "
                "`update()` since it was observed. Call `update()` in every process; if nothing is pending, "
                "it only shares the rates."
            )
        return self.joint.mean

    def observed_rate(self) -> Tensor:
        """The estimate ``[B, *N]``.

        Raises:
            NoSpikesError: if there is none, with the reason.
        """
        self._require_observed()
        return self._fitted(self.rate.rate)

    def scaled_rate(self) -> tuple[Tensor, float]:
        """The estimate as `RateEstimator.scaled` gives it.

        Raises:
            NoSpikesError: if there is none, with the reason.
        """
        self._require_observed()
        rate, scale = self.rate.scaled()
        return self._fitted(rate), scale

    def _fitted(self, rate: Tensor) -> Tensor:
        self.cell.neuron.require_shape(rate.shape)  # not yet done if the step was compiled
        return rate

    def _require_observed(self) -> None:
        if not self.rate.steps:
            raise NoSpikesError(
                f"cell {self.name!r} should have been observed before its rate is used. Found no spikes "
                f"of {type(self.cell.neuron.module).__name__}: {self._why_unobserved()}."
            )

    def target_for(self, rate: Tensor, target: Target | None) -> Target:
        """The target of this call, or else the cell's own, fitted to a rate ``[B, *N]``.

        Raises:
            ArgumentError: if there is none, or it does not fit, or cannot be reached.
        """
        target = self.state.target if target is None else target
        if target is None:
            raise ArgumentError(
                f"`target` should be set for cell {self.name!r}. Found `target = None`. Give it to the "
                "constructor, to `register_cell` or to this call."
            )
        target = fit_target(target, rate)
        if is_inhibited(self.cell.neuron.module):
            self._require_reachable(target, rate)
        return target

    def _require_reachable(self, target: Target, rate: Tensor) -> None:
        total = float(torch.as_tensor(target).expand(rate.shape).sum() / len(rate))
        if total > 1 + 1e-6:
            raise ArgumentError(
                f"`target` should sum to at most 1 over the neurons of cell {self.name!r}, since with "
                f"inhibition one of them fires per step. Found a sum of {total:g}. Lower the target."
            )

    def _why_unobserved(self) -> str:
        tap = self.cell.neuron
        if tap.frozen:
            return "it ran in eval mode; call `.train()` on the model"
        if tap.has_run:
            return "since it ran, the estimate was cleared"
        return (
            "it was not called while observed; if the model did run, it may have run in `pause()`, or while "
            "the homeostasis was in eval mode; it may call `neuron.forward(...)` in place of `neuron(...)`; "
            "or it was compiled before `attach`, and a compiled graph does not notice new hooks: call "
            "`torch.compiler.reset()` after `attach`"
        )

    def _warn(self) -> None:
        target, norm = self.state.target, self.cell.connection.norm
        if target is not None and bool(torch.as_tensor(target > 1).any()):
            warn(f"The target of cell {self.name!r} is above 1: a neuron spikes at most once per step.")
        if self.state.param == "weight" and norm is not None:
            warn(
                f"{type(norm).__name__} cancels most of what the weight rule does in cell {self.name!r}: "
                "take param='bias'."
            )


def require_no_waiting_graph(owners: Mapping[Slot, Unit]) -> None:
    """Checks that no parameter is needed by the graph of the last observed call of its cell.

    Args:
        owners: the cell of each slot that will be applied if something is pending in it.

    Raises:
        WaitingGraphError: naming every cell with such a parameter.
    """
    waiting = [
        repr(unit.name)
        for slot, unit in owners.items()
        if slot.pending and is_needed_by(slot.reference.leaf, unit.cell.neuron.graph)
    ]
    if waiting:
        raise WaitingGraphError(
            "`step` should be called when no graph waits for its backward. Found one that needs the "
            f"parameter of cell {', '.join(waiting)} as it is. Call `backward()` first, or run the model "
            "under `torch.no_grad()` if there is nothing to learn."
        )


def _require_param(name: str, cell: Cell, param: str) -> None:
    if param not in cell.connection.references:
        owner = cell.connection.norm if cell.connection.norm is not None else cell.connection.layer
        remedy = (
            "Take a DelayedLinear or DelayedConv2d, or regulate the weight or the bias."
            if param == "delay"
            else "Build the layer with it, or take another param."
        )
        raise ArgumentError(
            f"`param` should be a parameter of the layer of cell {name!r}. Found `param = {param!r}`, and "
            f"{type(owner).__name__} has no such Parameter. {remedy}"
        )
