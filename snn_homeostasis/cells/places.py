"""Where a model holds the modules of a cell: notices that another module has taken a place."""

import copy
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeAlias

from torch import nn

__all__ = ["Places"]

Step: TypeAlias = "tuple[weakref.ref[nn.Module], str, weakref.ref[nn.Module]]"


class Places:
    """The modules of a cell by their paths in a model, and whether the model still holds them.

    A module that was wrapped or moved, by an adapter for instance, is found again. A look costs one
    look-up for each step of a path. It keeps no model alive.

    Args:
        model: the model.
        modules: path → module; the model itself needs no place.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        self._model = weakref.ref(model)
        self._modules = {path: module for path, module in modules.items() if path}
        self._steps: list[Step] | None = None  # until the first look, and after a look that missed a module

    @property
    def model(self) -> nn.Module | None:
        """The model, None if it is gone."""
        return self._model()

    def replaced(self) -> dict[str, nn.Module | None]:
        """Returns what is now at the paths whose module the model does not hold any more."""
        if self._steps is None:
            return self._search()
        for parent, name, child in self._steps:
            holder = parent()
            # `_modules`: an attribute takes several times as long
            if holder is not None and holder._modules.get(name) is not child():
                return self._search()
        return {}

    def _search(self) -> dict[str, nn.Module | None]:
        model = self._model()
        if model is None:
            self._steps = []
            return {}
        paths = {module: path for path, module in model.named_modules()}
        gone = [path for path, module in self._modules.items() if module not in paths]
        held = [paths[module] for module in self._modules.values() if module in paths]
        self._steps = None if gone else [step for path in held for step in _steps(model, path)]
        now = dict(model.named_modules(remove_duplicate=False)) if gone else {}
        return {path: now.get(path) for path in gone}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        model = self._model()
        modules = copy.deepcopy(self._modules, memo)
        # where the model is gone, nothing can be replaced in it
        return type(self)(nn.Module() if model is None else copy.deepcopy(model, memo), modules)


def _steps(model: nn.Module, path: str) -> Iterator[Step]:
    """The parent, the name and the child of each step of a path."""
    parent = model
    for name in path.split("."):
        child = parent.get_submodule(name)
        yield weakref.ref(parent), name, weakref.ref(child)
        parent = child
