"""Updater slots: where rules put their parts, until they are applied once."""

from __future__ import annotations

import torch
from torch import Tensor

from .bounds import Bounds, UpdateBounds, unbounded
from .checks import require, require_finite
from .connections import Connection
from .errors import ArgumentError, HomeostasisError, RemovedCellError
from .joint import Ledger, Share
from .parameters import ParameterReference
from .sharded import is_sharded, like
from .state import TensorState

__all__ = ["Parts", "Slot", "Updater"]


def broadcasts(part: Tensor, param: Tensor) -> bool:
    """Whether ``part`` broadcasts with ``param`` without making it larger."""
    sizes = zip(reversed(part.shape), reversed(param.shape), strict=False)
    return part.ndim <= param.ndim and all(size in (1, wanted) for size, wanted in sizes)


Parts = tuple[Tensor | None, Tensor | None]


class Slot(TensorState):
    """What is to be added to one parameter, as two magnitudes.

    Parts are kept in float32 or better and in the small shape in which the rule made them.
    For a parameter in half precision, what rounding takes from an update is kept and added
    to the next.

    Args:
        reference: the parameter.
        sharded: whether it is spread over processes.
    """

    def __init__(self, reference: ParameterReference, *, sharded: bool = False) -> None:
        super().__init__()
        self.reference = reference
        self._bounds: UpdateBounds | None = None
        self.ledger = Ledger()
        self._sharded = sharded
        for name in ("pos", "neg", "residue"):
            self.register_buffer(name, None)

    pos: Tensor | None
    neg: Tensor | None
    residue: Tensor | None

    @property
    def bounds(self) -> UpdateBounds | None:
        """A bound, any callable ``(param, pos, neg) -> delta``, or None."""
        return self._bounds

    @bounds.setter
    def bounds(self, bounds: UpdateBounds | None) -> None:
        require(
            bounds is None or callable(bounds),
            "bounds",
            "be None or a callable (param, pos, neg) -> delta",
            bounds,
            "Take for example `ClampBounds(-1.0, 1.0)`.",
        )
        self._bounds = bounds

    @property
    def pending(self) -> bool:
        """Whether anything was added since the slot was last emptied."""
        return self.pos is not None or self.neg is not None

    def add(self, pos: Tensor | None, neg: Tensor | None, share: Share | None = None) -> None:
        """Adds two parts that broadcast with the parameter; the sign of ``neg`` is dropped.

        Args:
            pos: raises the parameter.
            neg: lowers it.
            share: how they count among those of several processes.
        """
        param = self.reference.tensor
        own = self._fitted(pos, "pos", param), self._fitted(neg, "neg", param)
        for name, part in zip(("pos", "neg"), own, strict=True):
            if part is not None:
                held = getattr(self, name)
                setattr(self, name, part.clone() if held is None else held + part)
        if self.ledger.is_open:
            self.ledger.add(own, share)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The pending change, before rounding; changes nothing."""
        self._require_spread()
        value = self._exact(self.reference.tensor)
        pos, neg = self._magnitudes(value)
        if self._bounds is None:
            delta = unbounded(value, pos, neg)
        else:
            delta = self._bounds(value, like(pos, value), like(neg, value))
        if not broadcasts(delta, value):
            raise ArgumentError(
                f"`bounds` should return a delta that broadcasts to {list(value.shape)}. Found shape "
                f"{list(delta.shape)} for {self.reference}. Mend the callable."
            )
        return delta

    def commit(self, delta: Tensor) -> None:
        """Adds what `delta` gave to the parameter, in place, and empties the slot."""
        with self.reference.edit() as value:
            exact = self._exact(value).add_(like(delta, value))
            if isinstance(self._bounds, Bounds):
                self._bounds.settle_(exact)
            if exact is not value:
                value.copy_(exact)
                self.residue = exact.sub_(value)
        self.empty()

    def empty(self) -> None:
        """Drops what is pending; what rounding has kept back stays."""
        self.pos = self.neg = None
        self.ledger.empty()

    def take(self, pos: Tensor, neg: Tensor) -> None:
        """Puts what all processes have added in the place of what this one has."""
        param = self.reference.tensor
        dtype = torch.promote_types(param.dtype, torch.float32)
        self.pos, self.neg = (part.to(param.device, dtype) for part in (pos, neg))

    def renewed(self) -> Slot:
        """An empty slot for the same parameter, with the same bounds."""
        slot = Slot(self.reference, sharded=self._sharded)
        slot.bounds = self.bounds
        return slot

    def _exact(self, value: Tensor) -> Tensor:
        if value.dtype not in (torch.float16, torch.bfloat16):
            return value
        if self.residue is None:
            return value.float()
        exact = value + self.residue.to(value.device)
        # a value that was set meanwhile has nothing to do with an old residue
        return torch.where(exact.to(value.dtype) == value, exact, value.float())

    def _magnitudes(self, value: Tensor) -> tuple[Tensor, Tensor]:
        zero = torch.zeros((), dtype=value.dtype, device=value.device)
        pos, neg = (zero if part is None else part.to(value.device) for part in (self.pos, self.neg))
        return pos, neg

    def _require_spread(self) -> None:
        if self._sharded and not is_sharded(self.reference.leaf):
            raise HomeostasisError(
                f"{self.reference} should be sharded when it is changed. Found it gathered, as `fully_shard` "
                "leaves it after a forward without backward, and the change would be lost. Call `reshard()` "
                "of the model, or `attach` the model in place of single cells."
            )

    def _fitted(self, part: Tensor | None, name: str, param: Tensor) -> Tensor | None:
        if part is None:
            return None
        require(
            broadcasts(part, param),
            name,
            f"broadcast to {self.reference}, {list(param.shape)}",
            None,
            "Bring it there with `connection.like_bias`, or reduce B and L first.",
            show=f"shape {list(part.shape)}",
        )
        part = part.detach().to(param.device, torch.promote_types(param.dtype, torch.float32))
        return part.abs() if name == "neg" else part

    def extra_repr(self) -> str:
        return f"{self.reference}, bounds={self._bounds}, pending={self.pending}"


class Updater:
    """The slots of one cell: ``updater.weight = (pos, neg)`` adds, ``updater()`` applies all.

    Args:
        connection: tells which parameters there are.
    """

    __slots__ = ("is_open", "slots")  # a misspelt slot is an error

    def __init__(self, connection: Connection) -> None:
        references = connection.references
        self.slots = {kind: Slot(ref, sharded=is_sharded(ref.leaf)) for kind, ref in references.items()}
        self.is_open = True

    def __call__(self) -> None:
        """Applies every slot through its bounds, once, and empties it.

        Raises:
            NonFiniteError: if a change is not finite. No parameter is touched then.
            HomeostasisError: if several processes share the slots.
        """
        self._require_open()
        self._require_alone()
        deltas = [(slot, slot.delta()) for slot in self.slots.values() if slot.pending]
        require_finite([(str(slot.reference), "update", delta) for slot, delta in deltas])
        for slot, delta in deltas:
            slot.commit(delta)

    def clear(self) -> None:
        """Empties every slot without applying it."""
        for slot in self.slots.values():
            slot.empty()

    def close(self) -> None:
        """Lets go of the slots, which another cell may share, and of what they hold."""
        self.is_open = False
        self.slots = {kind: slot.renewed() for kind, slot in self.slots.items()}

    def slot(self, kind: str) -> Slot:
        """The slot of ``"weight"``, ``"bias"`` or ``"delay"``.

        Raises:
            RemovedCellError: if the cell was removed.
            AttributeError: if the layer has no such parameter.
        """
        self._require_open()
        if kind not in self.slots:
            raise AttributeError(f"the layer has no {kind}; its slots are {', '.join(self.slots) or 'none'}")
        return self.slots[kind]

    @property
    def weight(self) -> Slot:
        """The slot of the weight."""
        return self.slot("weight")

    @weight.setter
    def weight(self, parts: Parts) -> None:
        self.slot("weight").add(*parts)

    @property
    def bias(self) -> Slot:
        """The slot of the bias."""
        return self.slot("bias")

    @bias.setter
    def bias(self, parts: Parts) -> None:
        self.slot("bias").add(*parts)

    @property
    def delay(self) -> Slot:
        """The slot of the delay."""
        return self.slot("delay")

    @delay.setter
    def delay(self, parts: Parts) -> None:
        self.slot("delay").add(*parts)

    def _require_alone(self) -> None:
        if any(slot.ledger.is_open for slot in self.slots.values()):
            raise HomeostasisError(
                "`updater()` should be called where one process trains the model. Found several, whose parts "
                "have to be summed first. Call `update()` of the homeostasis in every process."
            )

    def _require_open(self) -> None:
        if not self.is_open:
            raise RemovedCellError(
                "`updater` should belong to a registered cell. Found a cell that was removed. "
                "Register it again."
            )
