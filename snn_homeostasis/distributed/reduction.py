"""The sum over several processes that train one model: their batches count as one.

Each process adds its own parts to the slots. `Several.reduce` sums the parts and the mean rates of
all processes in one all-reduce, weighted by the samples behind them. Every process then applies the
same update: the one that a single process makes with the joint batch. Each process carries its own
past over a change of its batch size, where a single process would carry the joint one.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from ..cells import Unit
from ..errors import HomeostasisError, NoSpikesError, ProcessMismatchError
from ..updates import HALVES, Slot, is_built_in
from .shares import Share, shares_of

__all__ = ["Processes", "Several"]


class Processes:
    """The processes that train one model: here one, which shares nothing and raises at once."""

    group: Any = None  # their process group, if there are several
    _nothing = nullcontext()

    def deferring(self, *errors: type[Exception]) -> AbstractContextManager[None]:
        """Keeps errors until `reduce` or `confirm`, where all processes raise: the others would wait."""
        return self._nothing

    def reduce(self, units: Sequence[Unit]) -> None:
        """Replaces the parts and rates of this process by the mean over all processes, for active cells.

        Raises:
            ProcessMismatchError: if the processes have different things to share.
            NoSpikesError: if no process has observed a cell that is to be updated.
            HomeostasisError: if another process has raised since the last call.
        """

    def confirm(self, units: Sequence[Unit]) -> None:
        """Raises in every process what one of them has deferred since `reduce`."""

    def drop_errors(self) -> None:
        """Drops the errors that wait."""


class Several(Processes):
    """The processes of a group. They call `reduce` equally often and have the same cells.

    The buffer starts with one mark per process: a hash of what it is about to sum, or 0 if it has
    failed. So processes that differ find out in the same all-reduce, and all raise. They agree on
    the length of the buffer before the first one, and send a longer one again if all need more. The
    time-out of the group ends the wait for a process that is gone.
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

    def drop_errors(self) -> None:
        self.failure = None

    def reduce(self, units: Sequence[Unit]) -> None:
        if not units:
            return
        device = units[0].slot.reference.tensor.device
        active = [unit for unit in units if unit.active]
        with self._emptied_on_error(active):
            shares: list[Share] = []
            with self.deferring(Exception):
                shares = shares_of(active)
            totals = self._sum(shares, device)
            _require_observed(shares, totals)
            for share, total in zip(shares, totals, strict=True):
                share.accept(total)

    def confirm(self, units: Sequence[Unit]) -> None:
        slots = [slot for unit in units for slot in unit.slots.values()]
        with self._emptied_on_error([unit for unit in units if unit.active]):
            if any(map(_can_fail_alone, slots)):
                device = slots[0].reference.tensor.device
                failed = torch.tensor([self.failure is not None], dtype=torch.int32, device=device)
                self._all_reduce(failed, dist.ReduceOp.MAX)
                if failed.item():
                    self._compare([])
            elif self.failure is not None:
                raise self.failure

    def _sum(self, shares: Sequence[Share], device: torch.device) -> list[Tensor]:
        labels, values = [share.label for share in shares], []
        with self.deferring(Exception):
            values = [share.values().to(device) for share in shares]
        needed = self.size + sum(map(len, values))
        if self.length is None:
            self._compare(labels)
            self.length = needed
        buffer = torch.zeros(self.length, dtype=torch.float64, device=device)
        buffer[self.rank] = 0 if self.failure else _mark(labels)
        has_room = needed <= self.length
        if values and has_room and not self.failure:
            buffer[self.size : needed] = torch.cat(values)
        self._all_reduce(buffer, dist.ReduceOp.SUM)
        total = buffer.cpu()  # the one wait for the device
        marks = total[: self.size].tolist()
        if 0 in marks or len(set(marks)) > 1:
            self._compare(labels)
            _refuse("something else was sent in place of the cells")
        if not has_room:
            self.length = needed
            return self._sum(shares, device)
        return list(torch.split(total[self.size : needed], list(map(len, values))))

    def _compare(self, labels: Sequence[str]) -> None:
        """Raises in every process if one has failed, or has other things to share."""
        said: list[Any] = [None] * self.size
        with _explained():
            dist.all_gather_object(said, (labels, _in_words(self.failure)), group=self.group)
        if self.failure is not None:
            raise self.failure
        for rank, (_, failure) in enumerate(said):
            if failure is not None:
                kind, message = failure
                raise kind(f"process {rank} raised before the update: {message}")
        for rank, (other, _) in enumerate(said):
            if other != said[0][0]:
                _refuse(_difference(0, said[0][0], rank, other))

    def _all_reduce(self, buffer: Tensor, operation: Any) -> None:
        with _explained():
            dist.all_reduce(buffer, operation, group=self.group)

    @contextmanager
    def _emptied_on_error(self, units: Sequence[Unit]) -> Iterator[None]:
        """Drops what waits in all processes alike if one of them fails."""
        try:
            yield
        except Exception:
            for unit in units:
                unit.cell.updater.clear()
            raise
        finally:
            self.drop_errors()


def _can_fail_alone(slot: Slot) -> bool:
    """Whether the change of a slot may fail in one process: the others compute the same otherwise."""
    is_own_code = slot.bounds is not None and not is_built_in(slot.bounds)
    # bounds, and rounding to half precision, look at the piece of a parameter that a process holds
    looks = slot.bounds is not None or slot.reference.leaf.dtype in HALVES or slot.reference.plain is None
    return is_own_code or (slot.sharded and looks)


def _require_observed(shares: Sequence[Share], totals: Sequence[Tensor]) -> None:
    pairs = zip(shares, totals, strict=True)
    unobserved = [repr(share.name) for share, total in pairs if not share.is_observed(total)]
    if unobserved:
        raise NoSpikesError(
            "each cell should have been observed in some process before it is updated. Found no samples in "
            f"any for cell {', '.join(dict.fromkeys(unobserved))}. Run the model on data first."
        )


def _mark(labels: Sequence[str]) -> int:
    """Hashes labels to a number > 0 that float64 holds exactly."""
    return 1 + int.from_bytes(hashlib.blake2b(repr(labels).encode(), digest_size=6).digest())


def _in_words(error: Exception | None) -> tuple[type[HomeostasisError], str] | None:
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
        "processes should have the same cells with the same settings, all active or frozen alike, and call "
        f"`forward` and `update` equally often. Found a difference: {found}. No parameter was changed. Build "
        "the model and attach in the same way everywhere, and call the model in every process, if only with "
        "an empty batch."
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
