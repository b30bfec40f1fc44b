"""How a model gets into the zoo, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

STEPS, BATCH, INPUTS, WIDTH = 4, 5, 6, 8
ZOO: list[Animal] = []
SEVERAL = "Several layers drive `lif`"
SIGN_DIFFERS = "with a sign that differs from place to place"


@dataclass(frozen=True)
class Animal:
    """A model and what is true of it.

    Attributes:
        name: shown by pytest.
        build: gives a new model.
        example: gives a new input.
        cells: (layer, neuron) or (layer, neuron, norm), by path.
        problems: phrases of the error, if its cells cannot be known.
        warnings: phrases of the warnings that it has to give.
        choice: arguments of `attach`.
        param: which of its parameters reaches a target.
        why_not: why none does, if so.
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


def has(*cells: str, example: Callable[[], Any] = steps, **truth: Any) -> Callable[[Any], Any]:
    """Puts a model into the zoo, with its cells as "layer neuron" or "layer neuron norm"."""

    def add(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        known = tuple(tuple(cell.split()) for cell in cells)
        ZOO.append(Animal(build.__name__, build, example, known, **truth))
        return build

    return add


def fails(*problems: str, example: Callable[[], Any] = steps, **truth: Any) -> Callable[[Any], Any]:
    """Puts a model into the zoo whose cells cannot be known, with phrases that have to be said."""
    return has(example=example, problems=problems, **truth)


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
