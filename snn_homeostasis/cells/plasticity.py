"""Plasticities: λ, how far a parameter moves in one step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import is_number, require
from ..layers import Connection
from ..state import Code

__all__ = [
    "FALLING",
    "PLASTICITY_CODE",
    "FallingPlasticity",
    "Plasticity",
    "checked_plasticity",
    "natural_start",
]

BIAS_START = 0.05
THRESHOLD_START = 0.5  # how far a constant input of 0.05 takes a membrane that decays by 0.9
FIRST_LIMIT, LAST_LIMIT = 10.0, 1.0
TYPICAL_RATE = 0.1  # of the inputs of a neuron, in spikes per step

REMEDY = (
    "Start with `LinearHomeostasis(target=0.1, param='bias').attach(model)`. To freeze, call `eval()`; for a "
    "layer that inhibits, build the cell with `sign=-1`, as `attach` does."
)


@dataclass(frozen=True)
class FallingPlasticity:
    r"""A λ that falls with each step: large enough to wake a silent net, small enough to let it learn.

    .. math:: \lambda_n = \frac{\text{start}}{1 + n / \text{half}}

    with n the number of steps that a cell has made; `clear` starts again with n = 0. The sum over
    all steps has no limit (Robbins and Monro, 1951), but it is 11 times the start over the first
    hundred: what is further from its target is for `calibrate`.

    The term of the rule, after the batch reduction, is limited to ±``limit``: by default to 10 in
    the first step, from where it falls as λ does, down to 1. A neuron that fires at every step asks
    for 1 - 1 / r*, and its bias, if that makes it fire, has to fall by 0.9: that takes 70 steps, and a
    thousand if the limit is always 1. One of 10 to the end takes accuracy where the optimizer wants
    much higher rates than the target: 10 and 3 points on a recurrent net at 0.05.

    The cells of several layers that drive one neuron share its step.

    Args:
        start: λ of the first step. By default 0.05 for a bias: with ``beta=0.9``, as much input takes
            a silent `Leaky` half way to a threshold of 1. Others move a neuron as far: 0.5 for a
            threshold, and 0.5 / fan-in for a weight; for a delay, a twentieth of its range.
        half: after how many steps λ has fallen to one half; ``math.inf`` for a constant λ.
        limit: the largest size of the term ``(r* - r) / r*``, the same in all steps; ``math.inf`` for
            no limit. By default 10 / (1 + n / half), and at least 1.

    Raises:
        ArgumentError: for a value that is not a number > 0, or a start that is not finite.

    >>> FallingPlasticity(0.06, half=3).at(3)
    0.03
    """

    start: float | None = None
    half: float = 3
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.start is not None:
            works = is_number(self.start) and 0 < self.start < math.inf
            require(works, "start", "be a finite number > 0, or None", self.start, REMEDY)
        has_half, has_limit = (is_number(each) and each > 0 for each in (self.half, self.limit))
        require(has_half, "half", "be a number > 0", self.half, "Take 3, or `math.inf` for a constant λ.")
        remedy = "Leave it out, or take `math.inf` for no limit."
        require(self.limit is None or has_limit, "limit", "be a number > 0, or None", self.limit, remedy)

    def at(self, step: int, natural: float = BIAS_START) -> float:
        """Returns λ of a step, counted from 0; ``natural`` stands for a start of None."""
        return (natural if self.start is None else self.start) / (1.0 + step / self.half)

    def limit_at(self, step: int) -> float:
        """Returns the limit of the term in a step, counted from 0."""
        return max(LAST_LIMIT, FIRST_LIMIT / (1.0 + step / self.half)) if self.limit is None else self.limit


Plasticity = float | FallingPlasticity

FALLING = FallingPlasticity()


def natural_start(connection: Connection, param: str) -> float:
    """Returns the λ that moves a neuron as far as 0.05 of a bias does.

    A change of all weights of a neuron moves its input by the change times the sum of its inputs,
    which is taken as fan-in times a rate of 0.1. A threshold comes half way to a resting membrane. Both
    were tried on digits, target 0.1: from silence, six dense layers are within 15 % after about 90
    steps by weights, and after about 60 by thresholds; by biases, within 10 % after 12.
    """
    if param == "threshold":
        return THRESHOLD_START
    if param == "weight":
        return BIAS_START / (TYPICAL_RATE * max(1, connection.fan_in))
    if param == "delay":
        return BIAS_START * connection.limits["delay"][1]  # of the whole range
    return BIAS_START


def checked_plasticity(plasticity: object) -> Plasticity:
    """Returns a plasticity; raises ArgumentError for what is none."""
    if isinstance(plasticity, FallingPlasticity):
        return plasticity
    works = is_number(plasticity) and 0 < plasticity < math.inf
    require(works, "plasticity", "be a finite number > 0, or a FallingPlasticity", plasticity, REMEDY)
    assert is_number(plasticity)
    return float(plasticity)


def _write(plasticity: Plasticity) -> tuple[float, float, float, bool]:
    """Writes start and limit (0 for None), half, and whether λ falls."""
    if isinstance(plasticity, FallingPlasticity):
        return (plasticity.start or 0.0, plasticity.half, plasticity.limit or 0.0, True)
    return (plasticity, math.inf, math.inf, False)


def _read(numbers: Sequence[float], present: Plasticity) -> Plasticity:
    start, half, limit, falls = numbers
    return FallingPlasticity(start or None, half, limit or None) if falls else start


PLASTICITY_CODE = Code(_write, _read)
