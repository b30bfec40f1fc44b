"""The register of models, and what the models share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

STEPS, BATCH, INPUTS, WIDTH = 4, 5, 6, 8
MODEL_CASES: list[ModelCase] = []
SEVERAL = "Several layers drive `lif`"
SIGN_DIFFERS = "in some places and falls in others"


@dataclass(frozen=True)
class ModelCase:
    """A model, and the cells, warnings or problems that it has.

    Attributes:
        name: the name that pytest shows.
        build: builds a model.
        example: draws an input.
        cells: (layer, neuron) or (layer, neuron, norm), by path.
        problems: phrases of the error, if its cells cannot be known.
        warnings: one phrase of each warning.
        choice: arguments of `attach`.
        param: the parameter that brings the rates to a target.
        why_not: why no parameter does so, or None.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    cells: tuple[tuple[str, ...], ...]
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    choice: dict[str, Any] = field(default_factory=dict)
    param: str = "bias"
    why_not: str | None = None

    def __str__(self) -> str:
        return self.name


def steps() -> Tensor:
    return torch.rand(STEPS, BATCH, INPUTS)


def images() -> Tensor:
    return torch.rand(STEPS, BATCH, 1, 8, 8)


def one_step() -> Tensor:
    return torch.rand(BATCH, INPUTS)


def found(*cells: str, example: Callable[[], Any] = steps, **truth: Any) -> Callable[[Any], Any]:
    """Registers a model with its cells, each as "layer neuron" or "layer neuron norm"."""

    def add(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        known = tuple(tuple(cell.split()) for cell in cells)
        MODEL_CASES.append(ModelCase(build.__name__, build, example, known, **truth))
        return build

    return add


def refused(*problems: str, example: Callable[[], Any] = steps, **truth: Any) -> Callable[[Any], Any]:
    """Registers a model whose cells cannot be known, with phrases of the error."""
    return found(example=example, problems=problems, **truth)


def leaky(**kwargs: Any) -> snn.Leaky:
    return snn.Leaky(beta=0.9, init_hidden=True, **kwargs)


class Loop(nn.Module):
    """A model with a time loop of its own over `step`, from fresh neurons."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules():
            if getattr(module, "init_hidden", False):
                module.reset_mem()
        self.start(x)
        return torch.stack([self.step(each) for each in x])

    def start(self, x: Tensor) -> None: ...
