"""Pictures: rates over the steps, and the rates of all neurons."""

from math import ceil
from typing import TYPE_CHECKING, Any

from ..cells import Band
from ..errors import HomeostasisError, require
from .history import RateHistory
from .reports import Reports

if TYPE_CHECKING:  # an extra, and slow to import
    from matplotlib.figure import Figure

__all__ = ["plot_rates", "plot_summary"]

# they differ in lightness and in form, so that they differ in grey, too
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SHARES = (
    ("silent", "silent [%]"),
    ("saturated", "saturated [%]"),
)
FORMS = ("-", (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def plot_rates(history: RateHistory) -> "Figure":
    """Draws the rate of each cell over the steps, and below it the silent and the saturated neurons.

    Grey lines are the targets, or the edges of bands. Needs matplotlib, the extra ``plots``.

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
    figure, axes = pyplot.subplots(
        1 + len(SHARES), sharex=True, figsize=(8, 7), height_ratios=(3, 1.4, 1.4), layout="constrained"
    )
    panels = [("rate", _rate_in(history.homeostasis)), *SHARES]
    for panel, (metric, label) in zip(axes, panels, strict=True):
        scale = 1.0 if metric == "rate" else 100.0
        for i, name in enumerate(names):
            values = [scale * value for value in columns[f"{name}/{metric}"]]
            form = {"color": COLOURS[i % len(COLOURS)], "linestyle": FORMS[i % len(FORMS)]}
            panel.plot(columns["step"], values, label=name, **form)
        panel.set_ylabel(label)
    rates, *shares = axes
    for target in _targets(history.homeostasis, names):
        rates.axhline(target, color="0.5", linewidth=0.8, zorder=0)
    rates.set_ylim(bottom=0)
    for panel in shares:
        panel.set_ylim(-4, 104)
    shares[-1].set_xlabel("step of the homeostasis")
    figure.legend(*rates.get_legend_handles_labels(), loc="outside right upper", title="cell")
    return figure


def plot_summary(homeostasis: Reports) -> "Figure":
    """Draws a histogram of the rates of all neurons for each cell.

    Vertical lines are the targets, or the edges of bands. Needs matplotlib, the extra ``plots``.

    Raises:
        HomeostasisError: without matplotlib.
        NoSpikesError: if a cell was never observed.

    >>> import snntorch as snn, torch
    >>> from snn_homeostasis import LinearHomeostasis, plot_summary
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
    >>> homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
    >>> spikes = net(torch.rand(16, 4))
    >>> figure = plot_summary(homeostasis)
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
    edge = 1.05 * max([rate.max().item() for rate in rates.values()] + _targets(homeostasis, list(rates)))
    for axes, (name, rate) in zip(grid.flat, rates.items(), strict=False):
        axes.hist(rate.flatten().cpu().numpy(), bins=40, range=(0, edge), color="0.6", edgecolor="0.3")
        for target in _targets(homeostasis, [name]):
            axes.axvline(target, color="#d55e00", linestyle="--")
        axes.set(title=name, xlabel=_rate_in(homeostasis), ylabel="neurons", xlim=(0, edge))
    return figure


def _targets(homeostasis: Reports, names: list[str]) -> list[float]:
    """Returns the numbers among the targets of some cells, and the edges of bands, each once."""
    targets = (homeostasis.units[name].state.target for name in names)
    edges = ((target.low, target.high) if isinstance(target, Band) else (target,) for target in targets)
    return sorted({edge for each in edges for edge in each if isinstance(edge, float)})


def _rate_in(homeostasis: Reports) -> str:
    is_in_hz = any(unit.state.dt is not None for unit in homeostasis.units.values())
    return f"rate [{'Hz' if is_in_hz else 'spikes per step'}]"


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as pyplot
    except ModuleNotFoundError:
        raise HomeostasisError(
            "matplotlib should be installed to draw. Found none. Call "
            "`pip install 'snn-homeostasis[plots]'`, or draw `history.to_dict()` yourself."
        ) from None
    return pyplot
