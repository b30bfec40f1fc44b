"""The forward hook on a neuron: it reads the spikes, hands them on, and changes nothing."""

import copy
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from ..errors import ArgumentError, NoSpikesError
from .membranes import Membranes
from .neurons import fires_ones, membrane_of, spikes_of, spikes_of_step
from .transforms import (
    current_graph_task_id,
    is_fake,
    is_plain_call,
    number_of_modes,
    peek_interpreter_stack,
    tracing_state,
)
from .unobserved import LeftBehind, Unobserved

__all__ = ["NOT_IN_BACKWARD", "SpikeHook", "SpikeListener", "first_argument"]

NOT_IN_BACKWARD = -1


class SpikeListener(Protocol):
    """What a hook hands spikes to, such as an estimator."""

    training: bool  # read at each call: a tool may set it without a call of `train`

    def update_step(self, spikes: Tensor, /) -> None:
        """Takes in one step ``[B, *N]`` of an eager model."""

    def update(self, spikes: Tensor, /) -> None:
        """Takes in a sequence ``[T, B, *N]``, also inside a compiled graph."""


class SpikeHook(LeftBehind):
    """Observes one neuron module, by default while it is in training mode.

    Args:
        module: the user's neuron; it is neither wrapped nor changed.
        check: is called with the shape ``[B, *N]`` whenever that differs from the last one.
        in_eval: observe in eval mode, too.

    Attributes:
        observed: the last observed step as the estimators saw it: another object at each step; None
            before the first.
        shape: ``[B, *N]``, the last that was found to fit the layer; None before the first.
        membranes: of the neuron since the last update; a hook of their own.
    """

    def __init__(self, module: nn.Module, check: Callable[[torch.Size], None], in_eval: bool = False) -> None:
        self.module, self.in_eval = module, in_eval
        self.frozen = False  # whether the last call was in eval mode
        self.group: Any = None  # the process group that trains the model, once it is known
        self.find_group: Callable[[DistributedDataParallel], Any] = _no_group  # set by a homeostasis
        self._wrapper: weakref.ref[DistributedDataParallel] | None = None  # the last around the model
        self._listeners: tuple[SpikeListener, ...] = ()
        self._check = check
        self._read = spikes_of.dispatch(type(module))
        self._read_membrane = membrane_of.dispatch(type(module))
        self.shape: torch.Size | None = None
        self.observed: Tensor | None = None
        self._is_traced = False
        self._handles: tuple[RemovableHandle, ...] = ()
        self.membranes = Membranes()
        self._look_at_size()

    @property
    def spike(self) -> Tensor:
        """The spikes of the last observed step, ``[B, *N]``, boolean; raises NoSpikesError before it."""
        if self.observed is None:
            raise NoSpikesError(
                f"`spike` should be read after {type(self.module).__name__} has run in training "
                "mode. Found no observation. Run the model first."
            )
        return self.observed != 0

    @property
    def neurons(self) -> torch.Size | None:
        """The shape ``*N`` of the neurons, None before the first call."""
        return None if self.observed is None else self.observed.shape[1:]

    @property
    def samples(self) -> int:
        """The number of samples in the last call; 0 before the first."""
        return 0 if self.observed is None else self.observed.shape[0]

    def listen(self, listener: SpikeListener) -> None:
        """Hands each observation from now on to ``listener``."""
        self.unlisten(listener)
        self._listeners += (listener,)
        self.frozen = False
        self.open()

    def unlisten(self, listener: SpikeListener) -> None:
        """Ends `listen`. Without listeners the hook leaves the neuron."""
        self._listeners = tuple(other for other in self._listeners if other is not listener)
        # a compiled graph does not notice that a hook has gone or come back
        if not self._listeners and not self._is_traced:
            self._unhook()

    def open(self) -> None:
        """Puts the hook on the neuron, unless it is there."""
        if not self._handles:
            self._handles = (
                self.module.register_forward_hook(self, with_kwargs=True),
                self.module.register_forward_pre_hook(self.membranes, with_kwargs=True),
            )

    def close(self) -> None:
        """Takes the hook off and drops every observation."""
        self._listeners = ()
        self.observed = None
        self.membranes.forget()
        self._unhook()

    def require_shape(self, shape: torch.Size) -> None:
        """Checks, once per shape, that spikes ``[B, *N]`` can come from the layer."""
        if shape == self.shape:
            return
        if len(shape) < 2:
            raise ArgumentError(
                f"`input` of {type(self.module).__name__} should have a batch dimension, [B, *N]. "
                f"Found spikes of shape {list(shape)}. Add it with `input.unsqueeze(0)`."
            )
        if 0 in shape:
            return  # such a shape never becomes the known one: a hook asks each time whether to go on
        self._check(shape)
        self.shape = shape

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # The model empties the caches of the processor between two calls: each function that is called
        # here, and each object that is looked at, costs some tenths of a microsecond.
        if is_dynamo_compiling():
            self._trace(module, args, kwargs, output)
            return
        if module is not self.module:
            _refuse_replica(module)
        if not (module.training or self.in_eval):
            self.frozen = True
            return
        if current_graph_task_id() != NOT_IN_BACKWARD:
            return  # a checkpoint computes the model again; these spikes are counted already
        if self._is_idle():
            self.frozen = False
            return
        if (number_of_modes() or tracing_state() or peek_interpreter_stack()) and not is_plain_call():
            return
        # `_active_ddp_module` is the only trace of a wrapper around a model that was attached before
        wrapper = DistributedDataParallel._active_ddp_module
        if wrapper is not None and (self._wrapper is None or self._wrapper() is not wrapper):
            self.group, self._wrapper = self.find_group(wrapper), weakref.ref(wrapper)
        raw = output
        if self._read is not spikes_of_step or type(output) is not Tensor:
            read = self._read(module, output)
            if not isinstance(read, tuple):
                self._observe_sequence(module, first_argument(args, kwargs), read, output)
                return
            (raw,) = read
            if type(raw) is not Tensor and is_fake(raw):
                return
        spikes = raw.detach() if raw.requires_grad else raw
        if spikes.shape != self.shape and not self._accepts(spikes):
            return
        if not self._is_binary():
            spikes = spikes != 0
        for listener in self._listeners:
            if listener.training:
                listener.update_step(spikes)
        self.observed = spikes
        # `_buffers` in place of `module.mem`, which takes longer than all of the above
        self.membranes.last = membrane = module._buffers.get("mem")
        if membrane is None:
            self.membranes.last = self._read_membrane(module, first_argument(args, kwargs), output)
            self.membranes.node = raw.grad_fn
        self.frozen = False

    def _observe_sequence(self, module: nn.Module, inputs: Any, raw: Tensor, output: Any) -> None:
        spikes = raw.detach()
        if is_fake(spikes) or len(spikes) == 0 or not self._accepts(spikes[0]):
            return
        self._hand_on(spikes if self._is_binary() else spikes != 0)
        self.observed = spikes[-1].clone()  # a view would keep the whole sequence
        self.membranes.last = self._read_membrane(module, inputs, output)
        self.membranes.node = raw.grad_fn
        self.frozen = False

    def _trace(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Observes inside a compiled graph, and leaves all checks to the next update."""
        self._is_traced = True
        if not (module.training or self.in_eval):
            self.frozen = True
            return
        if self._is_idle():
            self.frozen = False
            return
        if self.group is None and (wrapper := DistributedDataParallel._active_ddp_module) is not None:
            self.group = self.find_group(wrapper)
        raw = self._read(module, output)
        spikes = (raw[0].unsqueeze(0) if isinstance(raw, tuple) else raw).detach()
        if spikes.numel() > 0:
            self._hand_on(spikes != 0)  # whatever the factor: the compiler joins it with the count
            self.membranes.last = self._read_membrane(module, first_argument(args, kwargs), output)
            self.frozen = False
        if len(spikes) > 0:
            self.observed = spikes[-1] if isinstance(raw, tuple) else spikes[-1].clone()

    def _hand_on(self, spikes: Tensor) -> None:
        for listener in self._listeners:
            if listener.training:
                listener.update(spikes)

    def _accepts(self, spikes: Tensor) -> bool:
        """Checks spikes ``[B, *N]`` of another shape; false if there are none of them."""
        self.require_shape(spikes.shape)
        if spikes.numel() > 0:
            return True
        self.observed, self.frozen = spikes, False
        return False

    def _is_idle(self) -> bool:
        """Whether all that listen are in eval mode. A cell without a rule observes all the same."""
        for listener in self._listeners:
            if listener.training:
                return False
        return len(self._listeners) > 0  # torch 2.6 does not compile the `bool` of a tuple

    def _is_binary(self) -> bool:
        """Whether every spike is 1; waits for the device only after a change of what decides it."""
        factor = self.module._buffers.get("graded_spikes_factor")  # `_buffers` for its speed, as above
        own = self.module.__dict__
        if (
            factor is not self._factor
            or (factor is not None and factor._version != self._factor_version)
            or (factor is not None and self.membranes.last is None and _content(factor) != self._content)
            or own.get("spike_grad") is not self._codes[0]
            or own.get("fire") is not self._codes[1]
        ):
            self._look_at_size()
        return self._fires_ones

    def _look_at_size(self) -> None:
        factor = getattr(self.module, "graded_spikes_factor", None)
        self._fires_ones = fires_ones(self.module)
        own = self.module.__dict__
        self._codes = own.get("spike_grad"), own.get("fire")
        self._factor = None if isinstance(factor, nn.Parameter) else factor
        # `_version` is the only sign of a change in place; one through `.data` is seen at the next sequence
        self._factor_version = -1 if self._factor is None else self._factor._version
        self._content = None if self._factor is None else _content(self._factor)

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = ()

    def copied(self, check: Callable[[torch.Size], None], memo: dict[int, Any]) -> "SpikeHook":
        """Returns the hook of the copied neuron, without listeners."""
        twin = object.__new__(SpikeHook)
        vars(twin).update(vars(self), module=copy.deepcopy(self.module, memo), _check=check)
        twin._listeners, twin._handles, twin._is_traced = (), (), False
        twin.membranes = self.membranes.copied()
        left = memo.get(id(self))
        if isinstance(left, Unobserved) and left.handles:
            for handle in left.handles:
                handle.remove()
            twin.open()
        memo[id(self)] = twin
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Unobserved:
        # a copied model must not count into the estimates of the original
        twin = memo[id(self)] = Unobserved()
        twin.handles = copy.deepcopy(self._handles, memo)
        return twin


def _content(factor: Tensor) -> Any:
    """Returns what tells one value of a tensor from another, without a wait for a device."""
    return factor.tolist() if factor.device.type == "cpu" else factor.data_ptr()


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns what a call names first, by position or by name; None without arguments."""
    return args[0] if args else next(iter(kwargs.values()), None)


def _no_group(wrapper: DistributedDataParallel) -> None:
    """Stands for the search of a homeostasis."""


def _refuse_replica(module: nn.Module) -> NoReturn:
    raise ArgumentError(
        f"`model` should be the one that was attached. Found a copy of its {type(module).__name__} that "
        "shares its hooks, as DataParallel makes on each device. Use DistributedDataParallel, or "
        "`copy.deepcopy`."
    )
