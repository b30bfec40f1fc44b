"""Several processes that train one model: their batches count as one.

Each process writes its own parts into the slots. `Processes.share` sums what all have, in
one all-reduce for all cells together, weighted by the samples that stand behind it, so that
every process then applies the same update: that of one process with the joint batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .checks import require
from .errors import HomeostasisError, NoSpikesError, ProcessMismatchError
from .joint import Joint
from .units import Unit, is_sum
from .updates import Slot

__all__ = ["AUTO", "Alone", "Group", "Processes", "check_group", "processes_of"]


Group = Any  # a `ProcessGroup`, None or AUTO
AUTO = "auto"


def check_group(group: Group) -> Group:
    """Checks a process group.

    Raises:
        ArgumentError: if it is none.
    """
    require(
        group in (None, AUTO) or (dist.is_available() and isinstance(group, dist.ProcessGroup)),
        "process_group",
        "be 'auto', None or a ProcessGroup",
        group,
        "Take `torch.distributed.group.WORLD` for all processes.",
    )
    return group


class Alone:
    """One process: nothing to share, and nothing it costs."""

    group = None
    shared = False

    @contextmanager
    def deferring(self, *errors: type[Exception]) -> Iterator[None]:
        """Lets errors pass."""
        yield

    def open(self, units: Iterable[Unit]) -> None:
        """Does nothing."""

    def share(self, units: Sequence[Unit]) -> None:
        """Does nothing."""

    def agree(self, flags: Tensor) -> Tensor:
        """Gives the flags back."""
        return flags


class Processes(Alone):
    """The processes of a group, which call `share` equally often and with the same cells.

    A buffer starts with one number per process that tells what it is about to sum, so that
    processes that differ find out in the same all-reduce and all raise. Its length is agreed
    on before the first one and grows when all need more. An error of one process is raised in
    all of them. What ends a wait for a process that is gone is the time-out of the group.

    Args:
        group: the process group.
    """

    shared = True

    def __init__(self, group: Group) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.length: int | None = None
        self.failure: Exception | None = None

    @contextmanager
    def deferring(self, *errors: type[Exception]) -> Iterator[None]:
        """Keeps errors until `share`, where all processes raise: the others would wait for this one."""
        try:
            yield
        except errors as error:
            self.failure = self.failure or error

    def open(self, units: Iterable[Unit]) -> None:
        """Has the slots of the cells keep their parts for `share`.

        Raises:
            ArgumentError: if parts of a cell cannot be put together.
        """
        for unit in units:
            is_sum(unit.state.batch_reduction)
            for slot in unit.cell.updater.slots.values():
                slot.ledger.share = unit.share

    def share(self, units: Sequence[Unit]) -> None:
        """Puts the sums over all processes in the place of the parts of this one.

        Args:
            units: all cells, the same and in the same order in every process; those that are
                frozen are left out.

        Raises:
            ProcessMismatchError: if the processes have different things to share.
            NoSpikesError: if no process has observed a cell that is to be updated.
            HomeostasisError: what another process raised since the last call.
        """
        if not units:
            return
        self.open(units)
        device = units[0].slot.reference.tensor.device
        units = [unit for unit in units if unit.active]
        items = _items(units)
        try:
            totals = self._sum(items, device)
            _require_observed(items, totals)
        except HomeostasisError:
            for unit in units:
                unit.cell.updater.clear()
            raise
        finally:
            self.failure = None
        for item, total in zip(items, totals, strict=True):
            item.settle(total)
        for slot in _pending(units):
            slot.take(*slot.ledger.collect())

    def agree(self, flags: Tensor) -> Tensor:
        """Flags that are true in every process."""
        true = flags.to(torch.int32)
        self._reduce(true, dist.ReduceOp.MIN)
        return true.bool()

    def _sum(self, items: Sequence[_Item], device: torch.device) -> list[Tensor]:
        labels = [item.label for item in items]
        values = [item.values().flatten().to(device, torch.float64) for item in items]
        needed = self.size + sum(map(len, values))
        if self.length is None:
            self._compare(labels)
            self.length = needed
        buffer = torch.zeros(self.length, dtype=torch.float64, device=device)
        buffer[self.rank] = 0 if self.failure else _mark(labels)
        fits = needed <= self.length
        if fits and not self.failure:
            buffer[self.size : needed] = torch.cat([buffer[:0], *values])
        self._reduce(buffer, dist.ReduceOp.SUM)
        marks = buffer[: self.size].tolist()
        if 0 in marks or len(set(marks)) > 1:
            self._compare(labels)
            self._refuse(f"of what they sum: {marks}")
        if not fits:
            self.length = needed
            return self._sum(items, device)
        return list(torch.split(buffer[self.size : needed], [len(value) for value in values]))

    def _compare(self, labels: list[str]) -> None:
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
            only = {0: set(said[0][0]) - set(other), rank: set(other) - set(said[0][0])}
            if other != said[0][0]:
                lists = (
                    f"only process {who} has {', '.join(sorted(what))}" for who, what in only.items() if what
                )
                self._refuse("; ".join(lists) or f"another order of cells in process {rank}")

    def _refuse(self, found: str) -> NoReturn:
        raise ProcessMismatchError(
            "processes should have the same cells, all active or frozen alike, and call `forward` and "
            f"`update` equally often. Found differences: {found}. No parameter was changed. Build the model "
            "and attach in the same way everywhere, and call the model in every process, if only with an "
            "empty batch."
        )

    def _reduce(self, buffer: Tensor, operation: Any) -> None:
        with _explained():
            dist.all_reduce(buffer, operation, group=self.group)


def processes_of(group: Group, known: Alone) -> Alone:
    """The processes of a group: ``known``, if it is theirs, `Alone` if there is only one."""
    if group is known.group:
        return known
    several = group is not None and dist.get_rank(group) >= 0 and dist.get_world_size(group) > 1
    return Processes(group) if several else Alone()


class _Item(Protocol):
    """Something of which every process has a part."""

    @property
    def label(self) -> str: ...

    def values(self) -> Tensor: ...

    def settle(self, total: Tensor) -> None: ...


class _RateItem:
    """The rate of a cell: number of samples, steps, and sums over the samples."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.samples = unit.samples
        self.rate = unit.rate.rate if self.samples else None

    @property
    def label(self) -> str:
        neurons = self.unit.cell.neuron.neurons
        return f"cell {self.unit.name!r} ({'never called' if neurons is None else list(neurons)})"

    def values(self) -> Tensor:
        neurons = self.unit.cell.neuron.neurons
        if self.rate is None:
            return torch.zeros(2 + 2 * (0 if neurons is None else neurons.numel()))
        facts = self.rate.new_tensor([self.samples, self.samples * self.unit.rate.steps], dtype=torch.float64)
        rates = (self.rate, self.unit.joint.carried(self.rate, self.unit.rate))
        return torch.cat([facts, *(rate.sum(0, dtype=torch.float64).flatten() for rate in rates)])

    def settle(self, total: Tensor) -> None:
        samples, steps = (round(fact) for fact in total[:2].tolist())
        if not samples:
            return
        own, carried = total[2:].chunk(2)
        mean = (own if self.unit.joint.samples in (-1, samples) else carried) / samples
        neurons = self.unit.cell.neuron.neurons
        assert neurons is not None
        joint = Joint(samples, round(steps / samples), mean.reshape(neurons).float())
        self.unit.joint.settle(self.unit.rate, self.rate, joint)


