"""Whether a parameter can change in place, and if not, why not and what to do."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from .sharded import local

__all__ = ["Problem", "computed", "problem_of_parametrization", "problem_of_tensor"]


class Problem(NamedTuple):
    """Why a parameter cannot change, to follow "which", and a remedy."""

    found: str
    remedy: str


QUANTISED = "Regulate the float model before it is quantised, or take another param."
# what keeps a tensor from changing, in an order in which each test may rely on those before it
TESTS: tuple[tuple[Callable[[Tensor], bool], Problem], ...] = (
    (
        lambda value: isinstance(value, nn.parameter.UninitializedParameter),
        Problem("has no values yet", "Run the model once before you attach."),
    ),
    (
        lambda value: value.is_meta,
        Problem(
            "has no values: it is on the meta device",
            "Call `model.to_empty(device=...)` and load its values before.",
        ),
    ),
    (
        lambda value: value.is_inference(),
        Problem("was made in inference mode", "Build or load the model outside `torch.inference_mode()`."),
    ),
    (
        lambda value: value.is_nested or value.layout != torch.strided,
        Problem("is sparse, nested or of another special layout", "Make it a dense Parameter."),
    ),
    (
        lambda value: not value.is_floating_point(),
        Problem("holds no real numbers: its type is {dtype}", QUANTISED),
    ),
    (
        lambda value: _overlaps_itself(local(value)),
        Problem(
            "is expanded: several entries share one memory",
            "Replace it with `nn.Parameter(value.detach().clone())`.",
        ),
    ),
    (
        lambda value: not _takes_additions(local(value)),
        Problem("does not take additions ({kind} of {dtype})", QUANTISED),
    ),
)


@torch.no_grad()
def problem_of_tensor(value: Tensor) -> Problem | None:
    """Returns what keeps a tensor from changing in place, or None."""
    for is_so, (found, remedy) in TESTS:
        if is_so(value):
            return Problem(found.format(dtype=value.dtype, kind=type(value).__name__), remedy)
    return None


@torch.no_grad()
def problem_of_parametrization(steps: ParametrizationList) -> Problem | None:
    """Returns why a parametrization loses the value that is written to it, or None."""
    try:
        trial = copy.deepcopy(steps)  # since a power iteration would change the buffers of the module
        value = trial()
        slope = torch.linspace(-1.0, 1.0, value.numel(), device=value.device, dtype=value.dtype)
        wanted = slope.view_as(value) - value  # with other signs and without symmetry
        trial.right_inverse(wanted)
        lost = not torch.allclose(trial(), wanted, rtol=1e-2, atol=1e-6)
    except Exception:  # a class of the user may raise anything
        lost = True
    kinds = ", ".join(type(step).__name__ for step in steps)
    remedy = "Remove the parametrization, or regulate another parameter."
    return Problem(f"does not keep a value written to it ({kinds})", remedy) if lost else None


@torch.no_grad()
def computed(steps: ParametrizationList) -> Tensor:
    """Returns the value that a parametrization computes, and changes no buffer."""
    value: Tensor = copy.deepcopy(steps)()
    return value


def _overlaps_itself(value: Tensor) -> bool:
    """Whether entries share memory; a layout whose rows interleave counts as such, too."""
    reach = 0
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False


def _takes_additions(value: Tensor) -> bool:
    """Whether what is added to a tensor is there afterwards; tries it on a copy of one entry."""
    try:
        entry = value.detach()[(slice(0, 1),) * value.ndim].clone()
        entry.copy_(torch.zeros_like(entry)).add_(torch.ones_like(entry))
        return bool((entry == 1.0).all())
    except Exception:  # a class of tensors may raise anything for what it does not know
        return False
