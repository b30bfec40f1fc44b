"""A summary: one row for each cell."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from ..cells import Band, Target, Unit
from .activity import Activity
from .table import Table

__all__ = ["pairs_of", "summary_of"]

FIGURES = ("target", "rate", "error", "silent", "saturated", "λ", "steps")
HEADS = (
    "cell",
    "layer → neuron",
    "param",
    " target",
    " rate",
    " error",
    " silent",
    " saturated",
    " λ",
    " steps",
)
NOTHING = "–"


def summary_of(units: Iterable[Unit], seen: Mapping[str, Activity]) -> Table:
    """Makes the table of some cells, with what is known of their activity."""
    return Table(HEADS, tuple(_row(unit, seen.get(unit.name)) for unit in units))


def pairs_of(units: Iterable[Unit]) -> str:
    """Says which layer drives which neuron, a line for each cell."""
    return "\n".join(f"  {unit.name}: {_pair(unit)}, {unit.state.param}" for unit in units)


def _row(unit: Unit, activity: Activity | None) -> tuple[str, ...]:
    state = unit.state
    return (
        unit.name,
        _pair(unit),
        state.param,
        _target_in_words(state.target),
        *_activity_in_words(activity),
        f"{abs(state.strength):.3g}",
        str(state.steps),
    )


def _pair(unit: Unit) -> str:
    connection = unit.connection
    layers = (connection.layer, connection.norm, unit.hook.module)
    return " → ".join(type(layer).__name__ for layer in layers if layer is not None)


def _activity_in_words(activity: Activity | None) -> tuple[str, ...]:
    if activity is None:
        return (NOTHING,) * 4
    error = NOTHING if activity.error is None else f"{activity.error:.1%}"
    return f"{activity.rate:.3f}", error, f"{activity.silent:.1%}", f"{activity.saturated:.1%}"


def _target_in_words(target: Target | None) -> str:
    if isinstance(target, Tensor):
        low, high = target.min().item(), target.max().item()
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    if isinstance(target, Band):
        low_edge, high_edge = (NOTHING if edge is None else f"{edge:g}" for edge in (target.low, target.high))
        return f"{low_edge} to {high_edge}"
    return f"{target:g}" if isinstance(target, float) else NOTHING
