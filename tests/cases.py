"""Layers and neurons that all tests share, and by hand, which neurons share each parameter."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from snn_homeostasis import Cell, DelayedConv2d, DelayedLinear, HomeostasisWarning

Index = tuple[int, ...]
Drivers = Callable[[Index], list[int]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Built:
    """One freshly built layer and neuron.

    Attributes:
        layer: whose parameters are regulated.
        neuron: which they drive.
        run: one call with random input for that many samples; returns what the neuron returned.
        norm: the batch norm between the two.
        names: where the parameters are found in the layer.
    """

    layer: nn.Module
    neuron: nn.Module
    run: Callable[[int], Any]
    norm: nn.Module | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def cell(self) -> Cell:
        with warnings.catch_warnings():
            if isinstance(self.neuron, snn.AssociativeLeaky):
                warnings.simplefilter("ignore", HomeostasisWarning)
            return Cell(self.layer, self.neuron, self.norm)

    def parameter(self, kind: str) -> Tensor:
        owner = self.norm if self.norm is not None and kind == "bias" else self.layer
        return getattr(owner, self.names.get(kind, kind))


@dataclass(frozen=True)
class Case:
    """A way to build a layer and a neuron, and who shares their parameters.

    Attributes:
        id: shown by pytest.
        build: gives a new layer and neuron at each call.
        shape: of the neurons, ``*N``.
        drivers: "weight", "bias" and "delay", where there is one: index of an entry → the
            neurons that share it, as flat positions in ``*N``.
        sequence: whether one call brings several time steps, on the first axis.
    """

    id: str
    build: Callable[[], Built]
    shape: Shape
    drivers: Mapping[str, Drivers]
    sequence: bool = False

    def __str__(self) -> str:
        return self.id

    def spikes(self, output: Any) -> Tensor:
        """What a neuron returned as ``[T, B, *N]``, boolean; independent of the package."""
        spikes = output[0] if isinstance(output, tuple) else output
        return (spikes if self.sequence else spikes[None]).detach() != 0


def last_axis(features: int, positions: int = 1) -> Drivers:
    """Row n of the parameter drives neuron n of each position; features vary fastest."""
    return lambda index: [position * features + index[0] for position in range(positions)]


def first_axis(positions: int) -> Drivers:
    """Row c of the parameter drives all positions of channel c; positions vary fastest."""
    return lambda index: [index[0] * positions + position for position in range(positions)]


def transposed(inputs: int, outputs: int, groups: int, positions: int) -> Drivers:
    """Entry (i, j) drives the j-th output channel of the group of input channel i."""
    channel = {}
    for group, i, j in itertools.product(range(groups), range(inputs // groups), range(outputs // groups)):
        channel[group * (inputs // groups) + i, j] = group * (outputs // groups) + j
    return lambda index: [channel[index[:2]] * positions + position for position in range(positions)]


def gates(hidden: int, one_gate: Drivers) -> Drivers:
    """Each of four gates in turn has one row for every neuron or channel."""
    owner = [row for _ in range(4) for row in range(hidden)]
    return lambda index: one_gate((owner[index[0]],))


def broadcast(sizes: Shape, neurons: Shape) -> Drivers:
    """An entry drives the neurons that it is multiplied with; ``sizes`` has one per axis."""
    grid = list(itertools.product(*map(range, neurons)))

    def drivers(index: Index) -> list[int]:
        index = (0,) * (len(neurons) - len(index)) + index
        return [
            flat
            for flat, position in enumerate(grid)
            if all(size == 1 or i == p for size, i, p in zip(sizes, index, position, strict=True))
        ]

    return drivers


def drive(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random input that lets some neurons fire often and others seldom."""
    return 2 * torch.randn(*shape, dtype=dtype)


def forward_case(
    id: str,
    layer: Callable[[], nn.Module],
    inputs: Shape | tuple[Shape, ...],
    shape: Shape,
    drivers: Drivers | Mapping[str, Drivers],
    *between: Callable[[], nn.Module],
    norm: Callable[[], nn.Module] | None = None,
    **names: str,
) -> Case:
    """A layer in front of a Leaky, with modules ``between`` them."""
    shapes = inputs if isinstance(inputs[0], tuple) else (inputs,)

    def build() -> Built:
        first, neuron = layer().double(), snn.Leaky(beta=0.7, threshold=0.3, init_hidden=True).double()
        batch_norm = None if norm is None else norm().double()
        rest = [batch_norm] if batch_norm is not None else []
        chain = nn.Sequential(*rest, *(make() for make in between), neuron)
        return Built(
            first, neuron, lambda b: chain(first(*(drive(b, *each) for each in shapes))), batch_norm, names
        )

    both = drivers if isinstance(drivers, Mapping) else {"weight": drivers, "bias": drivers}
    return Case(id, build, shape, both)


