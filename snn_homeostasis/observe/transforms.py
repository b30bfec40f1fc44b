"""Calls in which torch traces or transforms a model: what looks like spikes then stands for others."""

from torch import Tensor
from torch._C import _current_graph_task_id as current_graph_task_id  # no public way to see a recompute
from torch._C import _get_tracing_state as tracing_state  # `torch.jit.is_tracing` takes three times as long
from torch._C import _len_torch_dispatch_stack as number_of_modes  # no public way to see modes
from torch._C._functorch import TransformType, peek_interpreter_stack  # no public way to see `torch.func`
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as modes  # as above

from ..errors import ArgumentError

__all__ = [
    "current_graph_task_id",
    "is_fake",
    "is_plain_call",
    "is_plain_now",
    "number_of_modes",
    "peek_interpreter_stack",
    "tracing_state",
]


def is_plain_call() -> bool:
    """Whether a call computes with data: no `torch.jit.trace`, `make_fx`, `torch.export` or `torch.func`.

    Raises:
        ArgumentError: under `torch.vmap`, which hides the samples from each other.
    """
    transform = peek_interpreter_stack()
    if transform is not None and transform.key() == TransformType.Vmap:
        raise ArgumentError(
            "`model` should be called with its batch, [B, *N]. Found a call under `torch.vmap`, which hides "
            "the samples from each other. Give it the whole batch, call `.eval()` or use `pause()`."
        )
    if transform is not None or tracing_state() is not None:
        return False
    return not any(mode.is_infra_mode() for mode in modes())  # others, such as counters, compute as usual


def is_plain_now() -> bool:
    """`is_plain_call`, quickly where no transform is at work."""
    return not (number_of_modes() or tracing_state() or peek_interpreter_stack()) or is_plain_call()


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has a shape and no values."""
    return hasattr(tensor, "fake_mode")
