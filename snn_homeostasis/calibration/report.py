"""What a calibration did: a row for each cell."""

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape

from ..cells import Band
from ..monitoring import Table

__all__ = ["CalibratedCell", "CalibrationReport"]


@dataclass(frozen=True)
class CalibratedCell:
    """One cell before and after a calibration, on the inputs that it used.

    Args:
        name: the name of the cell.
        target: r*, the mean over its neurons, or a band.
        before, after: its rate, the mean over its neurons, in the unit of the target.
        distance: of its rate to the target, relative to that; negative if it is too busy.
        error: the mean of the distances, without their sign, over all that have a parameter of
            their own, neurons or channels.
        silent, saturated: the share of its neurons that never fire, and that fire at every step.
        shift: what was added to the regulated parameter, the mean over its entries.
        scale: the factor of the weights.
        free_std: how far the free membrane differs between samples, in thresholds; None if unseen.
        slopes: of the surrogate, before and after; None if it has none.
        note: what was left alone, and why; empty if all went well.

    >>> import snntorch as snn, torch
    >>> from snn_homeostasis import LinearHomeostasis
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
    >>> homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
    >>> (cell,) = homeostasis.calibrate(torch.rand(64, 4), num_steps=50, progress=False).cells
    >>> cell.name, round(cell.after, 1)
    ('1', 0.1)
    """

    name: str
    target: float | Band
    before: float
    after: float
    distance: float
    error: float
    silent: float
    saturated: float
    shift: float
    scale: float
    free_std: float | None = None
    slopes: tuple[float, float] | None = None
    note: str = ""

    @property
    def is_on_target(self) -> bool:
        """Whether the rate is within 5 % of the target."""
        return abs(self.distance) <= 0.05


HEADS = (
    "cell",
    " target",
    " before",
    " after",
    " error",
    " silent",
    " saturated",
    " shift",
    " scale",
    " slope",
    "note",
)


@dataclass(frozen=True)
class CalibrationReport:
    """A calibration: its cells, and what it took. Prints as a table.

    Args:
        cells: one for each registered cell.
        forwards: how many sequences the model ran.
        samples: in the inputs.
        seconds: it took.
        notes: about the model as a whole.
        undo: puts parameters and surrogates back as they were before; it keeps copies of them. Where
            several processes train the model, all of them call it.

    >>> import snntorch as snn, torch
    >>> from snn_homeostasis import LinearHomeostasis
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
    >>> homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
    >>> report = homeostasis.calibrate(torch.rand(64, 4), num_steps=50, progress=False)
    >>> report.samples
    64
    """

    cells: tuple[CalibratedCell, ...]
    forwards: int
    samples: int
    seconds: float
    notes: tuple[str, ...] = ()
    undo: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    def __getitem__(self, name: str) -> CalibratedCell:
        """Returns a cell by its name."""
        return {cell.name: cell for cell in self.cells}[name]

    @property
    def is_on_target(self) -> bool:
        """Whether every cell is within 5 % of its target."""
        return all(cell.is_on_target for cell in self.cells)

    def __str__(self) -> str:
        return "\n".join([str(self._table()), self._summary(), *self.notes])

    def _repr_html_(self) -> str:
        below = "".join(f"<p>{escape(line)}</p>" for line in (self._summary(), *self.notes))
        return self._table()._repr_html_() + below

    def _table(self) -> Table:
        return Table(HEADS, tuple(map(_row, self.cells)))

    def _summary(self) -> str:
        return f"{self.forwards} forwards with {self.samples} samples in {self.seconds:.2f} s"


def _row(cell: CalibratedCell) -> tuple[str, ...]:
    return (
        cell.name,
        _target(cell.target),
        _rate(cell.before),
        _rate(cell.after),
        f"{cell.error:.1%}",
        f"{cell.silent:.0%}",
        f"{cell.saturated:.0%}",
        f"{cell.shift:+.3g}",
        f"{cell.scale:.3g}",
        _slope(cell),
        cell.note,
    )


def _rate(rate: float) -> str:
    return f"{rate:.3f}" if rate < 1.0 else f"{rate:.3g}"


def _target(target: float | Band) -> str:
    if not isinstance(target, Band):
        return f"{target:.3g}"
    return " to ".join("…" if edge is None else f"{edge:.3g}" for edge in (target.low, target.high))


def _slope(cell: CalibratedCell) -> str:
    if cell.slopes is None:
        return "–"
    before, after = (f"{slope:.3g}" for slope in cell.slopes)
    return after if before == after else f"{before} → {after}"
