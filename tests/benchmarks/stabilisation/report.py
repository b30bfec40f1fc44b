"""What an experiment hands over, and how it becomes Markdown."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import SubFigure


@dataclass(frozen=True)
class Table:
    """A table of cells that are formatted already."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


@dataclass(frozen=True)
class Finding:
    """What one experiment found.

    Attributes:
        title: heading of its section.
        setting: what was done, one paragraph.
        verdict: what came out, one sentence each, failures included.
        tables: the figures.
        draw: paints the picture.
    """

    title: str
    setting: str
    verdict: Sequence[str]
    tables: Sequence[Table]
    draw: Callable[[SubFigure], None]

    def markdown(self) -> str:
        verdict = "\n".join(f"- {sentence}" for sentence in self.verdict)
        tables = [table.markdown() for table in self.tables]
        return "\n\n".join([f"## {self.title}", self.setting, verdict, *tables])


def mean_and_spread(values: Iterable[float], form: str) -> str:
    """Mean ± sample standard deviation over seeds; the mean alone for one seed."""
    numbers = torch.tensor(list(values), dtype=torch.float64)
    if len(numbers) == 1:
        return f"{numbers.item():{form}}"
    return f"{numbers.mean():{form}} ± {numbers.std():{form}}"
