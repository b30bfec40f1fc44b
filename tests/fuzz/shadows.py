"""What one registered cell should hold, in plain loops."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import torch
from oracle import Estimate, Oracle, as_array
from torch import Tensor

from fuzz import settings
from fuzz.settings import Pair
from fuzz.subjects import MAX_DELAY, Subject

EPS = 2.0**-24  # what one operation in float32 may round, of the size of its result


@dataclass
class Shadow:
    """The settings of a cell, its estimate, and what waits in its slot.

    Attributes:
        number: of the neuron among those that the layer drives.
        sign: -1 if the layer counts as one that inhibits.
        pos: what waits to raise the parameter, or None.
        neg: what waits to lower it.
        slack: how far rounding may take either away.
    """

    subject: Subject
    number: int
    sign: int
    kind: str
    bounds: Pair
    estimator: Pair
    reduction: Pair
    plasticity: float
    target: float | Tensor
    estimate: Estimate = field(init=False)
    pos: Any = None
    neg: Any = None
    slack: float = 0.0

    def __post_init__(self) -> None:
        self.forget()

    @property
    def module(self) -> torch.nn.Module:
        return self.subject.neurons[self.number]

    @property
    def parameter(self) -> Tensor:
        return self.subject.parameter(self.kind)

    @property
    def overrides(self) -> dict[str, Any]:
        """The arguments with which a cell is registered."""
        return {
            "plasticity": self.plasticity,
            "target": self.target,
            "param": self.kind.upper(),
            "batch_reduction": self.reduction.real,
            "rate": self.estimator.real,
            "bounds": self.bounds.real,
        }

    @property
    def rounding(self) -> float:
        """How far off a rate may be: every step rounds the total once, and the division rounds it."""
        return (self.estimate.steps + 4) * EPS

    def add(self, target: float | Tensor | None) -> None:
        """Applies the rule, with the target of a call or the own one."""
        target, rate = as_array(self.target if target is None else target), self.estimate.rate
        plasticity = self.plasticity * (-self.sign if self.kind == "delay" else self.sign)
        options = {"plasticity": plasticity, "reduce": self.reduction.plain}
        pos, neg = Oracle(self.subject, self.kind, self.parameter.shape, **options).parts(rate, target)
        # λ (r* - r) / r* is off by what the rate is off, and by some roundings of its two terms
        samples = len(rate) if self.reduction.text in ("sum", "norm") else 1
        largest = samples * abs(plasticity) * (1 + 1 / np.min(target))
        self.slack += largest * (self.rounding + 8 * EPS)
        self.pos = pos if self.pos is None else self.pos + pos
        self.neg = neg if self.neg is None else self.neg + neg

    def empty(self) -> None:
        self.pos, self.neg, self.slack = None, None, 0.0

    def forget(self) -> None:
        self.estimate = self.estimator.plain()
        self.empty()

    def retune(self, draw: Random) -> str:
        """Changes one setting; returns its name in ``unit.state``."""
        name = draw.choice(["plasticity", "target", "batch_reduction"])
        if name == "plasticity":
            self.plasticity = settings.plasticity(draw)
        elif name == "target":
            self.target = settings.target(draw, self.subject.shape)
        else:
            self.reduction = draw.choice([each for each in settings.REDUCTIONS if each.real])
        return name

    def saved(self) -> Shadow:
        """What a checkpoint holds of it."""
        twin = copy.copy(self)
        twin.estimate = copy.copy(self.estimate)
        twin.estimate.frames = self.estimate.frames.copy()
        return twin

    def load(self, saved: Shadow) -> None:
        """Takes all from a checkpoint, except a batch reduction of the user's own."""
        own = self.reduction
        vars(self).update(vars(saved.saved()))
        if saved.reduction.text not in settings.SAVED_REDUCTIONS:
            self.reduction = own

    def __str__(self) -> str:
        target = self.target if isinstance(self.target, float) else list(self.target.shape)
        return (
            f"{self.kind} of {self.subject.text}: sign {self.sign}, λ {self.plasticity}, target {target}, "
            f"{self.estimator.text}, {self.reduction.text}, bounds {self.bounds.text}"
        )


def shadows_of(draw: Random, each: Subject) -> list[Shadow]:
    """Regulates one or two parameters of a layer, for each neuron that it drives."""
    shadows, signs = [], [draw.choice([1, 1, -1]) for _ in each.neurons]
    for kind in draw.sample(list(each.drivers), draw.randint(1, min(2, len(each.drivers)))):
        bounds = settings.bounds(draw, kind)  # one for all that share the parameter
        for number in range(len(each.neurons)):
            own = settings.estimator(draw), draw.choice(settings.REDUCTIONS), settings.plasticity(draw)
            target = settings.target(draw, each.shape)
            shadows.append(Shadow(each, number, signs[number], kind, bounds, *own, target))
    return shadows


def changed(shadows: Sequence[Shadow], old: np.ndarray) -> tuple[np.ndarray, float]:
    """What the sum of some slots makes of one parameter, and how far rounding may take it away."""
    first, delta = shadows[0], shadows[0].bounds.plain
    pos, neg = sum(each.pos for each in shadows), sum(each.neg for each in shadows)
    new = old + delta(old, pos, neg)
    if first.kind == "delay":
        new = np.clip(new, 0, MAX_DELAY)
    # a bound stretches what the parts are off; a power takes some dozen roundings; the sum takes one
    stretch = max(1.0, *(np.abs(delta(old, *unit)).max() for unit in ((1.0, 0.0), (0.0, 1.0))))
    sides = np.abs(delta(old, pos, 0 * neg)).max() + np.abs(delta(old, 0 * pos, neg)).max()
    added = np.abs(old).max() + np.abs(new).max()
    return new, stretch * sum(each.slack for each in shadows) + EPS * (32 * sides + added)
