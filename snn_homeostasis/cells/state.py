"""The settings of one registered cell, as they are now."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..state import Code, TensorState
from ..updates import Finish
from .cell import Cell
from .plasticity import PLASTICITY_CODE, FallingPlasticity, Plasticity, checked_plasticity, natural_start
from .settings import MEANS, PARAMS, SUMS, BatchReduction, Settings, check_reduction, checked_param
from .targets import TARGET_CODE, Target, check_target

__all__ = ["CellState"]

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
        steps: the number of updates that the rule of this cell had a part in.
        contributed: whether it has added to a slot since the last of them.
        layers: how many layers with cells of their own drive the neuron.

    Raises:
        ArgumentError: for a value that cannot work, whenever it is set.
        UnsupportedLayerError: for a param that cannot change.
    """

    state = ("target_tensor",)
    counters = ("steps", "contributed")
    codes: ClassVar = {
        "plasticity": PLASTICITY_CODE,
        "target": TARGET_CODE,
        "param": Code(lambda param: (PARAMS.index(param),), lambda numbers, present: PARAMS[int(numbers[0])]),
        "batch_reduction": Code(_write_reduction, _read_reduction),
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

    @property
    def plasticity(self) -> Plasticity:
        """λ, the change of the parameter per step at ``(r* - r) / r* = 1``: a number, or how it falls."""
        return self._plasticity

    @plasticity.setter
    def plasticity(self, plasticity: Plasticity) -> None:
        self._plasticity = checked_plasticity(plasticity)

    @property
    def param(self) -> str:
        """The kind of the regulated parameter: "weight", "bias" or "delay"."""
        return self._param

    @param.setter
    def param(self, param: str) -> None:
        param = checked_param(param)
        _require_param(self._name, self._cell, param)
        self._param = param
        self._natural = natural_start(self._cell.connection, param)
        # a longer delay takes spikes apart
        self._sign = -self._cell.sign if param == "delay" else self._cell.sign

    @property
    def batch_reduction(self) -> BatchReduction:
        """Reduces each part of an update over the batch: ``fn(tensor, dim)``."""
        return self._reduction

    @batch_reduction.setter
    def batch_reduction(self, reduction: BatchReduction) -> None:
        check_reduction(reduction)
        self._reduction = reduction

    @property
    def target(self) -> Target | None:
        """The target rate r* in spikes per step: a number, a tensor, or None."""
        return self._number if self.target_tensor is None else self.target_tensor

    @target.setter
    def target(self, target: Target | None) -> None:
        if target is not None:
            check_target(target)
        self._number = None if target is None or isinstance(target, Tensor) else float(target)
        with torch.inference_mode(False):
            self.target_tensor = target.detach().clone() if isinstance(target, Tensor) else None

    @property
    def step_size(self) -> float:
        """λ of the next step."""
        plasticity = self._plasticity
        if isinstance(plasticity, FallingPlasticity):
            return plasticity.at(self.steps, self._natural) / self.layers
        return plasticity

    @property
    def strength(self) -> float:
        """λ of the next step, with the sign by which this parameter of this layer raises the rate."""
        return self._sign * self.step_size

    @property
    def finish(self) -> Finish | None:
        """What is done to an update once it is reduced over the batch; None for nothing."""
        plasticity = self._plasticity
        if isinstance(plasticity, FallingPlasticity):
            return Finish(plasticity.limit * self.step_size)
        return None

    def count_step(self) -> None:
        """Counts an update, if the rule had a part in it."""
        own = vars(self)  # an attribute of a module takes longer to set
        own["steps"] += own["contributed"]
        own["contributed"] = 0

    def restart(self) -> None:
        """Counts from the first step again."""
        self.steps = self.contributed = 0

    def extra_repr(self) -> str:
        return f"plasticity={self.plasticity}, target={self.target}, param={self.param!r}"


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
    cell.updater.slots[param].require_changeable()
