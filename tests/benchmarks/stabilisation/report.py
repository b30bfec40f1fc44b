"""Running an experiment on all cores, what it hands over, and how that becomes Markdown."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from joblib import Parallel, cpu_count, delayed
from matplotlib.figure import Figure
from tqdm import tqdm

R = TypeVar("R")


def each(live: Callable[..., R], runs: Iterable[Sequence[Any]], name: str) -> list[R]:
    """Runs ``live`` on each tuple of arguments, on all cores, one thread each, with a progress bar."""
    calls = [delayed(_on_one_thread)(live, *arguments) for arguments in runs]
    workers = min(cpu_count(), len(calls) // 30 + 1)  # starting one takes seconds
    results = Parallel(n_jobs=workers, return_as="generator")(calls)
    return list(tqdm(results, name, total=len(calls), unit="run"))


def _on_one_thread(live: Callable[..., R], *arguments: Any) -> R:
    torch.set_num_threads(1)  # the matrices are too small to share
    return live(*arguments)


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
        title: heading of its page.
        setting: what was done, one paragraph.
        verdict: what came out, one sentence each, failures included.
        tables: the figures.
        draw: paints the picture.
        size: of the picture in inches.
    """

    title: str
    setting: str
    verdict: Sequence[str]
    tables: Sequence[Table]
    draw: Callable[[Figure], None]
    size: tuple[float, float] = (9, 4.5)

    def markdown(self, picture: str) -> str:
        """The page, with a picture."""
        verdict = "\n".join(f"- {sentence}" for sentence in self.verdict)
        tables = [table.markdown() for table in self.tables]
        return "\n\n".join([f"# {self.title}", self.setting, verdict, f"![{self.title}]({picture})", *tables])


def mean_and_spread(values: Iterable[float], form: str) -> str:
    """Mean ± sample standard deviation over seeds; the mean alone for one seed."""
    numbers = torch.tensor(list(values), dtype=torch.float64)
    if len(numbers) == 1:
        return f"{numbers.item():{form}}"
    return f"{numbers.mean():{form}} ± {numbers.std():{form}}"
