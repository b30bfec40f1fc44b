"""State that comes and goes with use: saved where present, copied along with the model, never rounded."""

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor, nn

from .errors import HomeostasisError

__all__ = ["Code", "CopiedAlong", "TensorState"]

HELD = "held"  # the entry that says which tensors a checkpoint holds


class CopiedAlong:
    """Base of objects that hold hooks on one model. They are copied along with it, and never pickled.

    A module that holds both the model and this object may be copied: the copy observes the copied
    model. Both orders work, because a layer that is copied here first is then found in the memo.
    """

    ties: ClassVar[frozenset[str]]  # attributes that belong to the original alone

    @abstractmethod
    def _tie(self) -> None:
        """Sets the ties of a new object, or of a copy."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if not memo:  # nothing else is being copied
            self._refuse("copied without its model")
        twin = memo[id(self)] = object.__new__(type(self))
        own = {name: value for name, value in vars(self).items() if name not in self.ties}
        vars(twin).update(copy.deepcopy(own, memo))
        twin._tie()
        return twin

    def __copy__(self) -> NoReturn:
        self._refuse("copied without its model")

    def __reduce__(self) -> NoReturn:
        self._refuse("pickled")

    def _refuse(self, how: str) -> NoReturn:
        raise HomeostasisError(
            f"`{type(self).__name__}` should not be {how}: it holds hooks on the modules of one model. "
            "Attach a new one to the other model and load this one's `state_dict()` into it; or take "
            "`copy.deepcopy` of a module that holds both."
        )


@dataclass(frozen=True)
class Code:
    """How a setting is written as numbers, always as many: a checkpoint holds tensors alone.

    Args:
        write: value → numbers.
        read: numbers, present value → value; what numbers cannot hold keeps the present value.
    """

    write: Callable[[Any], Sequence[float]]
    read: Callable[[Sequence[float], Any], Any]


class TensorState(nn.Module):
    """A module that saves the attributes it names, in place of buffers.

    Buffers do not serve here for three reasons. A rate has no shape before the first spike, and
    another one after a change of batch; these attributes load whatever shape the checkpoint has.
    `half()` converts buffers, and a rate in half precision stops moving; these attributes keep their
    dtype. DistributedDataParallel overwrites buffers with the values of process 0.

    It loads in whole or not at all. Some tools, such as torch.distributed.checkpoint, load only what
    a new object has, which are the counters without the tensors: a rate would be wrong. So a
    checkpoint also says which tensors are there, and those that are missing are reported.
    """

    state: tuple[str, ...] = ()  # attributes that hold a tensor or None
    counters: tuple[str, ...] = ()  # attributes that hold an integer
    checks: tuple[str, ...] = ()  # numbers that follow from these and from how the object was built
    codes: ClassVar[Mapping[str, Code]] = {}  # attributes that hold a setting

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        held = {name: value for name in self.state if (value := getattr(self, name)) is not None}
        for name, value in held.items():
            destination[prefix + name] = value if keep_vars else value.detach()
        destination[prefix + HELD] = torch.tensor([name in held for name in self.state], device="cpu")
        for name in self.counters:
            destination[prefix + name] = torch.tensor(getattr(self, name), device="cpu")
        for name in self.checks:
            number = float(getattr(self, name))
            destination[prefix + name] = torch.tensor(number, dtype=torch.float64, device="cpu")
        for name, code in self.codes.items():
            numbers = code.write(getattr(self, name))
            destination[prefix + name] = torch.tensor(numbers, dtype=torch.float64, device="cpu")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        flags = found[HELD].tolist() if HELD in found else []
        held = [name for place, name in enumerate(self.state) if all(flags[place : place + 1])]
        expected = [*held, HELD, *self.counters, *self.codes, *self.checks]
        missing = [prefix + name for name in expected if name not in found]
        missing_keys.extend(missing)
        unexpected_keys.extend(prefix + name for name in found if "." not in name and name not in expected)
        if missing:
            return
        before = vars(self).copy()
        self._take(found, held)
        for name in self.checks:
            if not math.isclose(number := getattr(self, name), saved := found[name].item()):
                vars(self).update(before)
                error_msgs.append(
                    f"`{prefix}{name}` should be {saved:g}, as it was saved. Found `{name} = {number:g}`. "
                    f"Build {type(self).__name__} with the arguments of the saved one, or load with "
                    f"`strict=False` and without the entries of `{prefix[:-1]}`."
                )
                return

    def _take(self, found: dict[str, Any], held: Sequence[str]) -> None:
        """Sets all attributes to what was found; those that were not held are None."""
        for name in self.state:
            old = getattr(self, name)
            device = None if old is None else old.device
            setattr(self, name, _lasting(found[name].detach(), device) if name in held else None)
        for name in self.counters:
            setattr(self, name, int(found[name]))
        for name, code in self.codes.items():
            setattr(self, name, code.read(found[name].tolist(), getattr(self, name)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for name in self.state:
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, _lasting(value, fn(value).device))
        return self


@torch.inference_mode(False)
def _lasting(tensor: Tensor, device: torch.device | None) -> Tensor:
    """Copies a tensor so that it can change in place, also if this runs in inference mode."""
    return tensor.to(device, copy=True)
