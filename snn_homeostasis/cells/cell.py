"""A cell: one postsynaptic population and the parameters that drive it."""

import copy
import weakref
from collections.abc import Callable
from typing import Any, Self

from torch import nn

from ..delays import delay_channels
from ..errors import require
from ..layers import add_threshold, connect_cell
from ..observe import PresynapticHook, SpikeHook, SpikeListener, check_neuron, threshold_name
from ..updates import Updater
from .places import Places
from .ports import Agreement, MonitorPort, require_port

__all__ = ["Cell"]


class Cell:
    """One neuron module and one layer that drives it, neither of them changed.

    Args:
        layer: the layer whose parameters are regulated.
        neuron: the snntorch neuron whose rate they regulate.
        norm: the batch norm between the two, if there is one. It cancels the bias of the layer,
            so ``param="bias"`` then means the bias of the norm.
        delay: a module between layer and neuron that delays each channel, such as snntorch's
            SynapticDelay where it is installed; ``param="delay"`` then means its delay.
        sign: -1 for a layer that inhibits: the neuron fires less when it puts out more.

    Attributes:
        connection: the receptive view and the parameters of the layer.
        neuron: the hook on the neuron; ``cell.neuron.module`` is the user's own.
        presynaptic: the hook on the layer, off until a rule listens to what enters it.
        updater: the slots.
        places: where the model holds the modules, if that is known.

    Raises:
        UnsupportedLayerError: for a layer whose view is unknown, or that cannot be changed.
        UnsupportedNeuronError: for a neuron that emits no spikes.
        ArgumentError: for a sign that is neither 1 nor -1.

    >>> import snntorch as snn, torch
    >>> layer, neuron = torch.nn.Linear(3, 2), snn.Leaky(beta=0.9, init_hidden=True)
    >>> cell = Cell(layer, neuron)
    >>> _ = neuron(layer(torch.ones(5, 3)))
    >>> cell.neuron.spike.shape, cell.connection.postsyn_receptive(torch.rand(5, 2)).shape
    (torch.Size([5, 2]), torch.Size([5, 2, 1, 1]))
    """

    def __init__(
        self,
        layer: nn.Module,
        neuron: nn.Module,
        norm: nn.Module | None = None,
        delay: nn.Module | None = None,
        *,
        sign: int = 1,
    ) -> None:
        check_neuron(neuron)
        require(sign in (1, -1), "sign", "be 1 or -1", sign, "Take -1 for a layer that inhibits.")
        self.sign = sign
        self.connection = connect_cell(layer, neuron, norm)
        if delay is not None:
            delay_channels(self.connection, delay)
        add_threshold(self.connection, neuron, threshold_name(neuron))
        self.neuron = SpikeHook(neuron, self.connection.require_output)
        self.presynaptic = PresynapticHook(layer, neuron)
        self.updater = Updater(self.connection)
        self.places: Places | None = None
        self._join()
        self.neuron.open()

    def _join(self) -> None:
        """Joins hook and updater; nobody listens yet."""
        hook = self.neuron
        for slot in self.updater.slots.values():
            slot.samples = lambda: hook.samples  # `self` would make a cycle
        self._listeners: list[SpikeListener] = []
        self._monitors: dict[str, Any] = {}
        self._checks_inputs = False
        weakref.finalize(self, hook.close).atexit = False
        weakref.finalize(self, self.presynaptic.close).atexit = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies the cell along with its layer and neuron; nobody listens to the copy."""
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(vars(self))
        twin.connection = copy.deepcopy(self.connection, memo)
        twin.neuron = self.neuron.copied(twin.connection.require_output, memo)
        twin.presynaptic = PresynapticHook(twin.connection.layer, twin.neuron.module)
        twin.updater = copy.deepcopy(self.updater, memo)
        twin.places = copy.deepcopy(self.places, memo)
        twin._join()
        return twin

    @property
    def training(self) -> bool:
        """Whether the neuron is in training mode. Otherwise the cell is frozen."""
        return self.neuron.module.training

    def close(self) -> None:
        """Takes the hooks off the layer and the neuron and closes the slots."""
        self.neuron.close()
        self.presynaptic.close()
        self.updater.close()

    def listen(self, listener: SpikeListener) -> None:
        """Registers a listener and hands it every observed spike."""
        self._listeners.append(listener)
        self.neuron.listen(listener)
        self.updater.is_open = True

    def unlisten(self, listener: SpikeListener) -> None:
        """Ends `listen`. Without listeners the cell leaves the neuron and closes its slots."""
        others = [other for other in self._listeners if other is not listener]
        if others == self._listeners:
            return
        self._listeners = others
        self.neuron.unlisten(listener)
        if not others:
            self.close()

    def switch(self, listener: SpikeListener, is_on: bool) -> None:
        """Switches the observation for a registered listener on or off."""
        if any(other is listener for other in self._listeners):
            (self.neuron.listen if is_on else self.neuron.unlisten)(listener)

    def add_monitor(
        self, name: str, attr: str, constructor: Callable[[str, nn.Module], Any], pool: Any, /, **tags: Any
    ) -> Any:
        """Gives a trainer of inferno a monitor.

        Args:
            name: of the monitor.
            attr: ``"neuron.spike"``, ``"connection.synspike"`` for what enters the layer, or
                ``"monitors"`` for one that combines those before it.
            constructor: makes the monitor of the last part of the name and a module.
            pool: of the trainer; our monitors are never shared.
            **tags: of the trainer.

        Raises:
            ArgumentError: for any other attribute.
        """
        require_port(attr)
        port = MonitorPort(self._monitors)
        monitor = self._monitors[name] = constructor(attr.rpartition(".")[2], port)
        if attr == "connection.synspike":
            self.listen_to_inputs(port)
        else:
            self.listen(port)
        return monitor

    def listen_to_inputs(self, listener: SpikeListener) -> None:
        """Hands a listener what enters the layer: nonzero inputs ``[B, *in]``, one step at a time.

        Raises:
            UnsupportedLayerError: for a layer without `Connection.presyn_receptive`.
            ArgumentError: at the first step, if the neuron has other positions than the layer, or
                takes whole sequences.
        """
        _ = self.connection.input_view  # an error comes now, not at the first step
        if not self._checks_inputs:
            self.listen(Agreement(self.connection, self.presynaptic))
            self._checks_inputs = True
        self.presynaptic.listen(listener)

    def __repr__(self) -> str:
        layer, neuron = type(self.connection.layer).__name__, type(self.neuron.module).__name__
        return f"Cell({layer} -> {neuron})"
