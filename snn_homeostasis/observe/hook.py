"""A tap on a neuron: a forward hook that hands its spikes on, and only looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch._C import _current_graph_task_id as current_graph_task_id
from torch.autograd.graph import Node
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from ..distributed.wrappers import group_in_forward
from ..errors import ArgumentError, NoSpikesError
from ..state import StepCount
from .neurons import admit_neuron, binary_factor, membrane_of, spikes_of, spikes_of_step
from .shortcuts import is_current

__all__ = ["SpikeHook", "SpikeListener"]

NOT_IN_BACKWARD = -1


class SpikeListener(Protocol):
    """What a tap hands spikes to.

    Attributes:
        observed: if it has a ``take``, then this takes each step, and the tap counts it.
    """

    observed: StepCount

    def fit(self, spikes: Tensor, /) -> None:
        """Spikes ``[B, *N]`` of this shape and on this device come from now on."""

    def update(self, spikes: Tensor, /) -> None:
        """Takes steps ``[T, B, *N]`` of any shape; also inside a compiled graph."""


class SpikeHook:
    """Observes one neuron module while it is in training mode.

    At each step of an eager model it does as little as it can. What may change seldom (the
    shape, the factor of the spikes) is only compared; the membrane and its graph are kept by
    reference until the next call or the next update.

    Args:
        module: the user's neuron; it is neither wrapped nor changed.
        check: called with the shape ``[B, *N]`` whenever it differs from the last one.

    Attributes:
        frozen: whether a call in eval mode came after the last observation.
        group: of the processes that share the batch, as far as it is known.

    Raises:
        UnsupportedNeuronError: for a neuron that emits no spikes.
    """

    def __init__(self, module: nn.Module, check: Callable[[torch.Size], None]) -> None:
        admit_neuron(module)
        self.module = module
        self.frozen = False
        self.group: Any = None
        self._listeners: tuple[SpikeListener, ...] = ()
        self._quick: tuple[SpikeListener, ...] = ()
        self._others: tuple[SpikeListener, ...] = ()
        self._check = check
        self._read = spikes_of.dispatch(type(module))
        self._read_membrane = membrane_of.dispatch(type(module))
        self._shape: torch.Size | None = None
        self._checked_shape: torch.Size | None = None
        self._last: Tensor | None = None
        self._is_traced = False
        self._handle: RemovableHandle | None = None
        self.forget()
        self._look_at_factor()

    @property
    def spike(self) -> Tensor:
        """The spikes of the last observed step, ``[B, *N]``, boolean.

        Raises:
            NoSpikesError: before the first observation.
        """
        if self._last is None:
            raise NoSpikesError(
                f"`spike` should be read after {type(self.module).__name__} has run in training "
                "mode. Found no observation. Run the model first."
            )
        return self._last != 0

    @property
    def has_run(self) -> bool:
        """Whether anything was observed."""
        return self.samples > 0

    @property
    def neurons(self) -> torch.Size | None:
        """The shape ``*N`` of the neurons, None before the first call."""
        return None if self._last is None else self._last.shape[1:]

    @property
    def samples(self) -> int:
        """The number of samples in the last call; 0 before the first."""
        return 0 if self._last is None else len(self._last)

    @property
    def membrane(self) -> Tensor | None:
        """Finite exactly if the neuron's state was, at its last observed call; or None."""
        membrane = self._membrane
        return membrane.detach() if membrane is not None and membrane.requires_grad else membrane

    @property
    def graph(self) -> Node | None:
        """The end of the autograd graph of the last observed call, if there is one."""
        return self._node if self._membrane is None else self._membrane.grad_fn or self._node

    def listen(self, listener: SpikeListener) -> None:
        """Hands what is observed from now on to ``listener``."""
        self.unlisten(listener)
        self._listeners += (listener,)
        self.frozen = False
        self.open()

    def unlisten(self, listener: SpikeListener) -> None:
        """Ends `listen`; with the last listener the hook comes off."""
        self._listeners = tuple(other for other in self._listeners if other is not listener)
        self._shape = None
        # a compiled graph does not notice that a hook is gone, or back
        if not self._listeners and not self._is_traced:
            self._unhook()

    def open(self) -> None:
        """Puts the hook on the neuron, if it is not there."""
        if self._handle is None:
            self._handle = self.module.register_forward_hook(self, with_kwargs=True)

    def close(self) -> None:
        """Takes the hook off and lets go of all that was observed."""
        self._listeners = self._quick = self._others = ()
        self._shape = self._last = None
        self.forget()
        self._unhook()

    def forget(self) -> None:
        """Lets go of the membrane and the graph of the last call."""
        self._membrane: Tensor | None = None
        self._node: Node | None = None

    def require_shape(self, shape: torch.Size) -> None:
        """Checks that spikes ``[B, *N]`` can come from the layers; done anew for another shape.

        Raises:
            ArgumentError: if they cannot.
        """
        if shape == self._checked_shape:
            return
        if len(shape) < 2:
            raise ArgumentError(
                f"`input` of {type(self.module).__name__} should have a batch dimension, [B, *N]. "
                f"Found spikes of shape {list(shape)}. Add it with `input.unsqueeze(0)`."
            )
        if 0 not in shape:
            self._check(shape)
        self._checked_shape = shape

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # between two calls the model takes the caches of the processor: every function that is called
        # here, and every object that is looked at, costs some tenths of a microsecond
        if is_dynamo_compiling():
            self._trace(module, args, kwargs, output)
            return
        if module is not self.module:
            _refuse_replica(module)
        if not module.training:
            self.frozen = True
            return
        if current_graph_task_id() != NOT_IN_BACKWARD:
            return  # a checkpoint computes the model anew; the spikes were counted before
        if self.group is None and DistributedDataParallel._active_ddp_module is not None:
            self.group = group_in_forward()
        seen = output
        if self._read is not spikes_of_step or type(output) is not Tensor:
            if is_compiling():
                return  # an export is not observed
            read = self._read(module, output)
            if not isinstance(read, tuple):
                self._take_sequence(module, _first(args, kwargs), read, output)
                return
            (seen,) = read
        spikes = seen.detach() if seen.requires_grad else seen
        if spikes.shape != self._shape and not self._fit(spikes):
            return
        if not self._is_binary(module):
            spikes = spikes != 0
        for listener in self._others:
            _refuse_batched(spikes)
            listener.update(spikes.unsqueeze(0))
        for listener in self._quick:
            observed = listener.observed
            take = observed.take
            if take is None or observed.number >= observed.due:
                self._take_fitted(listener, spikes)
                continue
            try:
                take(spikes)
            except RuntimeError:  # from another device
                self._take_fitted(listener, spikes)
                continue
            observed.number += 1
        self._last = spikes
        self._membrane = membrane = module._buffers.get("mem")
        if membrane is None:
            self._node = seen.grad_fn
        self.frozen = False

    def _take_sequence(self, module: nn.Module, inputs: Any, seen: Tensor, output: Any) -> None:
        spikes = seen.detach()
        if len(spikes) == 0 or (spikes.shape[1:] != self._shape and not self._fit(spikes[0])):
            return
        self._hand_on(spikes if self._is_binary(module) else spikes != 0)
        self._last = spikes[-1].clone()  # not the whole sequence
        self._membrane = self._read_membrane(module, inputs, output)
        self._node = seen.grad_fn
        self.frozen = False

    def _trace(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """What a compiled graph does: the same, with all checks left to the next update."""
        self._is_traced = True
        if not module.training:
            self.frozen = True
            return
        if self.group is None:
            self.group = group_in_forward()
        seen = self._read(module, output)
        spikes = (seen[0].unsqueeze(0) if isinstance(seen, tuple) else seen).detach()
        if spikes.numel() > 0:
            self._hand_on(spikes != 0)  # whatever the factor; the compiler makes it one with the count
            self._membrane = self._read_membrane(module, _first(args, kwargs), output)
            self.frozen = False
        if len(spikes) > 0:
            self._last = spikes[-1] if isinstance(seen, tuple) else spikes[-1].clone()

    def _hand_on(self, spikes: Tensor) -> None:
        for listener in self._listeners:
            listener.update(spikes)

    def _fit(self, spikes: Tensor) -> bool:
        """Prepares for spikes ``[B, *N]`` of another shape; false if there are none."""
        _refuse_batched(spikes)
        self.require_shape(spikes.shape)
        if spikes.numel() == 0:
            self._last = spikes
            return False
        for listener in self._listeners:
            listener.fit(spikes)
        self._quick = tuple(filter(_is_quick, self._listeners))
        self._others = tuple(other for other in self._listeners if other not in self._quick)
        self._shape = spikes.shape
        return True

    def _take_fitted(self, listener: SpikeListener, spikes: Tensor) -> None:
        """Hands on a step for which the listener has to be prepared first."""
        _refuse_batched(spikes)
        listener.fit(spikes)
        if listener.observed.take is None:
            listener.update(spikes.unsqueeze(0))
            return
        listener.observed.take(spikes)
        listener.observed.number += 1

    def _is_binary(self, module: nn.Module) -> bool:
        """Whether every spike is 1; waits for the device only where the factor was changed."""
        factor = module._buffers.get("graded_spikes_factor")
        if factor is not self._factor or (factor is not None and factor._version != self._factor_version):
            self._look_at_factor()
        return self._has_binary_factor

    def _look_at_factor(self) -> None:
        self._has_binary_factor = binary_factor(getattr(self.module, "graded_spikes_factor", None))
        self._factor = self.module._buffers.get("graded_spikes_factor")
        self._factor_version = -1 if self._factor is None else self._factor._version

    def _unhook(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        # a copied model must not count into the original's estimates
        return _observe_nothing

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        # a pickled model does not take its observers along
        return _silent, ()


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _is_quick(listener: SpikeListener) -> bool:
    return listener.observed.take is not None and is_current(type(listener), "fit", "update")


def _refuse_replica(module: nn.Module) -> NoReturn:
    raise ArgumentError(
        f"`model` should be the one that was attached. Found a copy of its {type(module).__name__} that "
        "shares its hooks, as DataParallel makes on each device. Use DistributedDataParallel, or "
        "`copy.deepcopy`."
    )


def _refuse_batched(spikes: Tensor) -> None:
    if torch._C._functorch.is_batchedtensor(spikes):
        raise ArgumentError(
            "`model` should be called with its batch, [B, *N]. Found a call under `torch.vmap`, which hides "
            "the samples from each other. Give it the whole batch, call `.eval()` or use `pause()`."
        )


def _observe_nothing(*_: Any) -> None:
    """The hook that a copy of an observed model carries."""


def _silent() -> Callable[..., None]:
    return _observe_nothing
