"""A registered cell, with the state that the rule keeps for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .bounds import UpdateBounds
from .cells import Cell
from .checks import require, warn
from .errors import ArgumentError, NoSpikesError
from .joint import JointRate, Share
from .neurons import is_inhibited
from .rates import RateEstimator
from .settings import BatchReduction, CellState, Settings, Target, fit_target
from .updates import Parts, Slot

__all__ = ["Unit", "is_sum", "set_bounds"]

SUMS = ((torch.mean, False), (Tensor.mean, False), (torch.sum, True), (Tensor.sum, True))


class Unit(nn.Module):
    """A registered cell with all that belongs to it.

    Attributes:
        name: as registered.
        cell: the `Cell`.
        state: plasticity, target, param, batch_reduction.
        rate: the estimator of this cell alone.
        slot: the updater slot that the rule writes to.
        joint: the rate over the samples of all processes, where there are several.

    Raises:
        ArgumentError: if the layer lacks the param.
    """

    state: CellState
    rate: RateEstimator
    slot: Slot

    def __init__(self, name: str, cell: Cell, settings: Settings) -> None:
        super().__init__()
        _require_param(name, cell, settings.param)
        self.name = name
        self.cell = cell
        self.state = CellState(settings)
        self.rate = settings.rate()
        self.joint = JointRate()
        self.slot = cell.updater.slots[settings.param]
        set_bounds(self.slot, settings.bounds)
        self._warn()

    @property
    def active(self) -> bool:
        """Whether neither the model nor the homeostasis is frozen by eval mode."""
        return self.training and self.cell.training

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

    def observe(self, spikes: Tensor) -> None:
        """Takes in spikes ``[T, B, *N]`` unless the homeostasis is frozen."""
        if self.training:
            self.rate.update(spikes)

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
        if not self.rate.steps:
            raise NoSpikesError(
                f"cell {self.name!r} should have been observed before its rate is used. Found no spikes "
                f"of {type(self.cell.neuron.module).__name__}: {self._why_unobserved()}."
            )
        return self.rate.rate

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
        if tap.frozen_calls:
            return f"it ran {tap.frozen_calls} times in eval mode; call `.train()` on the model"
        if tap.calls:
            return "since it ran, the estimate was cleared or the homeostasis was in eval mode"
        return (
            "it was not called; if the model did run, it may call `neuron.forward(...)` in place of "
            "`neuron(...)`, or was compiled before `attach`"
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


def is_sum(reduction: BatchReduction) -> bool:
    """Whether a batch reduction is the sum; otherwise it is the mean.

    Raises:
        ArgumentError: if it is neither, since parts of it cannot be put together.
    """
    summed = next((summed for known, summed in SUMS if known is reduction), None)
    require(
        summed is not None,
        "batch_reduction",
        "be `torch.mean` or `torch.sum` where several processes share the batch",
        None,
        "No other can be put together from what each process knows.",
        show=f"`batch_reduction = {getattr(reduction, '__name__', reduction)}`",
    )
    return bool(summed)


def set_bounds(slot: Slot, bounds: UpdateBounds | None) -> None:
    """Gives a slot its bounds; None leaves it as it is.

    Raises:
        ArgumentError: if another cell that shares the parameter has set other ones.
    """
    require(
        bounds is None or slot.bounds in (None, bounds),
        "bounds",
        "be the same wherever one parameter is regulated",
        bounds,
        f"It has {slot.bounds} already.",
    )
    if bounds is not None:
        slot.bounds = bounds


def _require_param(name: str, cell: Cell, param: str) -> None:
    if param not in cell.connection.references:
        owner = cell.connection.norm if cell.connection.norm is not None else cell.connection.layer
        remedy = (
            "Only layers with delays have one; regulate the weight or the bias."
            if param == "delay"
            else "Build the layer with it, or take another param."
        )
        raise ArgumentError(
            f"`param` should be a parameter of the layer of cell {name!r}. Found `param = {param!r}`, and "
            f"{type(owner).__name__} has no such Parameter. {remedy}"
        )
