"""Random layers and neurons, and by hand, which neurons share each parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import snntorch as snn
import torch
from cases import Drivers, broadcast, first_axis, gates, last_axis, transposed
from torch import Tensor, nn

from snn_homeostasis import DelayedConv2d, DelayedLayer, DelayedLinear

MAX_DELAY = 2
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """A layer and the neurons that it drives.

    Attributes:
        text: what it is, in one line.
        layer: whose parameters are regulated.
        neurons: one or two.
        inputs: the shape of each input, without the batch.
        shape: of the neurons, ``*N``.
        drivers: by kind of parameter, index of an entry → the neurons that share it.
        between: what the data pass from the layer to the neurons; None for a layer inside a neuron.
        norm: the batch norm between layer and neurons.
        names: where the parameters are found in the layer.
        sequence: whether one call brings several steps.
        takes_none: whether snntorch runs it on no samples.
        dtype: of inputs and parameters.
    """

    text: str
    layer: nn.Module
    neurons: tuple[nn.Module, ...]
    inputs: tuple[Shape, ...]
    shape: Shape
    drivers: Mapping[str, Drivers]
    between: nn.Module | None = None
    norm: nn.Module | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    sequence: bool = False
    takes_none: bool = True
    dtype: torch.dtype = torch.float32

    def call(self, batch: int, steps: int) -> None:
        """One call on random input, of several steps for a sequence."""
        time = (steps,) if self.sequence else ()
        values = [2 * torch.randn(*time, batch, *each, dtype=self.dtype) for each in self.inputs]
        if self.between is not None:
            values = [self.between(self.layer(*values))]
        for each in self.neurons:
            each(*values)

    @property
    def modules(self) -> list[nn.Module]:
        return [each for each in (self.layer, self.norm, *self.neurons) if each is not None]

    def parameter(self, kind: str) -> Tensor:
        owner = self.norm if self.norm is not None and kind == "bias" else self.layer
        return getattr(owner, self.names.get(kind, kind))

    def spikes(self, output: Any) -> Tensor:
        """What a neuron returned as ``[T, B, *N]``, boolean."""
        spikes = output[0] if isinstance(output, tuple) else output
        return (spikes if self.sequence else spikes[None]).detach() != 0

    def reset(self) -> None:
        for module in self.modules:
            if isinstance(module, DelayedLayer):
                module.reset()
            elif hasattr(module, "reset_mem"):
                module.reset_mem()


def subject(draw: Random) -> Subject:
    return draw.choice([linear, bilinear, convolution, convolution, transposition, inner, inner])(draw)


# ---- layers in front of neurons


def linear(draw: Random) -> Subject:
    positions = draw.choice([(), (), (3,), (2, 3)])
    inputs, outputs = draw.randint(1, 6), draw.randint(1, 6)
    options = {"bias": draw.random() < 0.8}
    if draw.random() < 0.4:
        layer: nn.Module = DelayedLinear(inputs, outputs, MAX_DELAY, **options)
    else:
        layer = nn.Linear(inputs, outputs, **options)
    drivers = last_axis(outputs, math.prod(positions))
    return in_front(draw, layer, [(*positions, inputs)], dict.fromkeys(kinds_of(layer), drivers))


def bilinear(draw: Random) -> Subject:
    left, right, outputs = (draw.randint(1, 4) for _ in range(3))
    drivers = dict.fromkeys(("weight", "bias"), last_axis(outputs))
    return in_front(draw, nn.Bilinear(left, right, outputs), [(left,), (right,)], drivers)


def convolution(draw: Random) -> Subject:
    dims, groups = draw.randint(1, 3), draw.randint(1, 3)
    inputs, outputs = groups * draw.randint(1, 2), groups * draw.randint(1, 2)
    kernel, stride, dilation, padding = (
        tuple(draw.randint(low, high) for _ in range(dims)) for low, high in ((1, 3), (1, 2), (1, 2), (0, 1))
    )
    sizes = [
        max(1, d * (k - 1) + 1 - 2 * p) + draw.randint(0, 2)
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    options = {"groups": groups, "stride": stride, "dilation": dilation, "padding": padding}
    options["bias"] = draw.random() < 0.8
    if dims == 2 and draw.random() < 0.4:
        layer: nn.Module = DelayedConv2d(inputs, outputs, kernel, MAX_DELAY, **options)
    else:
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](inputs, outputs, kernel, **options)
    return of_channels(draw, layer, (inputs, *sizes), lambda positions: first_axis(positions))


def transposition(draw: Random) -> Subject:
    dims, groups = draw.randint(1, 3), draw.randint(1, 3)
    inputs, outputs = groups * draw.randint(1, 2), groups * draw.randint(1, 2)
    kernel, stride, dilation = (tuple(draw.randint(1, high) for _ in range(dims)) for high in (3, 2, 2))
    options = {"groups": groups, "stride": stride, "dilation": dilation, "bias": draw.random() < 0.8}
    classes = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    layer = classes[dims - 1](inputs, outputs, kernel, **options)
    sizes = tuple(draw.randint(1, 2) for _ in range(dims))
    return of_channels(
        draw, layer, (inputs, *sizes), lambda positions: transposed(inputs, outputs, groups, positions)
    )


def of_channels(
    draw: Random, layer: nn.Module, inputs: Shape, of_weight: Callable[[int], Drivers]
) -> Subject:
    """A convolution, with nothing, pooling, a norm or a view between it and the neurons."""
    with torch.no_grad():
        channels, *sizes = layer(torch.zeros(2, *inputs)).shape[1:]
    if isinstance(layer, DelayedLayer):
        layer.reset()
    between, norm = nn.Sequential(), None
    if draw.random() < 0.2 and all(size > 1 for size in sizes):
        pools = (nn.MaxPool1d, nn.AvgPool2d, nn.MaxPool3d)
        between.append(pools[len(sizes) - 1](2))
        sizes = [size // 2 for size in sizes]
    if draw.random() < 0.2 and math.prod(sizes) > 1:
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(sizes) - 1](channels)
        between.insert(0, norm)
    if draw.random() < 0.2:
        between.append(nn.Flatten())
    positions = math.prod(sizes)
    drivers = {"weight": of_weight(positions), "bias": first_axis(positions), "delay": first_axis(positions)}
    kinds = {kind: drivers[kind] for kind in kinds_of(layer, norm)}
    return in_front(draw, layer, [inputs], kinds, between, norm)


def kinds_of(layer: nn.Module, norm: nn.Module | None = None) -> list[str]:
    with_bias = layer.bias is not None or norm is not None
    delayed = isinstance(layer, DelayedLayer)
    return ["weight", *(["bias"] if with_bias else []), *(["delay"] if delayed else [])]


def in_front(
    draw: Random,
    layer: nn.Module,
    inputs: list[Shape],
    drivers: Mapping[str, Drivers],
    between: nn.Module | None = None,
    norm: nn.Module | None = None,
) -> Subject:
    """A layer in front of one neuron, or of two that share its parameters."""
    dtype = draw.choice([torch.float32, torch.float64])
    between = between or nn.Sequential()
    neurons = [neuron(draw) for _ in range(draw.choice([1, 1, 1, 2]))]
    for module in (layer, between, *neurons):
        module.to(dtype)
    between.eval()  # a norm would count the zeros
    with torch.no_grad():
        current = between(layer(*(torch.zeros(2, *each, dtype=dtype) for each in inputs)))
    between.train()
    if isinstance(layer, DelayedLayer):
        layer.reset()
    shape = tuple(current.shape[1:])
    names = " and ".join(type(each).__name__ for each in neurons)
    text = f"{layer} → {names} {list(shape)}, {str(dtype)[6:]}" + (", norm" if norm else "")
    return Subject(
        text,
        layer,
        tuple(neurons),
        tuple(inputs),
        shape,
        drivers,
        between,
        norm,
        takes_none=norm is None,
        dtype=dtype,
    )


def neuron(draw: Random) -> nn.Module:
    options = {
        "threshold": draw.choice([0.2, 0.5, 1.0]),
        "reset_mechanism": draw.choice(["subtract", "zero", "none"]),
        "init_hidden": True,
    }
    makers = [
        lambda: snn.Leaky(beta=0.7, output=draw.random() < 0.5, **options),
        lambda: snn.Leaky(beta=0.7, graded_spikes_factor=draw.choice([0.5, 2.0]), **options),
        lambda: snn.Synaptic(alpha=0.5, beta=0.7, **options),
        lambda: snn.Alpha(alpha=0.8, beta=0.6, **options),
        lambda: snn.Lapicque(beta=0.7, **options),
        lambda: snn.RLeaky(beta=0.7, all_to_all=False, V=0.3, **options),
    ]
    return draw.choice(makers)()


# ---- layers inside neurons


def inner(draw: Random) -> Subject:
    return draw.choice(INNER)(draw)


def recurrent(draw: Random) -> Subject:
    """All to all: by a linear layer or by a convolution."""
    if draw.random() < 0.5:
        shape: Shape = (draw.randint(1, 6),)
        options, drivers = {"linear_features": shape[0]}, last_axis(*shape)
    else:
        shape = (draw.randint(1, 3), draw.randint(2, 4), draw.randint(2, 4))
        options, drivers = {"conv2d_channels": shape[0], "kernel_size": 3}, first_axis(shape[1] * shape[2])
    cls, own = draw.choice([(snn.RLeaky, {}), (snn.RSynaptic, {"alpha": 0.6})])
    module = cls(beta=0.7, threshold=0.3, init_hidden=True, **own, **options)
    return inside(module, "recurrent", shape, shape, {"weight": drivers, "bias": drivers})


def one_to_one(draw: Random) -> Subject:
    shape = draw.choice([(5,), (3, 2, 2), (2, 3)])
    sizes = tuple(draw.choice([1, size]) for size in shape[draw.randint(0, len(shape)) :])
    cls, own = draw.choice([(snn.RLeaky, {}), (snn.RSynaptic, {"alpha": 0.6})])
    module = cls(beta=0.7, threshold=0.3, init_hidden=True, all_to_all=False, V=torch.full(sizes, 0.5), **own)
    drivers = {"weight": broadcast((1,) * (len(shape) - len(sizes)) + sizes, shape)}
    return inside(module, "recurrent", shape, shape, drivers, weight="V")


def lstm(draw: Random) -> Subject:
    inputs, hidden = draw.randint(1, 5), draw.randint(1, 5)
    module = snn.SLSTM(inputs, hidden, threshold=0.05, init_hidden=True)
    drivers = dict.fromkeys(("weight", "bias"), gates(hidden, last_axis(hidden)))
    names = {"weight": "weight_ih", "bias": "bias_ih"}
    return inside(module, "lstm_cell", (inputs,), (hidden,), drivers, **names)


def convolutional_lstm(draw: Random) -> Subject:
    inputs, hidden, pool = draw.randint(1, 2), draw.randint(1, 3), draw.choice([0, 0, 2])
    sizes = tuple(2 * draw.randint(1, 2) for _ in range(2))
    module = snn.SConv2dLSTM(inputs, hidden, 3, max_pool=pool, threshold=0.05, init_hidden=True)
    shape = (hidden, *(size // 2 for size in sizes)) if pool else (hidden, *sizes)
    drivers = dict.fromkeys(("weight", "bias"), gates(hidden, first_axis(math.prod(shape[1:]))))
    return inside(module, "conv", (inputs, *sizes), shape, drivers)


def sequence(draw: Random) -> Subject:
    inputs, outputs = draw.randint(1, 4), draw.randint(1, 5)
    drivers = dict.fromkeys(("weight", "bias"), last_axis(outputs))
    if draw.random() < 0.5:
        module: nn.Module = snn.LinearLeaky(0.7, inputs, outputs, threshold=0.3)
        return inside(module, "linear", (inputs,), (outputs,), drivers, sequence=True)
    module = snn.LeakyParallel(inputs, outputs, beta=0.7, threshold=0.3)
    names = {"weight": "weight_ih_l0", "bias": "bias_ih_l0"}
    return inside(module, "rnn", (inputs,), (outputs,), drivers, sequence=True, **names)


INNER = [recurrent, one_to_one, lstm, convolutional_lstm, sequence]


def inside(
    module: nn.Module,
    attribute: str,
    inputs: Shape,
    shape: Shape,
    drivers: Mapping[str, Drivers],
    *,
    sequence: bool = False,
    **names: str,
) -> Subject:
    """A layer inside a neuron. Spikes are float32, and so is all that they pass."""
    layer = getattr(module, attribute)
    text = f"{type(layer).__name__} in {type(module).__name__} {list(shape)}"
    none = not isinstance(module, snn.LeakyParallel)
    return Subject(
        text, layer, (module,), (inputs,), shape, drivers, names=names, sequence=sequence, takes_none=none
    )