class _PartsItem:
    """One entry of the ledger of a slot: number of samples, and the parts they give."""

    def __init__(self, name: str, slot: Slot, entry: int) -> None:
        self.name, self.slot, self.entry = name, slot, entry
        self.share = slot.ledger.shares[entry]

    @property
    def parts(self) -> Tensor:
        assert self.slot.ledger.parts is not None
        return self.slot.ledger.parts[self.entry]

    @property
    def label(self) -> str:
        return (
            f"call {self.entry + 1} of the rule for {self.slot.reference} of cell {self.name!r} "
            f"({list(self.parts.shape[1:])}, {self.share.before} samples before, "
            f"{'sum' if self.share.summed else 'mean'})"
        )

    def values(self) -> Tensor:
        parts, samples = self.parts.double(), self.share.samples
        if not samples:
            parts = torch.zeros_like(parts)
        return torch.cat(
            [parts.new_tensor([samples]), parts.flatten() * (1 if self.share.summed else samples)]
        )

    def settle(self, total: Tensor) -> None:
        samples = round(total[0].item())
        own, carried = total[1:].reshape(self.parts.shape).chunk(2)
        both = own if self.share.before in (-1, samples) else carried
        self.parts[:2] = both if self.share.summed else both / samples


def _items(units: Sequence[Unit]) -> list[_Item]:
    items: list[_Item] = [_RateItem(unit) for unit in units]
    for slot, name in _pending(units).items():
        if not slot.ledger.shares:  # from a checkpoint of one process, or added before the model was wrapped
            slot.ledger.add((slot.pos, slot.neg))
        items += [_PartsItem(name, slot, entry) for entry in range(len(slot.ledger.shares))]
    return items


def _pending(units: Sequence[Unit]) -> dict[Slot, str]:
    slots: dict[Slot, str] = {}
    for unit in units:
        for slot in unit.cell.updater.slots.values():
            if slot.pending:
                slots.setdefault(slot, unit.name)
    return slots


def _require_observed(items: Sequence[_Item], totals: Sequence[Tensor]) -> None:
    parts = [(item, total) for item, total in zip(items, totals, strict=True) if isinstance(item, _PartsItem)]
    unobserved = [repr(item.name) for item, total in parts if not total[0]]
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