def inner_case(
    id: str,
    neuron: Callable[[], nn.Module],
    attribute: str,
    inputs: Shape,
    shape: Shape,
    drivers: Drivers | Mapping[str, Drivers],
    *,
    steps: int = 0,
    dtype: torch.dtype | None = torch.float64,
    **names: str,
) -> Case:
    """A layer inside a neuron, called with whole sequences if ``steps``; dtype None is the default."""
    time = (steps,) if steps else ()

    def build() -> Built:
        used = dtype or torch.get_default_dtype()
        module = neuron().to(used)

        def run(batch: int) -> Any:
            return module(drive(*time, batch, *inputs, dtype=used))

        return Built(getattr(module, attribute), module, run, names=names)

    both = drivers if isinstance(drivers, Mapping) else {"weight": drivers, "bias": drivers}
    return Case(id, build, shape, both, sequence=bool(steps))


def one_to_one_case(id: str, sizes: Shape, shape: Shape) -> Case:
    """An RLeaky whose spikes are multiplied with a ``V`` of these sizes."""
    padded = (1,) * (len(shape) - len(sizes)) + sizes
    return inner_case(
        id,
        lambda: snn.RLeaky(all_to_all=False, V=torch.full(sizes, 0.5), **LEAKY),
        "recurrent",
        shape,
        shape,
        {"weight": broadcast(padded, shape)},
        weight="V",
    )


def associative() -> nn.Module:
    neuron = snn.AssociativeLeaky(4, d_value=3, d_key=2, num_spiking_neurons=6, use_q_projection=False)
    neuron.threshold.fill_(0.2)
    return neuron


def weight_normed(layer: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(layer)


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(6, 5), "weight", amount=0.4)


def with_delay(drivers: Drivers) -> Mapping[str, Drivers]:
    return {"weight": drivers, "bias": drivers, "delay": drivers}


