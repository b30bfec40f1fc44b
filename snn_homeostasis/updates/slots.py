"""A slot: what is to be added to one parameter, until an update applies it once."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import require
from ..layers import Limits, ParameterReference, is_sharded
from ..state import TensorState
from .bounds import BOUNDS_CODE, UpdateBounds, check_bounds
from .contributions import Contribution, Finish, joined

__all__ = ["Slot", "Waiting", "broadcasts"]


class Slot(TensorState):
    """Collects the contributions to one parameter.

    They stay in float32 or better, and in the small shape in which the rule makes them.

    Args:
        reference: the parameter.
        limits: the range that the parameter never leaves, whatever the bounds.

    Attributes:
        samples: tells the number of samples that the cell observes; only several processes ask.
        residue: what rounding to half precision took from the last update; it goes into the next one.
        sharded: whether each process holds a piece of the parameter.
        shared: whether several processes train the parameter, and have to sum what they contribute.
        bounds: a bound, any callable ``(param, pos, neg) -> delta``, or None.
        claims: the bounds that each rule on this slot was given; the source of a rule is its estimator.
        warned_stuck: whether the user knows that a row of the parameter is stuck at a limit.
    """

    state = ("pos", "neg", "residue")  # a checkpoint joins all contributions to one
    counters = ("pending_samples", "pending_sum")
    codes: ClassVar = {"bounds": BOUNDS_CODE}

    def __init__(self, reference: ParameterReference, limits: Limits | None = None) -> None:
        super().__init__()
        self.reference, self.limits = reference, limits
        self.samples: Callable[[], int] = lambda: 1
        self.sharded = is_sharded(reference.leaf)
        self.shared = self.warned_stuck = False
        self.contributions: list[Contribution] = []
        self.residue: Tensor | None = None
        self._checked: tuple[object, ...] = ()  # a tuple, since a module registers what is a Parameter
        self.bounds: UpdateBounds | None = None
        self.claims: dict[object, UpdateBounds] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        # in place of a property, whose getter every step would call several times for each cell
        if name == "bounds":
            check_bounds(value)
        super().__setattr__(name, value)

    @property
    def pending(self) -> bool:
        """Whether a contribution waits."""
        return bool(self.contributions)

    @property
    def pos(self) -> Tensor | None:
        """What waits to raise the parameter, a magnitude; None if the slot is empty."""
        return joined(self.contributions, self.reference)[0] if self.contributions else None

    @pos.setter
    def pos(self, pos: Tensor | None) -> None:
        last = [
            each._replace(pos=pos, neg=self.neg, finish=None)
            for each in self.contributions[-1:]
            if pos is not None
        ]
        self.contributions = last or ([] if pos is None else [Contribution(pos, None)])

    @property
    def neg(self) -> Tensor | None:
        """What waits to lower the parameter, a magnitude; None if the slot is empty."""
        return joined(self.contributions, self.reference)[1] if self.contributions else None

    @neg.setter
    def neg(self, neg: Tensor | None) -> None:
        self._replace_last(neg=neg)

    def require_changeable(self, owner: str = "") -> Tensor:
        """Returns the Parameter; looks whether it can change only if it is another one than before.

        Args:
            owner: what the message calls the parameter.

        Raises:
            UnsupportedLayerError: if it cannot.
        """
        reference = self.reference
        plain = reference.plain
        form = reference.form if plain is None else plain
        if not self._checked or form is not self._checked[0]:
            reference.require_changeable(owner)
            # not weak: `torch.utils.swap_tensors` refuses tensors with weak references
            self._checked = (form,)
        return reference.leaf if plain is None else plain

    def add(self, pos: Tensor | None, neg: Tensor | None) -> None:
        """Adds a part that raises the parameter and one that lowers it; the sign of ``neg`` is dropped.

        Raises:
            ArgumentError: if a part does not broadcast with the parameter.
            UnsupportedLayerError: if the parameter cannot change.
        """
        if pos is not None or neg is not None:
            samples = self.samples() if self.shared else max(1, self.samples())  # alone each part counts
            self.contributions.append(self.checked(pos, neg, samples))

    def checked(
        self,
        pos: Tensor | None,
        neg: Tensor | None,
        samples: int,
        summed: bool = False,
        source: object = None,
        finish: Finish | None = None,
    ) -> Contribution:
        """Checks two parts as `add` does, and copies them, so that they can wait."""
        self.require_changeable()
        param = self.reference.tensor
        exact = torch.promote_types(param.dtype, torch.float32)
        up, down = (self._fitted(*part, param, exact) for part in ((pos, "pos"), (neg, "neg")))
        return Contribution(up.clone(), down.abs(), samples, summed, source, finish)

    def empty(self) -> None:
        """Drops what waits; the residue of half precision stays."""
        self.contributions.clear()

    def drop(self, *sources: object) -> None:
        """Drops what some sources have added."""
        self.contributions[:] = [each for each in self.contributions if each.source not in sources]

    def leave(self, source: object) -> None:
        """Drops what a source has added, and its bounds, unless another rule was given the same."""
        self.drop(source)
        claim = self.claims.pop(source, None)
        if claim is not None and claim == self.bounds and claim not in self.claims.values():
            self.bounds = None

    @property
    def pending_samples(self) -> int:
        """The samples behind the last contribution; 0 if the slot is empty."""
        return self.contributions[-1].samples if self.contributions else 0

    @pending_samples.setter
    def pending_samples(self, samples: int) -> None:
        self._replace_last(samples=samples)

    @property
    def pending_sum(self) -> bool:
        """Whether the last contribution is a sum over its samples."""
        return bool(self.contributions) and self.contributions[-1].summed

    @pending_sum.setter
    def pending_sum(self, summed: int) -> None:
        self._replace_last(summed=bool(summed))

    def _replace_last(self, **fields: Any) -> None:
        self.contributions[-1:] = [each._replace(**fields) for each in self.contributions[-1:]]

    def _fitted(self, part: Tensor | None, name: str, param: Tensor, exact: torch.dtype) -> Tensor:
        if part is None:
            return torch.zeros((), dtype=exact, device=param.device)
        self.require_broadcasts(part, name, param)
        return part.detach().to(param.device, exact)

    def require_broadcasts(self, part: Tensor, name: str, param: Tensor) -> None:
        """Raises ArgumentError for a part that does not broadcast with the parameter."""
        if not broadcasts(part, param):  # to write the message takes longer than to check
            expected, show = (
                f"broadcast to {self.reference}, {list(param.shape)}",
                f"shape {list(part.shape)}",
            )
            remedy = "Bring it there with `connection.like_bias`, or reduce B and L first."
            require(False, name, expected, None, remedy, show=show)

    def extra_repr(self) -> str:
        return f"{self.reference}, bounds={self.bounds}, pending={self.pending}"


def broadcasts(part: Tensor, param: Tensor) -> bool:
    """Whether ``part`` broadcasts with ``param`` without making it larger."""
    if part.ndim == param.ndim > 0 and part.numel() == part.shape[0] == param.shape[0]:
        return True  # one number for each row, as a rule gives it; `len` of a tensor takes longer
    sizes = zip(reversed(part.shape), reversed(param.shape), strict=False)
    return part.ndim <= param.ndim and all(size in (1, wanted) for size, wanted in sizes)


class Waiting:
    """Remembers what waits in some slots, to put it back after an error or an interruption."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        self.contributions = {slot: slot.contributions.copy() for slot in slots if slot.contributions}

    def put_back(self) -> None:
        """Puts it back, except where a slot is empty now: an update has applied or dropped all of it."""
        for slot in self.slots:
            if slot.contributions:
                slot.contributions[:] = self.contributions.get(slot, [])
