"""References to parameters: found again by module and name, changed in place."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedLayerError

__all__ = ["ParameterReference", "refer"]


@dataclass(frozen=True)
class ParameterReference(ABC):
    """One parameter of one module, looked up at each use.

    A checkpoint that is loaded with ``assign=True`` replaces Parameter objects. So the reference
    holds the place of the parameter, not the object.
    """

    is_plain: ClassVar[bool]
    """Whether the value is a Parameter that can change in place."""

    module: nn.Module
    name: str

    @property
    def tensor(self) -> Tensor:
        """The value that the layer computes with."""
        value: Tensor = getattr(self.module, self.name)
        return value

    @property
    @abstractmethod
    def leaf(self) -> Tensor:
        """The Parameter behind the value; tied parameters share it."""

    @abstractmethod
    def write(self, value: Tensor) -> None:
        """Gives the layer a new value; the Parameters stay the same objects."""

    def __str__(self) -> str:
        return f"`{self.name}` of {type(self.module).__name__}"


class PlainReference(ParameterReference):
    """An ordinary Parameter."""

    @property
    def tensor(self) -> Tensor:
        value = getattr(self.module, self.name, None)
        if not isinstance(value, nn.Parameter):
            remedy = "Prune or reparametrise before you attach, or attach again."
            _refuse(self.module, self.name, "is no Parameter any more since it was registered", remedy)
        return value

    leaf = tensor
    is_plain = True

    def write(self, value: Tensor) -> None:
        self.tensor.copy_(value)


class ParametrizedReference(ParameterReference):
    """A value computed by `torch.nn.utils.parametrize`, written through its setter."""

    @property
    def leaf(self) -> Tensor:
        return next(_parametrization(self.module, self.name).parameters())

    is_plain = False

    def write(self, value: Tensor) -> None:
        setattr(self.module, self.name, value)


def refer(module: nn.Module, name: str) -> ParameterReference | None:
    """Returns the reference to parameter ``name`` of ``module``; None if there is no such parameter.

    Raises:
        UnsupportedLayerError: if a change of the parameter is impossible or would be lost: it has no
            values yet, is expanded, or is recomputed at each forward.
    """
    if parametrize.is_parametrized(module, name):
        return _refer_parametrized(module, name)
    if isinstance(getattr(module, f"{name}_mask", None), Tensor):  # pruned: the mask keeps its zeros
        return PlainReference(module, f"{name}_orig")
    value = getattr(module, name, None)
    if isinstance(value, nn.Parameter):
        _require_writable(module, name, value)
        return PlainReference(module, name)
    if any(isinstance(getattr(module, f"{name}_{suffix}", None), nn.Parameter) for suffix in ("g", "orig")):
        found = "is recomputed at each forward by a legacy weight_norm or spectral_norm"
        _refuse(module, name, found, "Use torch.nn.utils.parametrizations.weight_norm instead.")
    return None


def _parametrization(module: nn.Module, name: str) -> parametrize.ParametrizationList:
    found = module.get_submodule(f"parametrizations.{name}")
    assert isinstance(found, parametrize.ParametrizationList)
    return found


def _refer_parametrized(module: nn.Module, name: str) -> ParametrizedReference:
    # a copy, because a power iteration would change the buffers of the module
    trial = copy.deepcopy(_parametrization(module, name))
    value = trial().detach()
    slope = torch.linspace(-1.0, 1.0, value.numel(), device=value.device, dtype=value.dtype)
    wanted = slope.view_as(value) - value  # with other signs and without symmetry
    try:
        trial.right_inverse(wanted)
        lost = not torch.allclose(trial(), wanted, rtol=1e-2, atol=1e-6)
    except (RuntimeError, NotImplementedError, ValueError):
        lost = True
    if lost:
        kinds = ", ".join(type(step).__name__ for step in trial)
        remedy = "Remove the parametrization, or regulate another parameter."
        _refuse(module, name, f"does not keep a value written to it ({kinds})", remedy)
    return ParametrizedReference(module, name)


def _require_writable(module: nn.Module, name: str, value: nn.Parameter) -> None:
    if isinstance(value, nn.parameter.UninitializedParameter):
        _refuse(module, name, "has no values yet", "Run the model once before you attach.")
    if any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True)):
        found = "is expanded: several entries share one memory"
        _refuse(module, name, found, "Replace it with `nn.Parameter(value.clone())`.")


def _refuse(module: nn.Module, name: str, found: str, remedy: str) -> NoReturn:
    raise UnsupportedLayerError(
        f"`{name}` should be a parameter that can be changed in place. "
        f"Found `{name}` of {type(module).__name__}, which {found}. {remedy}"
    )
