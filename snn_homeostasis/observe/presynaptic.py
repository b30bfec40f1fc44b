"""The forward pre-hook on a layer: it reads what enters, hands it on, and changes nothing."""

from typing import Any

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from ..errors import ArgumentError, NoSpikesError
from .hook import NOT_IN_BACKWARD, SpikeListener, first_argument
from .transforms import current_graph_task_id, is_fake, is_plain_now
from .unobserved import LeftBehind

__all__ = ["PresynapticHook"]


class PresynapticHook(LeftBehind):
    """Observes what enters a layer, one step at a time, while the neuron behind it is in training mode.

    It is on the layer only while somebody listens.

    Args:
        layer: the user's layer; it is neither wrapped nor changed.
        neuron: the neuron that the layer drives; its mode counts.
    """

    def __init__(self, layer: nn.Module, neuron: nn.Module) -> None:
        self.layer, self.neuron = layer, neuron
        self._listeners: tuple[SpikeListener, ...] = ()
        self._last: Tensor | None = None
        self.calls = 0  # since the neuron has spiked
        self._handle: RemovableHandle | None = None

    @property
    def spike(self) -> Tensor:
        """What entered at the last observed step, ``[B, *in]``, boolean; raises NoSpikesError before it."""
        if self._last is None:
            raise NoSpikesError(
                f"`spike` should be read after {type(self.layer).__name__} has run while it is observed. "
                "Found no observation. Call `listen` first, then run the model in training mode."
            )
        return self._last

    def listen(self, listener: SpikeListener) -> None:
        """Hands each input from now on to ``listener``."""
        self._listeners += (listener,)
        if self._handle is None:
            self._handle = self.layer.register_forward_pre_hook(self, with_kwargs=True)

    def close(self) -> None:
        """Takes the hook off."""
        self._listeners, self._last = (), None
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.neuron.training or current_graph_task_id() != NOT_IN_BACKWARD:
            return  # frozen, or computed again by a checkpoint
        if not is_dynamo_compiling() and not is_plain_now():
            return
        inputs = first_argument(args, kwargs)
        if not isinstance(inputs, Tensor):
            raise ArgumentError(
                f"`input` of {type(layer).__name__} should be a tensor where a rule observes it. Found "
                f"{type(inputs).__name__}. Regulate the layer by a rule that needs only the rate."
            )
        if inputs.numel() == 0 or is_fake(inputs):
            return
        self._last = spikes = inputs.detach() != 0
        self.calls += 1
        for listener in self._listeners:
            if listener.training:
                listener.update_step(spikes)
