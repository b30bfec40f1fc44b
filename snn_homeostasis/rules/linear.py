"""The linear rule."""

from collections.abc import Callable

from ..cells import FALLING, BatchReduction, Plasticity, Rate, Settings, Target
from ..distributed import AUTO, Group
from ..homeostasis import Homeostasis
from ..observe import RateEstimator, RecentRate
from ..updates import UpdateBounds

__all__ = ["LinearHomeostasis"]


class LinearHomeostasis(Homeostasis):
    r"""Holds firing rates at a target by shifting weights, biases, delays or thresholds.

    .. math:: v \leftarrow v + \lambda \frac{r^* - r}{r^*}

    with v the parameter, λ the plasticity, r* the target and r the observed rate. The term is
    averaged over the positions that share a parameter, split into its positive and negative part,
    and each part is reduced over the batch. For delays and thresholds the sign of λ is reversed: a
    shorter delay brings spikes together, and a neuron with a lower threshold fires more.

    The rule is that of Nadafian and Ganjtabesh (2020), arXiv 2011.09380, as the `inferno` library has
    it (``inferno.learn.LinearHomeostasis``), with the library's faults mended. The idea is the
    synaptic scaling of Turrigiano et al. (1998).

    Args:
        plasticity: λ, the change of the parameter per `step` at ``(r* - r) / r* = 1``: a number, which
            is the plain rule, or by default a `FallingPlasticity`, which needs no tuning.
        target: r* in spikes per step, > 0: a number, a tensor that broadcasts to ``[B, *N]``, a `Band`,
            or a function ``fn(shape) -> tensor`` that draws one for each neuron of ``[*N]``. None if
            each cell or each call names its own.
        param: ``"weight"``, ``"bias"``, ``"delay"`` or ``"threshold"``, any case.
        batch_reduction: ``fn(tensor, dim)``, `torch.mean` by default.
        rate: is called once per cell and returns its `RateEstimator`, by default a `RecentRate`.
        bounds: of the regulated parameter: `PowerBounds`, `SharpBounds`, `ClampBounds`, or any
            callable ``(param, pos, neg) -> delta``.
        dt: seconds per step; with it targets, rates and reports are in Hz.
        population: hold the mean rate of all neurons of a cell, in place of each of them.
        process_group: of the processes that share the batch, by default the group of the wrapper
            around the model; see `Homeostasis`.

    Raises:
        ArgumentError: for a value that cannot work.

    >>> import snntorch as snn, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
    >>> homeostasis = LinearHomeostasis(plasticity=0.02, target=0.1, param="bias").attach(net)
    >>> for _ in range(200):
    ...     for _ in range(50):
    ...         spikes = net(torch.rand(16, 4))
    ...     homeostasis.step()
    >>> bool((homeostasis.rates()["1"] - 0.1).abs().mean() < 0.02)
    True
    """

    linear = True

    def __init__(
        self,
        plasticity: Plasticity = FALLING,
        target: Target | None = None,
        param: str = "weight",
        batch_reduction: BatchReduction | None = None,
        *,
        rate: Callable[[], RateEstimator] = RecentRate,
        bounds: UpdateBounds | None = None,
        dt: float | None = None,
        population: bool = False,
        process_group: Group = AUTO,
    ) -> None:
        settings = Settings(plasticity, target, param, batch_reduction, rate, bounds, dt, population)
        super().__init__(settings, process_group)

    def drive(self, rate: Rate, target: Rate) -> Rate:
        return (target - rate) / target
