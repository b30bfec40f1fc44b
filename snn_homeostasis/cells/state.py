"""The settings of one registered cell, as they are now."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ArgumentError, is_number
from ..state import Code, TensorState
from ..updates import Finish, Slot
from .cell import Cell
from .plasticity import PLASTICITY_CODE, FallingPlasticity, Plasticity, checked_plasticity, natural_start
from .settings import MEANS, PARAMS, SUMS, BatchReduction, Settings, check_dt, check_reduction, checked_param
from .targets import TARGET_CODE, Target, check_target

__all__ = ["CHANGEABLE", "CellState"]

CHANGEABLE = ("plasticity", "target", "param", "batch_reduction", "dt", "population")

BUILD = "Build the layer with it, or take another param."
REMEDIES = {
    "weight": BUILD,
    "bias": BUILD,
    "delay": "Take a DelayedLinear or DelayedConv2d, or regulate the weight or the bias.",
    "threshold": "Regulate the weight or the bias.",
}

# a checkpoint holds these by their place
REDUCTIONS = ((), MEANS, SUMS)


def _write_reduction(reduction: BatchReduction) -> tuple[float]:
    return (max(place for place, same in enumerate(REDUCTIONS) if not place or reduction in same),)


def _read_reduction(numbers: Sequence[float], present: BatchReduction) -> BatchReduction:
    known = REDUCTIONS[int(numbers[0])]
    return known[0] if known else present


class CellState(TensorState):
    """The settings of one registered cell, in the units of `Settings`. They may change at any time.

    A checkpoint holds them, except a batch reduction of the user's own, which stays as it is.

    Attributes:
        slot: the slot that the rule writes to.
        param: the kind of the regulated parameter: "weight", "bias", "delay" or "threshold".
        batch_reduction: reduces each part of an update over the batch: ``fn(tensor, dim)``.
        dt: seconds per step, if targets and rates are in Hz.
        steps: the number of updates that the rule of this cell had a part in.
        contributed: whether it has added to a slot since the last of them.
        population: whether the mean over all neurons is held, in place of each of them.
        layers: how many layers with cells of their own drive the neuron.

    Raises:
        ArgumentError: for a value that cannot work, whenever it is set.
        UnsupportedLayerError: for a param that cannot change.
    """

    param: str
    slot: Slot
    dt: float | None
    state = ("target_tensor",)
    counters = ("steps", "contributed")
    codes: ClassVar = {
        "plasticity": PLASTICITY_CODE,
        "target": TARGET_CODE,
        "param": Code(lambda param: (PARAMS.index(param),), lambda numbers, present: PARAMS[int(numbers[0])]),
        "batch_reduction": Code(_write_reduction, _read_reduction),
        "dt": Code(lambda dt: (dt or 0.0,), lambda numbers, present: numbers[0] or None),
        "population": Code(lambda whole: (whole,), lambda numbers, present: bool(numbers[0])),
    }

    def __init__(self, name: str, cell: Cell, settings: Settings) -> None:
        super().__init__()
        self._name, self._cell = name, cell
        self.restart()
        self.layers = 1
        self.param = settings.param
        self.plasticity = settings.plasticity
        self.batch_reduction = settings.batch_reduction or torch.mean
        self.target = settings.target
        self.dt = settings.dt
        self.population = settings.population

    @property
    def plasticity(self) -> Plasticity:
        """λ, the change of the parameter per step at ``(r* - r) / r* = 1``: a number, or how it falls."""
        return self._plasticity

    @plasticity.setter
    def plasticity(self, plasticity: Plasticity) -> None:
        self._plasticity = checked_plasticity(plasticity)

    def __setattr__(self, name: str, value: Any) -> None:
        # in place of properties, whose getters every step would call several times for each cell
        if name == "param":
            self._set_param(value)
            return
        if name == "batch_reduction":
            check_reduction(value)
        if name == "dt":
            check_dt(value)
            value = None if value is None else float(value)
        super().__setattr__(name, value)

    def _set_param(self, param: str) -> None:
        param = checked_param(param)
        self.require_offered(param)
        own = vars(self)  # `slot` is not saved here, as a module would be
        own["param"], own["slot"] = param, self._cell.updater.slots[param]
        self._natural = natural_start(self._cell.connection, param)
        # a longer delay takes spikes apart; a threshold acts behind the layer, whatever its sign
        self._sign = {"delay": -self._cell.sign, "threshold": -1}.get(param, self._cell.sign)

    @property
    def target(self) -> Target | None:
        """The target rate r* in spikes per step, or in Hz with `dt`; None without one.

        A number, a tensor, a `Band`, or a function that draws a tensor once the neurons are known.
        """
        return self._target if self.target_tensor is None else self.target_tensor

    @target.setter
    def target(self, target: Target | None) -> None:
        if target is not None:
            check_target(target)
        self._target = float(target) if is_number(target) else target
        with torch.inference_mode(False):
            self.target_tensor = target.detach().clone() if isinstance(target, Tensor) else None

    @property
    def strength(self) -> float:
        """λ of the next step, with the sign by which this parameter of this layer raises the rate."""
        return self.next_step()[0]

    def next_step(self) -> tuple[float, Finish | None]:
        """Returns its strength, and what is done to an update once it is reduced over the batch."""
        plasticity = self._plasticity
        if not isinstance(plasticity, FallingPlasticity):
            return self._sign * plasticity, None
        size = plasticity.at(self.steps, self._natural) / self.layers
        return self._sign * size, Finish(plasticity.limit_at(self.steps) * size)

    def count_step(self) -> None:
        """Counts an update, if the rule had a part in it."""
        own = self.__dict__  # an attribute of a module takes longer to set
        own["steps"] += own["contributed"]
        own["contributed"] = 0

    def restart(self) -> None:
        """Counts from the first step again."""
        self.steps = self.contributed = 0

    def require_offered(self, param: str) -> None:
        """Raises ArgumentError unless the cell has a parameter of a kind, and it can change."""
        connection = self._cell.connection
        owner = connection.layer if connection.norm is None else connection.norm
        owner = self._cell.neuron.module if param == "threshold" else owner
        if param not in connection.references:
            raise ArgumentError(
                f"`param` should be a parameter of the layer of cell {self._name!r}. Found `param = "
                f"{param!r}`, and {type(owner).__name__} has no such Parameter. {REMEDIES[param]}"
            )
        self._cell.updater.slots[param].require_changeable()

    def extra_repr(self) -> str:
        return f"plasticity={self.plasticity}, target={self.target}, param={self.param!r}"
