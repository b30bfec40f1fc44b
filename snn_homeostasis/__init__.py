"""Firing-rate homeostasis for plain snntorch models, in two added lines.

>>> import snntorch as snn, torch
>>> from snn_homeostasis import LinearHomeostasis
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
>>> homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
>>> for _ in range(20):
...     spikes = net(torch.rand(16, 4))
>>> homeostasis.step()

The way of a spike::

    your model:  fc ──► lif ──► …            never wrapped, renamed or subclassed; paired by discovery/
                  ▲       │ forward hook
                  │   observe/       spikes → rate              neurons, hook, estimator, rates
                  │       ▼
                  │   rules/         (rate, target) → drive     linear, scaling
                  │       ▼          laid out by layers/        connections, parameters, norms
                  │   distributed/   one sum over processes     groups, shares, reduction
                  │       ▼
                  │   updates/       slots → bounds → change    slots, bounds, changes, graphs
                  └───────┘          in place, under no_grad; all parameters or none

`homeostasis` and `rule` hold what every rule inherits, `cells` what belongs to one layer with its
neuron, `calibration` finds rates before training, `monitoring` only looks, `delays` has the delayed
layers, `lightning` a callback. Imports run one way, and each folder has one door.
"""

from importlib.metadata import PackageNotFoundError, version

from .calibration import CalibratedCell, CalibrationReport
from .cells import Band, Cell, FallingPlasticity, Settings
from .delays import DelayedConv2d, DelayedLayer, DelayedLinear
from .discovery import FoundCell, find_cells
from .errors import (
    ArgumentError,
    HomeostasisError,
    HomeostasisWarning,
    NonFiniteError,
    NoSpikesError,
    ProcessMismatchError,
    RemovedCellError,
    ReplacedModuleError,
    UnpairedNeuronError,
    UnsupportedLayerError,
    UnsupportedNeuronError,
    WaitingGraphError,
)
from .homeostasis import Homeostasis
from .layers import ChannelConnection, Connection, DenseConnection, OneToOneConnection, connect
from .monitoring import RateHistory, plot_rates, plot_summary
from .observe import (
    CumulativeRate,
    ExponentialRate,
    RateEstimator,
    RecentRate,
    WindowedRate,
    one_step,
    spikes_of,
)
from .rules import LinearHomeostasis, SynapticScaling
from .updates import Bounds, ClampBounds, PowerBounds, SharpBounds

try:
    __version__ = version("snn-homeostasis")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"

__all__ = [
    "ArgumentError",
    "Band",
    "Bounds",
    "CalibratedCell",
    "CalibrationReport",
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
    "FallingPlasticity",
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
    "RateHistory",
    "RecentRate",
    "RemovedCellError",
    "ReplacedModuleError",
    "Settings",
    "SharpBounds",
    "SynapticScaling",
    "UnpairedNeuronError",
    "UnsupportedLayerError",
    "UnsupportedNeuronError",
    "WaitingGraphError",
    "WindowedRate",
    "connect",
    "find_cells",
    "one_step",
    "plot_rates",
    "plot_summary",
    "spikes_of",
]
