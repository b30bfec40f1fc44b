"""Presentations: a model runs on the same inputs again and again, each time from the same state."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..delays import DelayedLayer
from ..discovery import eagerly, keeping_random_states
from ..errors import ArgumentError, require
from ..observe import is_neuron

__all__ = ["BufferState", "Presentation", "Run", "batches_of", "buffers_of", "hooked", "runner"]

Run = Callable[[Any], object]


class Presentation:
    """Runs a model, and leaves its buffers, membranes and random states as they were, but reset.

    Args:
        modules: all that may have a state.
        run: runs one batch as one sequence.
        kept: parameters and buffers that are calibrated, and so do not come back.

    Attributes:
        forwards: how many sequences have run.
    """

    def __init__(self, modules: Iterable[nn.Module], run: Run, kept: set[int]) -> None:
        self.modules = list(dict.fromkeys(modules))
        self.run, self.forwards = run, 0
        reset(self.modules)
        buffers = [buffer for each in self.modules for buffer in buffers_of(each)]
        self._state = [buffer for buffer in buffers if id(buffer.value) not in kept]

    @property
    def neurons(self) -> list[nn.Module]:
        """All neurons of the model."""
        return [module for module in self.modules if is_neuron(module)]

    def __call__(self, batch: Any) -> None:
        """Runs one sequence."""
        self.forwards += 1
        with eagerly(), keeping_random_states(self._tensors()):
            try:
                self.run(batch)
            finally:
                self.restore()

    def restore(self) -> None:
        """Puts back the state from before the first sequence."""
        for state in self._state:
            state.restore()
        forget_inputs(self.modules)

    def _tensors(self) -> list[Tensor]:
        return [tensor for module in self.modules for tensor in module.parameters(recurse=False)]


@dataclass(frozen=True)
class BufferState:
    """A buffer of a module, with its values."""

    module: nn.Module
    name: str
    value: Tensor
    copy: Tensor

    def restore(self) -> None:
        """Puts the same tensor with the same values back."""
        if self.value.numel():
            self.value.copy_(self.copy)
        setattr(self.module, self.name, self.value)


def buffers_of(module: nn.Module) -> list[BufferState]:
    """Copies the buffers of a module, without those of its submodules."""
    named = module.named_buffers(recurse=False)
    return [BufferState(module, name, value, value.detach().clone()) for name, value in named]


def reset(modules: Iterable[nn.Module]) -> None:
    """Gives neurons and delayed layers a fresh state; `snntorch.utils.reset` misses nested ones."""
    for module in modules:
        reset_mem = getattr(module, "reset_mem", None)
        if is_neuron(module) and callable(reset_mem):
            reset_mem()
    forget_inputs(modules)


def forget_inputs(modules: Iterable[nn.Module]) -> None:
    """Lets delayed layers begin a new history."""
    for module in modules:
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
        args, kwargs = ((), batch) if isinstance(batch, dict) else (batch, {})
        args = args if isinstance(args, tuple) else (args,)
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
