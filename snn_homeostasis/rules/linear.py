"""The rules: one short class each.

A rule turns a cell, its rate and its target into the two parts of an update. To write your
own, subclass `Homeostasis` and define `parts`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..cells.cell import Cell
from ..cells.settings import BatchReduction, CellState, Settings, Target
from ..distributed.groups import AUTO, Group
from ..homeostasis import Homeostasis
from ..observe.estimator import RateEstimator
from ..observe.rates import CumulativeRate
from ..updates.bounds import UpdateBounds

__all__ = ["LinearHomeostasis"]


class LinearHomeostasis(Homeostasis):
    r"""Holds firing rates at a target by shifting weights, biases or delays.

    .. math:: v \leftarrow v + \lambda \frac{r^* - r}{r^*}

    with λ the plasticity, r* the target and r the observed rate. The term is averaged over
    the positions that share a parameter, split into its positive and negative parts, and
    each part is reduced over the batch. For delays the sign of λ is reversed: a shorter
    delay brings spikes together.

    The rule of the `inferno` library (``inferno.learn.LinearHomeostasis``), after the
    synaptic scaling of Turrigiano et al. (1998), with its faults mended.

    Args:
        plasticity: λ, the change of the parameter per `step` at ``(r* - r) / r* = 1``.
        target: r* in spikes per step, > 0: a number, or a tensor that broadcasts to
            ``[B, *N]``. None if each cell or each call names its own.
        param: ``"weight"``, ``"bias"`` or ``"delay"``, any case.
        batch_reduction: ``fn(tensor, dim)``, `torch.mean` by default.
        rate: called once per cell, returns its `RateEstimator`.
        bounds: of the regulated parameter; see `snn_homeostasis.bounds`.
        process_group: of the processes that share the batch, by default that of the wrapper
            the model is under; see `Homeostasis`.

    Raises:
        ArgumentError: for a value that cannot work.

    >>> import snntorch as snn, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
    >>> homeostasis = LinearHomeostasis(plasticity=0.02, target=0.1, param="bias").attach(net)
    >>> for _ in range(300):
    ...     homeostasis.clear()
    ...     for _ in range(50):
    ...         spikes = net(torch.rand(16, 4))
    ...     homeostasis.step()
    >>> bool((homeostasis.rates()["1"] - 0.1).abs().max() < 0.02)
    True
    """

    def __init__(
        self,
        plasticity: float,
        target: Target | None = None,
        param: str = "weight",
        batch_reduction: BatchReduction | None = None,
        *,
        rate: Callable[[], RateEstimator] = CumulativeRate,
        bounds: UpdateBounds | None = None,
        process_group: Group = AUTO,
    ) -> None:
        super().__init__(Settings(plasticity, target, param, batch_reduction, rate, bounds), process_group)

    def parts(self, cell: Cell, state: CellState, rate: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        strength = _strength(state)
        k = cell.connection.postsyn_receptive((target - rate) / target).mean(-1) * strength
        pos = state.batch_reduction(k.clamp_min(0.0), 0)
        neg = state.batch_reduction(k.clamp_max(0.0), 0)
        return cell.connection.like(state.param, pos), cell.connection.like(state.param, neg)

    def affine(self, state: CellState, target: Target) -> tuple[float, Target] | None:
        strength = _strength(state)
        return (strength, -strength / target) if state.batch_reduction is torch.mean else None


def _strength(state: CellState) -> float:
    return -state.plasticity if state.param == "delay" else state.plasticity
