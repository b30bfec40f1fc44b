"""The guard of a cell: a push that its rate does not answer is said once, and held."""

import math
import operator
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import warn
from ..layers import Connection, is_distributed
from ..state import TensorState
from ..updates import Contribution, Slot
from .cell import Cell
from .state import CellState

__all__ = ["Guard"]

SHORTEST, LONGEST = 20, 200  # steps of the cell between two looks; a look takes as long as a few steps
GAIN = 1 / 8  # of one look in the means over several: a rate of few samples is noisy
ANSWERS, FREES = 0.1, 0.25  # how much of the rate has to change; less may be noise
NEAR = 0.05  # of the plasticity; a row that is pushed less is at its target
FAR = 10.0  # a threshold that is further is out of reach, unless the input is as large


class Push(NamedTuple):
    """The push of each row of a parameter, as it was when it began."""

    direction: Tensor  # -1, 0 or 1
    value: Tensor  # mean of the row
    rate: Tensor  # of its neurons
    reach: Tensor  # how far is too far


class Guard(TensorState):
    r"""Holds the rows of a parameter that are pushed too far while their rate does not answer.

    A push begins when its direction changes or the rate answers. It goes too far once

    .. math:: |p - p_0| > \frac{\min(\theta, 10) + |b| + |\sum_j w_j| + \lVert w \rVert + |u|}{\sqrt n}

    with p the mean of the row and p₀ where it began; θ, b, w and u are the threshold, the bias, the
    weights and the membrane of the neuron then, and n is the number of entries in the row. The
    numerator is about the input when everything is on: a bias that moves so far fires any neuron that
    can fire. 1/√n is the size of a healthy weight.

    Attributes:
        blocked: the direction in which each row was pushed, 0 where it is free; None if all are free.
        level: the rate of each row when it was held; None if all are free.
    """

    state = ("blocked", "level")  # a push that is not held yet begins again after a checkpoint

    def __init__(self, name: str, cell: Cell, settings: CellState) -> None:
        super().__init__()
        self.name, self.cell, self.settings = name, cell, settings
        self.reset()

    def reset(self) -> None:
        """Frees all rows; each push begins again."""
        self.blocked: Tensor | None = None
        self.level: Tensor | None = None
        self.warned = False
        self._push: Push | None = None
        self._means: tuple[Tensor, Tensor] | None = None  # of the rate and of the change
        self._aim: tuple[object, ...] = ()
        self._moved: Tensor | float = 0.0
        self._observed: Callable[[], Tensor | None] = _nothing
        self._left = self._wait = 1

    def clear(self) -> None:
        """Frees what is held. Other pushes go on, since a loop may clear before each sequence."""
        if self.blocked is not None:
            self.reset()

    def hold(self, each: Contribution) -> Contribution:
        """Takes what is held out of a contribution of the rule; something has to be held."""
        assert self.blocked is not None
        held = self.blocked != 0
        neg = None if each.neg is None else torch.where(held, 0.0, each.neg)
        return each._replace(pos=torch.where(held, 0.0, each.pos), neg=neg)

    def is_due(self) -> bool:
        """Counts a step of the cell; true if `look` should see it."""
        self.__dict__["_left"] = left = self._left - 1  # an attribute of a module takes longer to set
        return left <= 0

    def look(self, rate: Tensor, is_alone: bool) -> None:
        """Compares the push with its answer, while the contributions of the step wait.

        Args:
            rate: ``[*N]``, the same in all processes that train the model, so that they hold alike.
            is_alone: whether one process trains it. Membranes differ between processes.
        """
        settings, slot = self.settings, self.settings.slot
        was_held = self.blocked is not None
        aim = (settings.param, settings.target, settings.strength > 0)
        if self._push is not None and any(map(operator.is_not, aim, self._aim)):
            self.reset()
        observed = self.cell.neuron.observed
        if is_alone and observed is self._observed():
            self._push = self._means = None  # the rate of an old observation cannot answer
        self._observed = _nothing if observed is None else weakref.ref(observed)
        self._aim, left = aim, LONGEST
        if not _has_limits(slot):  # with them it cannot run away
            left = self._compare(slot, rate.to(slot.reference.leaf.device), is_alone)
        is_held = was_held or self.blocked is not None
        self._left = self._wait = SHORTEST if is_held else max(left, SHORTEST)
        self._warn_once()

    def _warn_once(self) -> None:
        if self.blocked is None or self.warned:
            return
        self.warned = True
        rows, of = int((self.blocked != 0).sum()), self.blocked.numel()
        warn(
            f"The {self.settings.param} of cell {self.name!r} was pushed far, and its rate did not answer "
            f"(so far in {rows} of {of} rows). It is held there until the rate answers, or until `clear()`. "
            "The threshold may be out of reach, the input silent or negative, or a norm may undo the change. "
            "Regulate another parameter, lower the threshold, or leave the cell out with `exclude=`."
        )

    def _compare(self, slot: Slot, rate: Tensor, is_alone: bool) -> int:
        """Notes which rows are held from now on; returns after how many steps to look again."""
        now, change = self._now(slot, rate, is_alone)
        then, held = self._push or now, torch.zeros_like(now.rate, dtype=torch.bool)
        if self.blocked is not None and self.level is not None:
            held = self.blocked != 0
            then = then._replace(
                direction=torch.where(held, self.blocked, then.direction),
                rate=torch.where(held, self.level, then.rate),
            )
        rising = then.direction if self.settings.strength > 0 else -then.direction
        answers = rising * (now.rate - then.rate) > torch.where(held, FREES, ANSWERS) * then.rate
        goes_on = (held | (now.direction == then.direction)) & ~answers
        too_far = then.direction * (now.value - then.value) > then.reach
        then = then._replace(rate=torch.where(too_far & ~held, now.rate, then.rate))
        held = goes_on & (held | too_far)
        # at most twice as far as before: it may be the push itself that has made the input large
        now = now._replace(reach=torch.minimum(now.reach, 2 * then.reach))
        self._push = push = Push(*(torch.where(goes_on, *pair) for pair in zip(then, now, strict=True)))
        self.blocked, self.level = (held * push.direction, push.rate) if held.any() else (None, None)
        # long before a push at this pace goes too far, or one that begins soon
        speed = change.abs().clamp_min(abs(self.settings.strength) / 4)
        return int(min(LONGEST, (push.reach / speed).amin().item() / 2))

    def _now(self, slot: Slot, rate: Tensor, is_alone: bool) -> tuple[Push, Tensor]:
        """Returns a push that begins now, and the change that this step makes, for each row."""
        param, connection, pos, neg = slot.reference.tensor.detach(), self.cell.connection, slot.pos, slot.neg
        assert pos is not None  # something waits in the slot
        rates = connection.shaped_for(self.settings.param, _rows_of(connection, rate))
        entries = param.numel() // rates.numel()
        change = pos if neg is None else pos - neg
        if change.shape != rates.shape:
            change = change.expand(param.shape).sum_to_size(rates.shape) / entries
        if is_distributed(param):  # a process holds a piece of it, and knows what all of it should do
            self._moved = value = self._moved + change * self._wait
        else:
            value = param.float().sum_to_size(rates.shape) / entries
        means = self._means or (rates, change)
        rates, change = self._means = means[0].lerp(rates, GAIN), means[1].lerp(change, GAIN)
        near = change.abs() <= NEAR * abs(self.settings.strength)
        size = connection.shaped_for(self.settings.param, self._input_size(rate, is_alone))
        return Push(change.sign().masked_fill(near, 0.0), value, rates, size / math.sqrt(entries)), change

    def _input_size(self, rate: Tensor, is_alone: bool) -> Tensor:
        """Returns about how large the input of each neuron can get, laid out against the weight."""
        connection, hook = self.cell.connection, self.cell.neuron
        threshold = torch.as_tensor(getattr(hook.module, "threshold", 1.0)).detach().abs().clamp_max(FAR)
        size = _rows_of(connection, (torch.zeros_like(rate)[None] + threshold.to(rate))[0])
        membrane = hook.membranes.last if is_alone else None
        if membrane is not None and membrane.shape[1:] == rate.shape:
            size = size + _rows_of(connection, membrane.abs().mean(0))
        weight, bias = (self._values_of(kind) for kind in ("weight", "bias"))
        if weight is not None and not is_distributed(weight):
            dims = [dim for dim, entries in enumerate(size.shape) if entries < weight.shape[dim]]
            sums = weight.sum_to_size(size.shape).abs()
            norms = torch.linalg.vector_norm(weight, dim=dims, keepdim=True) if dims else sums
            size = size + sums + norms
        if bias is not None and not is_distributed(bias) and bias.numel() == size.numel():
            size = size + bias.detach().abs().reshape(size.shape)
        return size

    def _values_of(self, kind: str) -> Tensor | None:
        reference = self.cell.connection.references.get(kind)
        return None if reference is None else reference.values


def _has_limits(slot: Slot) -> bool:
    limits = (getattr(slot.bounds, "min", None), getattr(slot.bounds, "max", None))
    return slot.limits is not None or None not in limits


def _nothing() -> None:
    """Stands for an observation that is not there yet."""


def _rows_of(connection: Connection, x: Tensor) -> Tensor:
    """Lays data ``[*N]`` out against the weight, as the mean over the positions that share a row."""
    rows: Tensor = connection.postsyn_receptive(x.unsqueeze(0)).mean((0, -1))
    return rows
