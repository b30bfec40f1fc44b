"""Synaptic scaling: the multiplicative rule."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from ..cells import FALLING, BatchReduction, FallingPlasticity, Plasticity, Settings, Target
from ..distributed import AUTO, Group
from ..observe import RateEstimator, RecentRate
from ..updates import UpdateBounds
from .linear import LinearHomeostasis

__all__ = ["SynapticScaling"]

SHARE = 0.05  # of a weight, in the first step


class SynapticScaling(LinearHomeostasis):
    r"""Holds firing rates at a target by scaling all weights of a neuron.

    .. math:: w \leftarrow w + \lambda |w| \frac{r^* - r}{r^*}

    with w a weight, λ the plasticity, r* the target and r the observed rate. Excitation grows and
    inhibition shrinks where a neuron is too quiet. Weights keep their signs, zeros and pruned entries
    included: no update takes more than nine tenths of a weight. A neuron whose weights are all
    negative or zero cannot be woken.

    This is the synaptic scaling of Turrigiano et al. (1998), as in CARLsim (Carlson et al., 2013).

    Args:
        plasticity: λ, the share of a weight by which it changes per `step` at ``(r* - r) / r* = 1``;
            by default 5 %, falling as a `FallingPlasticity`.
        target: as in `LinearHomeostasis`, and so are all others.

    Raises:
        ArgumentError: for a value that cannot work.

    >>> import snntorch as snn, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
    >>> homeostasis = SynapticScaling(0.1, target=0.2).attach(net)
    >>> before, spikes = net[0].weight.clone(), net(torch.zeros(16, 4))  # silent
    >>> homeostasis.step()
    >>> torch.allclose(net[0].weight, before + 0.1 * before.abs())
    True
    """

    relative = True
    params: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(
        self,
        plasticity: Plasticity = FALLING,
        target: Target | None = None,
        batch_reduction: BatchReduction | None = None,
        *,
        rate: Callable[[], RateEstimator] = RecentRate,
        bounds: UpdateBounds | None = None,
        dt: float | None = None,
        population: bool = False,
        process_group: Group = AUTO,
    ) -> None:
        super().__init__(
            plasticity,
            target,
            "weight",
            batch_reduction,
            rate=rate,
            bounds=bounds,
            dt=dt,
            population=population,
            process_group=process_group,
        )

    def _overridden(self, overrides: dict[str, Any]) -> Settings:
        settings = super()._overridden(overrides)
        plasticity = settings.plasticity
        if isinstance(plasticity, FallingPlasticity) and plasticity.start is None:
            # what is natural for an additive rule depends on the fan-in; a share does not
            return replace(settings, plasticity=replace(plasticity, start=SHARE))
        return settings
