"""State that comes and goes with use: saved where present, never in less than its precision."""

from collections.abc import Callable
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from .errors import HomeostasisError

__all__ = ["NoCopy", "TensorState"]


class NoCopy:
    """Base of objects that hold hooks on one model. They can be neither copied nor pickled."""

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self._refuse("copied")

    def __reduce__(self) -> NoReturn:
        self._refuse("pickled")

    def _refuse(self, how: str) -> NoReturn:
        raise HomeostasisError(
            f"`{type(self).__name__}` should not be {how}: it holds hooks on the modules of one model. "
            "Attach a new one to the other model and load this one's `state_dict()` into it."
        )


class TensorState(nn.Module):
    """A module that saves the attributes it names, in place of buffers.

    Buffers do not serve here for three reasons. A rate has no shape before the first spike, and
    another one after a change of batch; these attributes load whatever shape the checkpoint has.
    `half()` converts buffers, and a rate in half precision stops moving; these attributes keep their
    dtype. DistributedDataParallel overwrites buffers with the values of process 0.
    """

    state: tuple[str, ...] = ()  # attributes that hold a tensor or None
    counters: tuple[str, ...] = ()  # attributes that hold an integer

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name in self.state:
            value = getattr(self, name)
            if value is not None:
                destination[prefix + name] = value if keep_vars else value.detach()
        for name in self.counters:
            destination[prefix + name] = torch.tensor(getattr(self, name), device="cpu")

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
        for name in self.state:
            saved, old = state_dict.get(prefix + name), getattr(self, name)
            device = None if old is None else old.device
            setattr(self, name, None if saved is None else _lasting(saved.detach(), device))
        for name in self.counters:
            if prefix + name in state_dict:
                setattr(self, name, int(state_dict[prefix + name]))
            else:
                missing_keys.append(prefix + name)
        own = {key for key in state_dict if key.startswith(prefix) and "." not in key[len(prefix) :]}
        unexpected_keys.extend(own - {prefix + name for name in (*self.state, *self.counters)})

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
