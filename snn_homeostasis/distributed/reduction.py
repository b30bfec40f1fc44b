"""The sum over several processes that train one model: their batches count as one.

Each process adds its own parts to the slots. `Several.reduce` sums the parts and the mean rates of
all processes in one all-reduce, weighted by the samples behind them. Every process then applies the
same update: the one that a single process makes with the joint batch. Each process carries its own
past over a change of its batch size, where a single process would carry the joint one.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..cells import Unit
from ..errors import ArgumentError, HomeostasisError, NoSpikesError, ProcessMismatchError
from ..updates import Change
from .message import Message, Numbers, Sum
from .processes import Processes
from .shares import Share, described, shares_of

__all__ = ["Several"]

FIRST_LENGTH = 1024  # of the buffer, without the marks; the same in all processes
SAME = 1e-6  # the relative error below which changes count as the same


class Several(Processes):
    """The processes of a group. They make the same calls and have the same cells.

    The buffer holds one mark per process: a hash of what it is about to sum, or 0 if it has failed;
    then the counts of samples; then the sums. So processes that differ find out in the same
    all-reduce, and all raise. If all have more to sum than the buffer holds, they send a longer one
    again; updates keep that length. The time-out of the group ends the wait for a process that is gone.

    Args:
        group: the process group.
        wrappers: around the models that are trained; none of them may be in `join()`.
    """

    def __init__(self, group: Any, wrappers: Iterable[DistributedDataParallel]) -> None:
        self.group, self.wrappers = group, wrappers
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.length = self.size + FIRST_LENGTH
        self.failure: Exception | None = None
        self._known: Exception | None = None  # what all processes have raised inside `together`
        self.may_differ = False  # whether what follows a sum may fail, or come out otherwise, in one process

    def defer(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            raise error  # an interruption waits for nobody
        self.failure = self.failure or error

    def drop_errors(self) -> None:
        self.failure = None

    def reduce(self, units: Sequence[Unit]) -> None:
        _require_no_join(self.wrappers)
        with self._emptied_on_error(units):
            shares: list[Share] = []
            try:
                shares = shares_of(units)
            except Exception as error:
                self.defer(error)
            sums = self._sum(message := Message(shares, self.size), self._device_for(units))
            self.length = max(self.length, message.length)
            _require_observed(shares, sums)
            for share, each in zip(shares, sums, strict=True):
                share.accept(each.counts, each.numbers)
        self.may_differ = any(share.may_differ for share in shares)

    def confirm(self, units: Sequence[Unit], changes: Sequence[Change]) -> None:
        with self._emptied_on_error(units):
            if self.may_differ:
                self._compare_changes(changes, self._device_for(units))
            elif self.failure is not None:
                raise self.failure

    @contextmanager
    def together(self, call: str, units: Collection[Unit]) -> Iterator[None]:
        _require_no_join(self.wrappers)
        try:
            self.agree(call, *map(described, units))
            yield
            self.agree("the end")
        except Exception as error:
            if error is not self._known:
                self.failure = error
                self.agree("an error")  # at their next sum the others learn of it, and all raise
            raise
        finally:
            self.failure = self._known = None

    def agree(self, *labels: str) -> None:
        self._send(*(Numbers(label, torch.zeros(0)) for label in labels))

    def sum(self, label: str, numbers: Tensor) -> Tensor:
        (total,) = self._send(Numbers(f"{label} {list(numbers.shape)}", numbers))
        return total.numbers.reshape(numbers.shape).to(numbers.device)

    def of_each(self, label: str, number: float) -> list[float]:
        numbers = torch.zeros(self.size, dtype=torch.float64)
        numbers[self.rank] = number
        each: list[float] = self.sum(label, numbers).tolist()
        return each

    def require_same(self, made: float) -> None:
        each = self.of_each("what is made", made)
        if max(each) - min(each) > SAME * max(map(abs, each)):
            _refuse("their bounds make other changes of the same parts")

    def _send(self, *parts: Numbers) -> list[Sum]:
        try:
            # from one device, whatever the numbers lie on: two backends would not wait for each other
            return self._sum(Message(parts, self.size), self._near(torch.device("cpu")))
        except Exception as error:
            self._known = error
            raise

    def _sum(self, message: Message, device: torch.device, length: int = 0) -> list[Sum]:
        """Sends a message, and returns the sum of each part over all processes, on the processor."""
        length = length or self.length
        buffer = torch.zeros(length, dtype=torch.float64, device=device)
        has_room = message.length <= length
        if has_room:
            try:
                message.write(buffer)
            except Exception as error:
                self.defer(error)
        buffer[self.rank] = 0 if self.failure else _mark(message.labels)
        self._all_reduce(buffer, dist.ReduceOp.SUM)
        total = buffer.cpu()  # the one wait for the device
        marks = total[: self.size].tolist()
        if 0 in marks or len(set(marks)) > 1:
            self._compare(message.labels)
            _refuse("something else was sent in place of the cells")
        if has_room:
            return message.read(total)
        return self._sum(message, device, message.length)

    def _compare_changes(self, changes: Sequence[Change], device: torch.device) -> None:
        """Raises in every process if one has failed, or their bounds make other changes of the same parts."""
        made = 0.0
        try:
            whole = [change.outcome for change in changes if not change.slots[0].sharded]
            made = sum(outcome.abs().sum(dtype=torch.float64).item() for outcome in whole)
        except Exception as error:
            self.defer(error)
        seen = torch.tensor([self.failure is not None, made, -made], dtype=torch.float64, device=device)
        self._all_reduce(seen, dist.ReduceOp.MAX)
        failed, most, least = seen.tolist()
        if failed:
            self._compare([])
        if most + least > SAME * most:
            _refuse("their bounds make other changes of the same parts")

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
                raise kind(f"process {rank} raised: {message}")
        for rank, (other, _) in enumerate(said):
            if other != said[0][0]:
                _refuse(_difference(0, said[0][0], rank, other))

    def _device_for(self, units: Sequence[Unit]) -> torch.device:
        device = None
        try:
            device = units[0].slot.reference.leaf.device if units else None
        except Exception as error:
            self.defer(error)
        return self._near(torch.device("meta") if device is None else device)

    def _near(self, device: torch.device) -> torch.device:
        """Returns the device to send from: NCCL sends from a GPU alone, other backends from any device."""
        if device.type in ("cpu", "meta"):
            return torch.device("cuda" if dist.get_backend(self.group) == "nccl" else "cpu")
        return device

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
                if unit.active:
                    unit.cell.updater.clear()
            raise
        finally:
            self.drop_errors()


def _require_no_join(wrappers: Iterable[DistributedDataParallel]) -> None:
    """Raises ArgumentError where a process may leave the others.

    Each process finds out by itself: in `join()` a sum breaks the collectives of the wrapper, which
    a process that has left goes on to answer.
    """
    # `_join_config` is the only trace of `join()`; it stays as it is after the end of `join()`
    if any(wrapper._join_config.enable for wrapper in wrappers):
        raise ArgumentError(
            "`join()` should not be around the training of a regulated model. Found a "
            "DistributedDataParallel in `join()`, which lets a process without further batches leave, while "
            "`update()` and `calibrate()` need all of them. Give every process equally many batches, if only "
            "empty ones, and take `join(enable=False)`."
        )


def _require_observed(shares: Sequence[Share], sums: Sequence[Sum]) -> None:
    pairs = zip(shares, sums, strict=True)
    unobserved = [repr(share.name) for share, each in pairs if not share.is_observed(each.counts)]
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
        "processes should have the same cells with the same settings, all active or frozen alike, and make "
        f"the same calls. Found a difference: {found}. No parameter was changed. Build the model and attach "
        "in the same way everywhere, pass the same arguments and equally many batches, and call the model "
        "in every process, if only with an empty batch."
    )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessMismatchError(
            "every process should take part in `update()` and in `calibrate()`. Found that one is gone, "
            f"waits elsewhere, or has sent something else ({error}). Look for its own error first; make "
            "these calls equally often in every process."
        ) from error