class ScaledLinear(nn.Linear):
    """A user's own subclass."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


def _transposed_case(
    id: str, cls: type[nn.Module], inputs: Shape, shape: Shape, *kernel: Any, **options: Any
):
    channels, positions = (inputs[0], shape[0]), math.prod(shape[1:])
    drivers = {
        "weight": transposed(*channels, options.get("groups", 1), positions),
        "bias": first_axis(positions),
    }
    return forward_case(id, lambda: cls(*channels, *kernel, **options), inputs, shape, drivers)


MAX_DELAY = 2
LEAKY: dict[str, Any] = {"beta": 0.7, "threshold": 0.3, "init_hidden": True}
FEED_FORWARD = [
    forward_case("linear", lambda: nn.Linear(6, 5), (6,), (5,), last_axis(5)),
    forward_case("linear-positions", lambda: nn.Linear(6, 5), (3, 6), (3, 5), last_axis(5, 3)),
    forward_case("linear-square", lambda: nn.Linear(6, 5), (5, 6), (5, 5), last_axis(5, 5)),
    forward_case("linear-grid", lambda: nn.Linear(6, 5), (2, 3, 6), (2, 3, 5), last_axis(5, 6)),
    forward_case(
        "linear-unflatten",
        lambda: nn.Linear(6, 12),
        (6,),
        (3, 2, 2),
        last_axis(12),
        lambda: nn.Unflatten(1, (3, 2, 2)),
    ),
    forward_case("linear-subclass", lambda: ScaledLinear(6, 5), (6,), (5,), last_axis(5)),
    forward_case("linear-no-bias", lambda: nn.Linear(6, 5, bias=False), (6,), (5,), {"weight": last_axis(5)}),
    forward_case("linear-weight-norm", lambda: weight_normed(nn.Linear(6, 5)), (6,), (5,), last_axis(5)),
    forward_case("linear-pruned", pruned, (6,), (5,), last_axis(5), weight="weight_orig"),
    forward_case("bilinear", lambda: nn.Bilinear(3, 4, 5), ((3,), (4,)), (5,), last_axis(5)),
    forward_case("conv1d", lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 8), (3, 4), first_axis(4)),
    forward_case("conv1d-dilated", lambda: nn.Conv1d(2, 3, 2, dilation=2), (2, 6), (3, 4), first_axis(4)),
    forward_case(
        "conv2d", lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 4), (3, 3, 2), first_axis(6)
    ),
    forward_case(
        "conv2d-groups",
        lambda: nn.Conv2d(4, 6, (3, 2), groups=2, padding=(1, 0)),
        (4, 3, 4),
        (6, 3, 3),
        first_axis(9),
    ),
    forward_case(
        "conv2d-depthwise",
        lambda: nn.Conv2d(3, 6, 3, groups=3, padding=2, dilation=2),
        (3, 3, 3),
        (6, 3, 3),
        first_axis(9),
    ),
    forward_case(
        "conv2d-pool",
        lambda: nn.Conv2d(2, 3, 3, padding=1),
        (2, 4, 4),
        (3, 2, 2),
        first_axis(4),
        lambda: nn.MaxPool2d(2),
    ),
    forward_case("conv2d-flatten", lambda: nn.Conv2d(2, 3, 3), (2, 4, 5), (18,), first_axis(6), nn.Flatten),
    forward_case(
        "conv2d-weight-norm", lambda: weight_normed(nn.Conv2d(2, 3, 2)), (2, 3, 4), (3, 2, 3), first_axis(6)
    ),
    forward_case(
        "conv2d-norm",
        lambda: nn.Conv2d(2, 3, 3),
        (2, 4, 5),
        (3, 2, 3),
        first_axis(6),
        norm=lambda: nn.BatchNorm2d(3),
    ),
    forward_case(
        "conv3d", lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 3, 4, 2), (3, 2, 2, 1), first_axis(4)
    ),
    forward_case(
        "conv3d-groups", lambda: nn.Conv3d(4, 2, 2, groups=2), (4, 2, 3, 2), (2, 1, 2, 1), first_axis(2)
    ),
    forward_case("norm1d", lambda: nn.BatchNorm1d(5), (5,), (5,), {"bias": last_axis(5)}),
    forward_case("norm2d", lambda: nn.BatchNorm2d(3), (3, 2, 3), (3, 2, 3), {"bias": first_axis(6)}),
    forward_case(
        "delayed-linear", lambda: DelayedLinear(6, 5, MAX_DELAY), (6,), (5,), with_delay(last_axis(5))
    ),
    forward_case(
        "delayed-linear-positions",
        lambda: DelayedLinear(6, 5, MAX_DELAY, bias=False),
        (3, 6),
        (3, 5),
        {kind: last_axis(5, 3) for kind in ("weight", "delay")},
    ),
    forward_case(
        "delayed-conv2d",
        lambda: DelayedConv2d(4, 6, (3, 2), MAX_DELAY, stride=(1, 2), padding=(1, 0), groups=2),
        (4, 3, 4),
        (6, 3, 2),
        with_delay(first_axis(6)),
    ),
    _transposed_case(
        "transposed1d", nn.ConvTranspose1d, (2, 3), (3, 6), 3, stride=2, padding=1, output_padding=1
    ),
    _transposed_case("transposed1d-groups", nn.ConvTranspose1d, (4, 3), (6, 6), 2, stride=2, groups=2),
    _transposed_case("transposed1d-depthwise", nn.ConvTranspose1d, (3, 4), (3, 6), 2, dilation=2, groups=3),
    _transposed_case(
        "transposed2d",
        nn.ConvTranspose2d,
        (2, 2, 3),
        (3, 4, 4),
        (3, 2),
        stride=(2, 1),
        padding=(1, 0),
        output_padding=(1, 0),
    ),
    _transposed_case(
        "transposed2d-groups", nn.ConvTranspose2d, (4, 2, 2), (6, 3, 4), 2, dilation=(1, 2), groups=2
    ),
    _transposed_case(
        "transposed2d-depthwise", nn.ConvTranspose2d, (2, 2, 2), (4, 4, 4), 2, stride=2, groups=2
    ),
    _transposed_case("transposed3d", nn.ConvTranspose3d, (2, 2, 1, 1), (3, 3, 2, 2), 2),
    _transposed_case("transposed3d-groups", nn.ConvTranspose3d, (4, 1, 2, 1), (4, 2, 3, 2), 2, groups=2),
    _transposed_case(
        "transposed3d-depthwise", nn.ConvTranspose3d, (2, 1, 1, 1), (2, 2, 2, 2), 2, stride=2, groups=2
    ),
]
INNER = [
    # spikes are float32 whatever the dtype of a neuron, and so are the layers that they pass through
    inner_case(
        "rleaky-linear",
        lambda: snn.RLeaky(linear_features=5, **LEAKY),
        "recurrent",
        (5,),
        (5,),
        last_axis(5),
        dtype=torch.float32,
    ),
    inner_case(
        "rleaky-conv2d",
        lambda: snn.RLeaky(conv2d_channels=3, kernel_size=3, **LEAKY),
        "recurrent",
        (3, 3, 2),
        (3, 3, 2),
        first_axis(6),
        dtype=torch.float32,
    ),
    one_to_one_case("rleaky-v-scalar", (), (5,)),
    one_to_one_case("rleaky-v-one", (1,), (3, 2, 2)),
    one_to_one_case("rleaky-v-neurons", (5,), (5,)),
    one_to_one_case("rleaky-v-channels", (3, 1, 1), (3, 2, 2)),
    one_to_one_case("rleaky-v-columns", (3, 1, 4), (3, 2, 4)),
    inner_case(
        "rsynaptic-linear",
        lambda: snn.RSynaptic(alpha=0.6, linear_features=5, **LEAKY),
        "recurrent",
        (5,),
        (5,),
        last_axis(5),
        dtype=torch.float32,
    ),
    inner_case(
        "rsynaptic-v",
        lambda: snn.RSynaptic(alpha=0.6, all_to_all=False, V=torch.full((5,), 0.5), **LEAKY),
        "recurrent",
        (5,),
        (5,),
        {"weight": last_axis(5)},
        weight="V",
    ),
    # the two LSTMs start from states of the default dtype, whatever the dtype of their weights
    inner_case(
        "slstm",
        lambda: snn.SLSTM(5, 5, threshold=0.05, init_hidden=True),
        "lstm_cell",
        (5,),
        (5,),
        gates(5, last_axis(5)),
        dtype=None,
        weight="weight_ih",
        bias="bias_ih",
    ),
    inner_case(
        "sconv2dlstm",
        lambda: snn.SConv2dLSTM(2, 3, 3, threshold=0.05, init_hidden=True),
        "conv",
        (2, 2, 3),
        (3, 2, 3),
        gates(3, first_axis(6)),
        dtype=None,
    ),
    inner_case(
        "sconv2dlstm-pool",
        lambda: snn.SConv2dLSTM(2, 3, 3, max_pool=2, threshold=0.05, init_hidden=True),
        "conv",
        (2, 4, 6),
        (3, 2, 3),
        gates(3, first_axis(6)),
        dtype=None,
    ),
    inner_case(
        "linearleaky",
        lambda: snn.LinearLeaky(0.7, 4, 5, threshold=0.3),
        "linear",
        (4,),
        (5,),
        last_axis(5),
        steps=4,
    ),
    inner_case(
        "leakyparallel",
        lambda: snn.LeakyParallel(4, 5, beta=0.7, threshold=0.3),
        "rnn",
        (4,),
        (5,),
        last_axis(5),
        steps=4,
        weight="weight_ih_l0",
        bias="bias_ih_l0",
    ),
    inner_case("associative", associative, "to_v", (4,), (6,), first_axis(2), steps=4),
]
CASES = FEED_FORWARD + INNER
PARAMS = [(case, kind) for case in CASES for kind in case.drivers]


def case(id: str) -> Case:
    return next(each for each in CASES if each.id == id)


def pairwise(*factors: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Few rows in which every value of each factor meets every value of each other factor.

    Each row is the one that adds the most pairs, so the result is the same at each call.
    """
    values = [list(factor) for factor in factors]
    rows = list(itertools.product(*(range(len(each)) for each in values)))
    pairs = {row: set(itertools.combinations(enumerate(row), 2)) for row in rows}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(rows, key=lambda row: len(pairs[row] & missing))
        missing -= pairs[best]
        chosen.append(tuple(each[index] for each, index in zip(values, best, strict=True)))
    return chosen


class CommandedCell:
    """A layer, and neurons that fire on command: every rate is known."""

    def __init__(
        self, size: int = 1, *, value: float = 0.0, sign: int = 1, dtype: torch.dtype = torch.float32
    ) -> None:
        self.layer = nn.Linear(1, size).to(dtype)
        self.neuron = snn.Leaky(beta=0.0, threshold=0.5, init_hidden=True, reset_mechanism="none")
        self.cell = Cell(self.layer, self.neuron, sign=sign)
        with torch.no_grad():
            self.layer.weight.fill_(value)
            self.layer.bias.fill_(value)

    def fire(self, *samples: int) -> None:
        """One step in which all neurons of the samples with a 1 fire."""
        self.neuron(torch.tensor(samples).float()[:, None].expand(-1, len(self.layer.weight)))

    @property
    def weight(self) -> list[float]:
        return self.layer.weight.flatten().tolist()

    @property
    def bias(self) -> list[float]:
        return self.layer.bias.tolist()
