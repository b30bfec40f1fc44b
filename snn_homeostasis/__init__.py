"""Firing-rate homeostasis for plain snntorch models, in two added lines.

>>> import snntorch as snn, torch
>>> from snn_homeostasis import LinearHomeostasis
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
>>> homeostasis = LinearHomeostasis(plasticity=0.05, target=0.1, param="bias").attach(net)
>>> for _ in range(20):
...     spikes = net(torch.rand(16, 4))
>>> homeostasis.step()

The way of a spike: `neurons` (what a neuron returns) → `taps` (the hook) → `rates` (the
estimate) → `rules` (what to change) → `updates` (the slots) → `bounds` → the parameter.
"""

from .cells.cell import Cell
from .delays.base import DelayedLayer
from .delays.layers import DelayedConv2d, DelayedLinear
from .discovery import FoundCell, find_cells
from .errors import (
    ArgumentError,
    HomeostasisError,
    HomeostasisWarning,
    NonFiniteError,
    NoSpikesError,
    ProcessMismatchError,
    RemovedCellError,
    UnpairedNeuronError,
    UnsupportedLayerError,
    UnsupportedNeuronError,
    WaitingGraphError,
)
from .homeostasis import Homeostasis
from .layers.connections import ChannelConnection, Connection, DenseConnection, OneToOneConnection, connect
from .observe.estimator import RateEstimator
from .observe.neurons import one_step, spikes_of
from .observe.rates import CumulativeRate, ExponentialRate, WindowedRate
from .rules.linear import LinearHomeostasis
from .updates.bounds import Bounds, ClampBounds, PowerBounds, SharpBounds

__all__ = [
    "ArgumentError",
    "Bounds",
    "Cell",
    "ChannelConnection",
    "ClampBounds",
    "Connection",
    "CumulativeRate",
    "DelayedConv2d",
    "DelayedLayer",
    "DelayedLinear",
    "DenseConnection",
    "ExponentialRate",
    "FoundCell",
    "Homeostasis",
    "HomeostasisError",
    "HomeostasisWarning",
    "LinearHomeostasis",
    "NoSpikesError",
    "NonFiniteError",
    "OneToOneConnection",
    "PowerBounds",
    "ProcessMismatchError",
    "RateEstimator",
    "RemovedCellError",
    "SharpBounds",
    "UnpairedNeuronError",
    "UnsupportedLayerError",
    "UnsupportedNeuronError",
    "WaitingGraphError",
    "WindowedRate",
    "connect",
    "find_cells",
    "one_step",
    "spikes_of",
]
