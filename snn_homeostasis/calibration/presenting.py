"""Presentations: a model runs on the same inputs again and again, each time from the same state."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..delays import DelayedLayer
from ..discovery import arguments_of, eagerly, isolated
from ..errors import ArgumentError, require
from ..observe import is_neuron, reset_membranes

__all__ = ["Presentation", "Run", "batches_of", "hooked", "runner"]

Run = Callable[[Any], object]


class Presentation:
    """Runs a model again and again from the same state, with membranes reset.

    The state is all that its modules keep: buffers, membranes, statistics of norms, attributes, and
    the random states. A run works on copies of them.

    Args:
        modules: all that may have a state.
        run: runs one batch as one sequence.

    Attributes:
        forwards: how many sequences have run.
    """

    def __init__(self, modules: Iterable[nn.Module], run: Run) -> None:
        self.forwards = 0
        self._modules, self._run = nn.ModuleList(dict.fromkeys(modules)), run

    @property
    def neurons(self) -> list[nn.Module]:
        """All neurons of the model."""
        return [module for module in self._modules.modules() if is_neuron(module)]

    def __call__(self, batch: Any) -> None:
        """Runs one sequence."""
        self.forwards += 1
        with eagerly(), isolated(self._modules):
            self.reset()
            self._run(batch)

    def reset(self) -> None:
        """Gives neurons and delayed layers a fresh state."""
        reset_membranes(self._modules.modules())
        for module in self._modules.modules():
            if isinstance(module, DelayedLayer):
                module.reset()


def runner(model: nn.Module | None, num_steps: int | None, run: Run | None) -> Run:
    """Returns what runs one batch as one sequence.

    Raises:
        ArgumentError: if nobody says how, or two do.
    """
    if run is not None:
        require(callable(run), "run", "be a function of one batch", run, "Pass `lambda x: net(x)`.")
        require(num_steps is None, "num_steps", "be left out with `run`", num_steps, "`run` runs all steps.")
        return run
    if model is None:
        raise ArgumentError(
            "`run` should be given where no single model is attached. Found `run = None`. Pass a function "
            "that runs a whole sequence, for example `run=lambda x: [net(x) for _ in range(25)]`."
        )
    is_count = num_steps is None or (isinstance(num_steps, int) and num_steps > 0)
    require(is_count, "num_steps", "be a positive integer or None", num_steps, "Pass for example 25.")
    calls = 1 if num_steps is None else num_steps

    def run_model(batch: Any) -> None:
        args, kwargs = arguments_of(batch)
        for _ in range(calls):
            model(*args, **kwargs)

    return run_model


def batches_of(inputs: Any, has_run: bool, device: torch.device) -> Iterator[Any]:
    """Yields the batches of what a user passes: a tensor, arguments, or a loader of batches."""
    if isinstance(inputs, Tensor | tuple | dict):
        yield inputs
        return
    require(
        hasattr(inputs, "__iter__"),
        "inputs",
        "be a batch, or a loader of batches",
        inputs,
        "Pass a tensor, a tuple of the model's arguments, a dict of them by name, or a DataLoader.",
    )
    for batch in inputs:
        first = batch[0] if isinstance(batch, list | tuple) and not has_run else batch  # labels follow
        yield first.to(device) if isinstance(first, Tensor) and not has_run else first


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Removes hooks at the end of the body."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield
