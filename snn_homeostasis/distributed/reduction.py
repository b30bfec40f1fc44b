"""Several processes that train one model: their batches count as one.

Each process writes its own parts into the slots. `Several.share` sums what all have, in one
all-reduce for all cells together, weighted by the samples that stand behind it, so that every
process then applies the same update: that of one process with the joint batch. Two things
one process would do differently: where batches change their sizes and not their sum it would
give some samples another past, and where sizes change between two calls of the rule before
one update it would carry over the mean of what came in between.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from ..cells.unit import Unit
from ..errors import HomeostasisError, NoSpikesError, ProcessMismatchError
from ..layers.sharded import is_sharded
from ..updates.ledger import is_sum
from .contributions import Contribution, contributions_of

__all__ = ["Alone", "Processes", "Several"]


class Processes(ABC):
    """Those that train one model.

    Attributes:
        group: their process group, None if there is only one.
    """

    group: Any = None

    @abstractmethod
    @contextmanager
    def deferring(self, *errors: type[Exception]) -> Iterator[None]:
        """Keeps errors until `share`, where all raise: the others would wait for this one."""

    @abstractmethod
    def open(self, units: Iterable[Unit]) -> None:
        """Has the slots of the cells keep their parts for `share`.

        Raises:
            ArgumentError: if parts of a cell cannot be put together.
        """

    @abstractmethod
    def share(self, units: Sequence[Unit]) -> None:
        """Puts the sums over all processes in the place of the parts of this one.

        Args:
            units: all cells; those that are frozen are left out.

        Raises:
            ProcessMismatchError: if the processes have different things to share.
            NoSpikesError: if no process has observed a cell that is to be updated.
            HomeostasisError: what another process raised since the last call.
        """

    @abstractmethod
    def agree(self, flags: Tensor, about: Sequence[Tensor]) -> Tensor:
        """Flags that are true in every process, if they are about sharded tensors."""

    def forget(self) -> None:
        """Drops the errors that wait."""


class Alone(Processes):
    """One process: there is nothing to share, and nothing it costs."""

    @contextmanager
    def deferring(self, *errors: type[Exception]) -> Iterator[None]:
        yield

    def open(self, units: Iterable[Unit]) -> None:
        pass

    def share(self, units: Sequence[Unit]) -> None:
        pass

    def agree(self, flags: Tensor, about: Sequence[Tensor]) -> Tensor:
        return flags


class Several(Processes):
    """The processes of a group, which call `share` equally often and with the same cells.

    The buffer starts with one number per process that tells what it is about to sum, so that
    processes that differ find out in the same all-reduce and all raise. Its length is agreed
    on before the first one and grows when all need more. What ends the wait for a process that
    is gone is the time-out of the group.

    Args:
        group: the process group.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.length: int | None = None
        self.failure: Exception | None = None

    @contextmanager
    def deferring(self, *errors: type[Exception]) -> Iterator[None]:
        try:
            yield
        except errors as error:
            self.failure = self.failure or error

    def forget(self) -> None:
        self.failure = None

    def open(self, units: Iterable[Unit]) -> None:
        for unit in units:
            is_sum(unit.state.batch_reduction)
            for slot in unit.all_slots:
                slot.ledger.share = unit.share

    def share(self, units: Sequence[Unit]) -> None:
        if not units:
            return
        self.open(units)
        device = units[0].slot.reference.tensor.device
        active = [unit for unit in units if unit.active]
        try:
            contributions = contributions_of(active)
            totals = self._sum(contributions, device)
            _require_founded(contributions, totals)
        except Exception:
            for unit in active:
                unit.cell.updater.clear()
            raise
        finally:
            self.forget()
        for each, total in zip(contributions, totals, strict=True):
            each.settle(total)

    def agree(self, flags: Tensor, about: Sequence[Tensor]) -> Tensor:
        if not any(is_sharded(tensor) for tensor in about):
            return flags
        flags = flags.to(torch.int32)
        self._reduce(flags, dist.ReduceOp.MIN)
        return flags.bool()

    def _sum(self, contributions: Sequence[Contribution], device: torch.device) -> list[Tensor]:
        labels = [each.label for each in contributions]
        values = [each.values().to(device) for each in contributions]
        needed = self.size + sum(map(len, values))
        if self.length is None:
            self._compare(labels)
            self.length = needed
        buffer = torch.zeros(self.length, dtype=torch.float64, device=device)
        buffer[self.rank] = 0 if self.failure else _mark(labels)
        fits = needed <= self.length
        if values and fits and not self.failure:
            buffer[self.size : needed] = torch.cat(values)
        self._reduce(buffer, dist.ReduceOp.SUM)
        total = buffer.cpu()  # one wait for the device
        marks = total[: self.size].tolist()
        if 0 in marks or len(set(marks)) > 1:
            self._compare(labels)
            _refuse("something else was sent in place of the cells")
        if not fits:
            self.length = needed
            return self._sum(contributions, device)
        return list(torch.split(total[self.size : needed], list(map(len, values))))

    def _compare(self, labels: Sequence[str]) -> None:
        """Raises in every process if one has failed, or has other things to share."""
        said: list[Any] = [None] * self.size
        with _explained():
            dist.all_gather_object(said, (labels, _told(self.failure)), group=self.group)
        if self.failure is not None:
            raise self.failure
        for rank, (_, failure) in enumerate(said):
            if failure is not None:
                kind, message = failure
                raise kind(f"process {rank} raised before the update: {message}")
        for rank, (other, _) in enumerate(said):
            if other != said[0][0]:
                _refuse(_difference(0, said[0][0], rank, other))

    def _reduce(self, buffer: Tensor, operation: Any) -> None:
        with _explained():
            dist.all_reduce(buffer, operation, group=self.group)


def _require_founded(contributions: Sequence[Contribution], totals: Sequence[Tensor]) -> None:
    pairs = zip(contributions, totals, strict=True)
    unobserved = [repr(each.name) for each, total in pairs if not each.is_founded(total)]
    if unobserved:
        raise NoSpikesError(
            "each cell should have been observed in some process before it is updated. Found no samples in "
            f"any for cell {', '.join(dict.fromkeys(unobserved))}. Run the model on data first."
        )


def _mark(labels: Sequence[str]) -> int:
    """A number > 0 that is exact in float64 and differs where the labels do."""
    return 1 + int.from_bytes(hashlib.blake2b(repr(labels).encode(), digest_size=6).digest())


def _told(error: Exception | None) -> tuple[type[HomeostasisError], str] | None:
    if error is None:
        return None
    kind = type(error) if isinstance(error, HomeostasisError) else ProcessMismatchError
    return kind, f"{type(error).__name__}: {error}"


def _difference(first: int, mine: Sequence[str], second: int, yours: Sequence[str]) -> str:
    only = {first: set(mine) - set(yours), second: set(yours) - set(mine)}
    lists = [f"only process {rank} has {', '.join(sorted(has))}" for rank, has in only.items() if has]
    return "; ".join(lists) or f"processes {first} and {second} have the cells in another order"


def _refuse(found: str) -> NoReturn:
    raise ProcessMismatchError(
        "processes should have the same cells, all active or frozen alike, and call `forward` and `update` "
        f"equally often. Found a difference: {found}. No parameter was changed. Build the model and attach "
        "in the same way everywhere, and call the model in every process, if only with an empty batch."
    )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessMismatchError(
            "every process should take part in `update()`. Found that one is gone, waits elsewhere, or has "
            f"sent something else ({error}). Look for its own error first; call `update()` equally often in "
            "every process."
        ) from error
