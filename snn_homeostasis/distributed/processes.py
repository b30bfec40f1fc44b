"""The processes that train one model, as the package sees them: one door, whether there is one or several."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from ..cells import Unit
from ..updates import Change

__all__ = ["Processes"]


class Processes:
    """The processes that train one model: here one, which shares nothing and raises at once."""

    group: Any = None  # their process group, if there are several
    rank = 0

    def defer(self, error: BaseException) -> None:
        """Keeps an error until `reduce` or `confirm`, where all processes raise: the others would wait."""
        raise error

    def reduce(self, units: Sequence[Unit]) -> None:
        """Replaces the parts and rates of this process by the mean over all processes, for active cells.

        Raises:
            ProcessMismatchError: if the processes have different things to share.
            NoSpikesError: if no process has observed a cell that is to be updated.
            HomeostasisError: if another process has raised since the last call.
        """

    def confirm(self, units: Sequence[Unit], changes: Sequence[Change]) -> None:
        """Raises in every process what one of them has deferred since `reduce`.

        Raises:
            ProcessMismatchError: if the processes are about to make different changes.
        """

    def drop_errors(self) -> None:
        """Drops the errors that wait."""

    def together(self, call: str, units: Collection[Unit]) -> AbstractContextManager[None]:
        """Runs a body in all processes, which all raise what one of them raises in it.

        In the body they make the same calls of `agree`, `sum`, `of_each` and `require_same`.

        Args:
            call: says what is called, and with which arguments.
            units: the cells.

        Raises:
            ProcessMismatchError: if the processes make another call, or have other cells.
            HomeostasisError: if another process has raised.
        """
        return nullcontext()

    def agree(self, *labels: str) -> None:
        """Raises in all processes if one of them says something else, or has failed."""

    def sum(self, label: str, numbers: Tensor) -> Tensor:
        """Returns the sum of numbers over all processes, in float64, equal to the bit in all of them.

        Args:
            label: says what they are; the same in all processes.
            numbers: of this process, in one shape in all of them.
        """
        return numbers.double()

    def of_each(self, label: str, number: float) -> list[float]:
        """Returns the number of each process, in order of their ranks."""
        return [number]

    def require_same(self, made: float) -> None:
        """Raises ProcessMismatchError in all processes if one of them has made something else."""
