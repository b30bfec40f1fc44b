"""References to parameters: found again by module and name at each use, changed in place."""

from dataclasses import dataclass
from typing import NoReturn

from torch import Size, Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedLayerError
from .changeable import Problem, computed, problem_of_parametrization, problem_of_tensor

__all__ = ["ParameterReference", "StateReference", "refer"]

LEGACY = Problem(
    "is recomputed at each forward by a legacy weight_norm or spectral_norm",
    "Use torch.nn.utils.parametrizations.weight_norm instead.",
)
GONE = Problem("is no Parameter any more since it was registered", "Attach again.")


@dataclass(frozen=True)
class ParameterReference:
    """One parameter of one module, looked up at each use.

    A checkpoint that is loaded with ``assign=True`` replaces Parameter objects; pruning and
    parametrizations come and go. So the reference holds the place of the parameter, not the object.
    """

    module: nn.Module
    name: str

    @property
    def plain(self) -> Tensor | None:
        """The Parameter that changes in place; None if the module computes the value from others."""
        # `_parameters`: an attribute takes longer to read, and a parametrization would compute it
        held = self.module._parameters
        value = held.get(self.name)
        if value is None and isinstance(getattr(self.module, f"{self.name}_mask", None), Tensor):
            return held.get(f"{self.name}_orig")  # pruned: the mask keeps its zeros
        return value

    @property
    def leaf(self) -> Tensor:
        """The Parameter behind the value; tied parameters share it."""
        value: Tensor | None = self.plain
        if value is None and (steps := self._parametrization) is not None:
            value = next(steps.parameters(), None)
        return self.tensor if value is None else value

    @property
    def tensor(self) -> Tensor:
        """The value that the layer computes with, or, of a pruned layer, its Parameter."""
        value = self.plain
        if value is None:
            value = getattr(self.module, self.name, None)
        if not isinstance(value, Tensor):
            self._refuse(GONE)
        return value

    @property
    def shape(self) -> Size:
        """The shape of the value; a parametrization computes it on a copy."""
        steps = self._parametrization
        return self.tensor.shape if steps is None else computed(steps).shape

    @property
    def values(self) -> Tensor | None:
        """The values to look at, which changes no buffer; None if they are no numbers that add up."""
        steps = self._parametrization
        value = self.tensor.detach() if steps is None else computed(steps)
        return value if problem_of_tensor(value) is None else None

    @property
    def form(self) -> object:
        """Another object whenever the Parameter is another one, or is parametrized in another way."""
        if (value := self.plain) is not None:
            return value
        return self if (steps := self._parametrization) is None else steps[-1]

    def write(self, value: Tensor) -> None:
        """Gives the layer a new value; the Parameters stay the same objects."""
        if (held := self.plain) is not None:
            held.copy_(value)
        else:
            setattr(self.module, self.name, value)

    def require_changeable(self, owner: str = "") -> None:
        """Raises UnsupportedLayerError if a change of the value is impossible, or would be lost.

        Args:
            owner: what the message calls the parameter, by default its name and the class of the layer.
        """
        if (value := self.plain) is not None:
            problem = problem_of_tensor(value)
        elif (steps := self._parametrization) is not None:
            problem = problem_of_parametrization(steps)
        else:
            problem = LEGACY if self._is_legacy else GONE
        if problem is not None:
            self._refuse(problem, owner)

    @property
    def exists(self) -> bool:
        """Whether the module has such a parameter, changeable or not."""
        return self.plain is not None or self._parametrization is not None or self._is_legacy

    @property
    def is_frozen(self) -> bool:
        """Whether the user has said that it should not change."""
        return isinstance(self.leaf, nn.Parameter) and not self.leaf.requires_grad

    @property
    def _parametrization(self) -> parametrize.ParametrizationList | None:
        if not parametrize.is_parametrized(self.module, self.name):
            return None
        steps = self.module.get_submodule(f"parametrizations.{self.name}")
        assert isinstance(steps, parametrize.ParametrizationList)
        return steps

    @property
    def _is_legacy(self) -> bool:
        behind = (getattr(self.module, f"{self.name}_{suffix}", None) for suffix in ("g", "orig"))
        return any(isinstance(each, nn.Parameter) for each in behind)

    def _refuse(self, problem: Problem, owner: str = "") -> NoReturn:
        raise UnsupportedLayerError(
            f"`{self.name}` should be a parameter that can be changed in place. "
            f"Found {owner or self}, which {problem.found}. {problem.remedy}"
        )

    def __str__(self) -> str:
        return f"`{self.name}` of {type(self.module).__name__}"


class StateReference(ParameterReference):
    """A reference to a Parameter or, if it is not learned, to a buffer."""

    @property
    def plain(self) -> Tensor | None:
        value = super().plain
        return self.module._buffers.get(self.name) if value is None else value


def refer(module: nn.Module, name: str) -> ParameterReference | None:
    """Returns the reference to parameter ``name`` of ``module``; None if there is no such parameter.

    Raises:
        UnsupportedLayerError: if the parameter has no shape yet.
    """
    reference = ParameterReference(module, name)
    if isinstance(reference.plain, nn.parameter.UninitializedParameter):
        reference.require_changeable()
    return reference if reference.exists else None
