"""Pictures: rates over the steps, and the rates of all neurons."""

from math import ceil
from typing import TYPE_CHECKING, Any

from ..errors import HomeostasisError, require
from .history import RateHistory
from .reports import Reports

if TYPE_CHECKING:  # an extra, and slow to import
    from matplotlib.figure import Figure

__all__ = ["plot_rates", "plot_summary"]

# they differ in lightness and in form, so that they differ in grey, too
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
FORMS = ("-", (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def plot_rates(history: RateHistory) -> "Figure":
    """Draws the rate of each cell over the steps, and below it the silent and saturated neurons.

    Thin lines are the targets. Needs matplotlib, the extra ``plots``.

    Raises:
        HomeostasisError: without matplotlib.
        ArgumentError: if nothing is recorded yet.

    >>> import snntorch as snn, torch
    >>> from snn_homeostasis import LinearHomeostasis, RateHistory, plot_rates
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
    >>> homeostasis = LinearHomeostasis(0.05, target=0.1, param="bias").attach(net)
    >>> history = RateHistory(homeostasis)
    >>> for _ in range(3):
    ...     spikes = net(torch.zeros(16, 4))
    ...     homeostasis.step()
    >>> figure = plot_rates(history)
    """
    columns = history.to_dict()
    names = [name for name in history.homeostasis.units if f"{name}/rate" in columns]
    require(bool(names), "history", "hold a record", None, "Call `step()` first.", show="none")
    pyplot = _pyplot()
    figure: Figure
    figure, (above, below) = pyplot.subplots(
        2, sharex=True, figsize=(8, 6), height_ratios=(3, 2), layout="constrained"
    )
    for i, name in enumerate(names):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "linestyle": FORMS[i % len(FORMS)]}
        above.plot(columns["step"], columns[f"{name}/rate"], label=name, **style)
        below.plot(columns["step"], _percent(columns[f"{name}/silent"]), **style)
        below.plot(
            columns["step"], _percent(columns[f"{name}/saturated"]), **style, marker="^", markevery=0.1
        )
    for target in _targets(history.homeostasis, names):
        above.axhline(target, color="0.6", linewidth=0.8, zorder=0)
    above.set(ylabel="rate [spikes per step]", ylim=(0, None))
    below.set(xlabel="step of the homeostasis", ylabel="neurons [%]", ylim=(-3, 103))
    below.set_title("silent, and with triangles saturated neurons", fontsize="medium", loc="left")
    figure.legend(loc="outside right upper", title="cell")
    return figure


def plot_summary(homeostasis: Reports) -> "Figure":
    """Draws a histogram of the rates of all neurons for each cell; vertical lines are the targets.

    Needs matplotlib, the extra ``plots``.

    Raises:
        HomeostasisError: without matplotlib.
        NoSpikesError: if a cell was never observed.
    """
    rates = homeostasis.rates()
    require(bool(rates), "homeostasis", "have cells", None, "Call `attach(model)` first.", show="none")
    pyplot = _pyplot()
    columns = min(3, len(rates))
    rows = ceil(len(rates) / columns)
    figure: Figure
    figure, grid = pyplot.subplots(
        rows, columns, squeeze=False, figsize=(3.2 * columns, 2.4 * rows), layout="constrained"
    )
    for axes in grid.flat[len(rates) :]:
        axes.set_visible(False)
    for axes, (name, rate) in zip(grid.flat, rates.items(), strict=False):
        axes.hist(rate.flatten().cpu().numpy(), bins=30, color="0.6", edgecolor="0.3", linewidth=0.5)
        for target in _targets(homeostasis, [name]):
            axes.axvline(target, color="#d55e00", linestyle="--")
        axes.set(title=name, xlabel="rate [spikes per step]", ylabel="neurons", xlim=(0, None))
    return figure


def _targets(homeostasis: Reports, names: list[str]) -> list[float]:
    """Returns the numbers among the targets of some cells, each once."""
    targets = (homeostasis.units[name].state.target for name in names)
    return sorted({target for target in targets if isinstance(target, float)})


def _percent(shares: list[float]) -> list[float]:
    return [100 * share for share in shares]


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as pyplot
    except ModuleNotFoundError:
        raise HomeostasisError(
            "matplotlib should be installed to draw. Found none. Call "
            "`pip install 'snn-homeostasis[plots]'`, or draw `history.to_dict()` yourself."
        ) from None
    return pyplot
