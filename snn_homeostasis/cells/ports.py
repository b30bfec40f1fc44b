"""Ports: where the monitors of inferno's trainers listen to a cell."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, require
from ..layers import Connection
from ..observe import PresynapticHook

__all__ = ["Agreement", "MonitorPort", "require_port"]

PORTS = ("neuron.spike", "connection.synspike", "monitors")


def require_port(attribute: str) -> None:
    """Raises ArgumentError for an attribute that no port serves."""
    remedy = "Take a trainer without delays: the spikes of our layers arrive at once."
    names = ", ".join(map(repr, PORTS))
    require(attribute in PORTS, "attr", f"be one of {names} for a monitor", attribute, remedy)


class MonitorPort(nn.Module):
    """A module that a monitor hooks: it is called once per observed step.

    Attributes:
        spike, synspike: what was observed, boolean, under both names that monitors read.
        monitors: the monitors of the cell by name, for one that combines them.
    """

    spike: Tensor
    synspike: Tensor

    def __init__(self, monitors: Mapping[str, Any]) -> None:
        super().__init__()
        self.monitors = SimpleNamespace(**monitors)

    def update_step(self, spikes: Tensor) -> None:
        self.spike = self.synspike = spikes != 0
        self(self.spike)

    def update(self, spikes: Tensor) -> None:
        for step in spikes:
            self.update_step(step)

    def forward(self, spike: Tensor) -> None:
        pass


class Agreement:
    """A listener that checks whether both sides of a synapse fit: their steps, samples and positions."""

    training = True

    def __init__(self, connection: Connection, inputs: PresynapticHook) -> None:
        self.connection, self.inputs = connection, inputs
        self._shape: torch.Size | None = None

    def update_step(self, spikes: Tensor) -> None:
        calls, self.inputs.calls = self.inputs.calls, 0
        if calls != 1:
            self._refuse("`layer` should run once before each step of its neuron", f"{calls} calls")
        if spikes.shape == self._shape:
            return
        before = self.connection.presyn_receptive(self.inputs.spike)
        after = self.connection.postsyn_receptive(spikes)
        if before.shape[-1] != after.shape[-1]:
            positions = f"{before.shape[-1]} and {after.shape[-1]}, as around a pooling"
            self._refuse("`layer` and `neuron` should have the same positions", positions)
        self._shape = spikes.shape

    def update(self, spikes: Tensor) -> None:
        self._refuse("`neuron` should take one step per call", "whole sequences")

    def _refuse(self, expected: str, found: str) -> NoReturn:
        raise ArgumentError(
            f"{expected}, for a rule that needs the input of {type(self.connection.layer).__name__}. Found "
            f"{found}. Regulate this cell by a rule that needs only the rate."
        )
