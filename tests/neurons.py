"""One closed loop for every neuron class that snntorch exports, on its own layer."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_homeostasis import HomeostasisWarning

N = 12
BATCH = 32
STEPS = 20


@dataclass(frozen=True)
class Loop:
    """A layer, the neuron it drives, and one presentation of random input to both.

    `scale` multiplies the plasticity where a parameter acts only weakly on the rate.
    """

    layer: nn.Module
    neuron: nn.Module
    present: Callable[[], None]
    param: str = "bias"
    scale: float = 1.0


def exported_neurons() -> list[str]:
    """The names of the neuron classes in snntorch's namespace."""
    classes = {name: cls for name, cls in vars(snn).items() if inspect.isclass(cls)}
    return sorted(name for name, cls in classes.items() if cls.__module__.startswith("snntorch._neurons"))


def noise(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.5).float()


def step_loop(neuron: nn.Module, layer: nn.Module | None = None, *size: int) -> Loop:
    """A feed-forward layer and a neuron that is called once per step."""
    layer = layer or nn.Linear(10, N)
    size = size or (10,)

    def present() -> None:
        neuron.reset_mem()
        for _ in range(STEPS):
            neuron(layer(noise(BATCH, *size)))

    return Loop(layer, neuron, present)


def inner_loop(neuron: nn.Module, layer: nn.Module, *size: int) -> Loop:
    """A neuron whose own layer takes the input."""

    def present() -> None:
        neuron.reset_mem()
        for _ in range(STEPS):
            neuron(noise(BATCH, *size))

    return Loop(layer, neuron, present)


def sequence_loop(neuron: nn.Module, layer: nn.Module, inner: bool, size: int = 10) -> Loop:
    """A neuron that takes the whole sequence in one call."""

    def present() -> None:
        x = noise(STEPS, BATCH, size)
        neuron(x if inner else layer(x))

    return Loop(layer, neuron, present)


def linear_leaky(**kwargs: object) -> Loop:
    neuron = snn.LinearLeaky(beta=0.8, in_features=10, out_features=N, **kwargs)
    return sequence_loop(neuron, neuron.linear, inner=True)


def leaky_parallel(**kwargs: object) -> Loop:
    neuron = snn.LeakyParallel(10, N, beta=0.5, **kwargs)
    return sequence_loop(neuron, neuron.rnn, inner=True)


def associative() -> Loop:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HomeostasisWarning)
        neuron = snn.AssociativeLeaky(10, 4, 3, 12, use_q_projection=False)
    with torch.no_grad():
        neuron.to_k.weight.abs_()  # keys of one sign: then a value raises all its neurons
        neuron.to_k.bias.abs_()
    return sequence_loop(neuron, neuron.to_v, inner=True)


def slstm(**kwargs: object) -> Loop:
    neuron = snn.SLSTM(N, N, threshold=0.2, init_hidden=True, **kwargs)
    return inner_loop(neuron, neuron.lstm_cell, N)


def sconv2dlstm(**kwargs: object) -> Loop:
    neuron = snn.SConv2dLSTM(1, 4, 3, threshold=0.2, init_hidden=True, **kwargs)
    return inner_loop(neuron, neuron.conv, 1, 6, 6)


def recurrent(cls: type[nn.Module], drive: float, *args: float, **kwargs: object) -> Loop:
    """Regulates the recurrent layer alone, with a drive that makes every neuron fire a little."""
    neuron = cls(*args, init_hidden=True, **kwargs)

    def present() -> None:
        neuron.reset_mem()
        for _ in range(STEPS):
            neuron(drive * torch.rand(BATCH, N))

    if neuron.all_to_all:
        return Loop(neuron.recurrent, neuron, present)
    return Loop(neuron.recurrent, neuron, present, "weight", scale=10.0)


CLOSED_LOOPS: dict[str, list[Callable[[], Loop]]] = {
    "Leaky": [
        lambda: step_loop(snn.Leaky(beta=0.9, init_hidden=True)),
        lambda: step_loop(snn.Leaky(beta=0.9)),
        lambda: step_loop(snn.Leaky(beta=0.9, init_hidden=True, output=True)),
        lambda: step_loop(snn.Leaky(beta=0.9, init_hidden=True, reset_delay=False)),
        lambda: step_loop(snn.Leaky(beta=0.9, init_hidden=True, graded_spikes_factor=2.5)),
        lambda: step_loop(
            snn.Leaky(beta=0.9, graded_spikes_factor=torch.rand(N) + 0.5, learn_graded_spikes_factor=True)
        ),
        lambda: step_loop(snn.Leaky(beta=0.9, init_hidden=True), nn.Conv2d(1, 4, 3, stride=2), 1, 7, 7),
    ],
    "Synaptic": [
        lambda: step_loop(snn.Synaptic(alpha=0.5, beta=0.9, init_hidden=True)),
        lambda: step_loop(snn.Synaptic(alpha=0.5, beta=0.9)),
    ],
    "Alpha": [
        lambda: step_loop(snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True)),
        lambda: step_loop(snn.Alpha(alpha=0.9, beta=0.8)),
    ],
    "Lapicque": [
        lambda: step_loop(snn.Lapicque(beta=0.9, init_hidden=True)),
        lambda: step_loop(snn.Lapicque(R=2.0, C=4.0)),
    ],
    "RLeaky": [
        lambda: recurrent(snn.RLeaky, 0.35, 0.9, linear_features=N),
        lambda: recurrent(snn.RLeaky, 0.35, 0.9, all_to_all=False, V=torch.zeros(N)),
        lambda: step_loop(snn.RLeaky(beta=0.9, linear_features=N)),
    ],
    "RSynaptic": [
        lambda: recurrent(snn.RSynaptic, 0.15, 0.5, 0.9, linear_features=N),
        lambda: step_loop(snn.RSynaptic(alpha=0.5, beta=0.9, linear_features=N, init_hidden=True)),
    ],
    "SLSTM": [slstm, lambda: slstm(output=True)],
    "SConv2dLSTM": [sconv2dlstm, lambda: sconv2dlstm(max_pool=2)],
    "StateLeaky": [
        lambda: sequence_loop(snn.StateLeaky(beta=0.8, channels=N), nn.Linear(10, N), inner=False),
    ],
    "LinearLeaky": [linear_leaky, lambda: linear_leaky(graded_spikes_factor=1.5)],
    "LeakyParallel": [leaky_parallel, lambda: leaky_parallel(graded_spikes_factor=3.0)],
    "AssociativeLeaky": [associative],
}
