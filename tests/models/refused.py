"""Models whose cells cannot be known, and phrases of the error for each."""

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .branching import OwnAttention
from .registry import BATCH, INPUTS, STEPS, WIDTH, Loop, images, leaky, one_step, refused
from .ways import TwoBranches


@contextmanager
def deprecated() -> Iterator[None]:
    """Silences the warnings of torch about deprecated parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class TwoLayers(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, WIDTH), leaky()
        self.fc2, self.lif2 = nn.Linear(WIDTH, WIDTH), leaky()


@refused("`lif2` (Leaky): no layer reaches it, only weights that are used without their layer: `fc2.weight`")
class WeightWithoutItsLayer(TwoLayers):
    def step(self, x: Tensor) -> Tensor:
        return self.lif2(F.linear(self.lif1(self.fc1(x)), self.fc2.weight))


@refused(
    "`lif1` (Leaky): the output of `fc1`, of shape [5, 8], reaches it with its channels reordered or mixed"
)
class WeightBehindALayer(TwoLayers):
    def step(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2(self.lif1(self.fc1(x) @ self.fc2.weight)))


@refused("`lif2` (Leaky): no layer reaches it. Data cannot be followed through NumPy")
class ThroughNumPy(TwoLayers):
    def step(self, x: Tensor) -> Tensor:
        current = self.fc2(self.lif1(self.fc1(x)))
        return self.lif2(torch.from_numpy(current.detach().numpy()))


@refused("`lif` (Leaky): no layer reaches it", "`attention.in_proj_weight`, `attention.out_proj.weight`")
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.lif = nn.MultiheadAttention(INPUTS, 2), leaky()

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.attention(x, x, x)[0])


@refused("`lif` (Leaky): different layers drive this one object in different calls: `fc1` or `fc2`")
class OneNeuronForTwoLayers(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS)
        self.lif = leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.fc2(self.lif(self.fc1(x))))


@refused("`lif1` (Leaky): different layers drive this one object in different calls: no layer or `fc1`")
class OneNeuronForInputAndLayer(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, INPUTS), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif1(self.fc1(self.lif1(x)))


@refused("`lif2` (Leaky): it was not called as `neuron(...)`")
class NeverCalled(TwoLayers):
    def step(self, x: Tensor) -> Tensor:
        return self.lif1(self.fc1(x))


@refused("`lif1` (Leaky): it was not called", "`lif2` (Leaky): it was not called")
class CalledThroughForward(TwoLayers):
    def step(self, x: Tensor) -> Tensor:
        return self.lif2.forward(self.fc2(self.lif1.forward(self.fc1(x))))


@refused("`lif2` (Leaky): no layer reaches it, only weights that are used without their layer: `fc2.weight`")
class LayerCalledThroughForward(TwoLayers):
    def step(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2.forward(self.lif1(self.fc1(x))))


class Channels(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv2d(1, 4, 3), leaky()


@refused(
    "`lif` (Leaky): the output of `conv`, of shape [5, 4, 6, 6], reaches it",
    "reordered or mixed, as [5, 144]",
    example=images,
)
class PermutedThenFlattened(Channels):
    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.conv(x).permute(0, 2, 3, 1).flatten(1))


@refused("reaches it with other features than the layer has channels, as [5, 6, 6, 4]", example=images)
class ChannelsLast(Channels):
    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.conv(x).movedim(1, -1))


@refused("without a gradient that shows the order, as [5, 144]", example=images)
class FlattenedOutOfTheGraph(Channels):
    def step(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.lif(self.conv(x).permute(0, 2, 3, 1).flatten(1))


@refused("through a normalisation that cancels whatever is added to it", example=images)
class FunctionalNorm(Channels):
    def step(self, x: Tensor) -> Tensor:
        return self.lif(F.batch_norm(self.conv(x), None, None, training=True))


@refused("the output of `fc1`, of shape [5, 8], reaches it with other features", "the output of `side`")
class Concatenated(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.side, self.lif = nn.Linear(INPUTS, WIDTH), nn.Linear(INPUTS, 3), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(torch.cat([self.fc1(x), self.side(x)], 1))


@refused("the output of `query`", "the output of `key`")
class OwnAttentionWithoutAChoice(OwnAttention): ...


@refused("`lif` (Leaky): no layer reaches it, only the input of the model. Put a layer in between")
class RawInput(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.lif = leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(x)


@refused(
    "`lif` (Leaky): no layer reaches it, only weights that are used without their layer: `gru.weight_hh`",
    "`gru.weight_ih`",
)
class UnknownLayer(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lif = nn.GRUCell(INPUTS, WIDTH), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.gru(x))


@refused(
    "`lif` (Leaky): no layer reaches it, only weights that are used without their layer: `words.weight`",
    example=lambda: torch.randint(9, (STEPS, BATCH)),
)
class Embedded(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.lif = nn.Embedding(9, WIDTH), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.words(x))


@refused("`lif` (Leaky): no layer reaches it. Quantised layers are not regulated", "quantising `fc`")
class QuantisedLayer(Loop):
    def __init__(self) -> None:
        super().__init__()
        with deprecated():
            self.fc, self.lif = torch.ao.nn.quantized.dynamic.Linear(INPUTS, WIDTH), leaky()
            weight = torch.quantize_per_tensor(torch.rand(WIDTH, INPUTS), 0.01, 0, torch.qint8)
            self.fc.set_weight_bias(weight, None)

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.fc(x))


@refused("`front` (RecursiveScriptModule): it is scripted", example=one_step)
class Scripted(Loop):
    def __init__(self) -> None:
        super().__init__()
        with deprecated():
            self.front, self.lif = torch.jit.script(nn.Linear(INPUTS, WIDTH)), leaky()

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.front(x))


@refused("`fc` (LazyLinear): its parameters have no values yet", example=one_step)
def lazy() -> nn.Module:
    return nn.Sequential(OrderedDict(fc=nn.LazyLinear(WIDTH), lif=leaky()))


@refused("`1` (Leaky): the output of `0`, of shape [8], reaches it", example=lambda: torch.rand(INPUTS))
def unbatched() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), leaky())


@refused("the model has no spiking neuron", example=one_step)
def no_neuron() -> nn.Module:
    return nn.Linear(INPUTS, WIDTH)


@refused("`lif1` (Leaky): no gradient shows whether `fc1` reaches it", "whether `fc2`")
class StackedOutOfTheGraph(TwoBranches):
    def step(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            first, second = torch.stack([self.fc1(x), self.fc2(x)])
            return self.lif1(first) + self.lif2(second)


@refused(
    "`lif` (Leaky): its input does not change with the output of `fc` on",
    example=lambda: (one_step(), one_step()),
)
class Difference(nn.Module):
    """A bias cancels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(INPUTS, WIDTH), leaky()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.lif(self.fc(left) - self.fc(right))


@refused(
    "`lif1` (Leaky): the output of `fc1`, of shape [5, 8], reaches it through a normalisation that cancels"
)
class CentredInTheBatch(TwoLayers):
    def step(self, x: Tensor) -> Tensor:
        current = self.fc1(x)
        return self.lif2(self.fc2(self.lif1(current - current.mean(0))))


@refused("not change with the output of `fc1` on this example", "not change with the output of `fc2` on this")
class RoundedOrDead(TwoLayers):
    def step(self, x: Tensor) -> Tensor:
        spikes = self.lif1(self.fc1(x).round().flip(1))
        return self.lif2(torch.relu(self.fc2(spikes) - 100).flip(1))


@refused("its input does not change with the output of `fc2` on this example")
class BranchOfWeightZero(TwoLayers):
    def step(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2(self.lif1(self.fc1(x))) * 0.0 + self.fc1(x))


@refused("`lif1` (Leaky): the output of `fc1`, of shape [5, 8], reaches it with its channels reordered")
class ReorderedLater(TwoLayers):
    def start(self, x: Tensor) -> None:
        self.later = False

    def step(self, x: Tensor) -> Tensor:
        current = self.fc1(x).flip(1) if self.later else self.fc1(x)
        self.later = True
        return self.lif2(self.fc2(self.lif1(current)))


@refused("the output of `lstm`, of shape [5, 8], reaches it with its channels reordered")
class ReorderedState(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.lif = nn.LSTMCell(INPUTS, WIDTH), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.lstm(x)[0].flip(1))


@refused(
    "`model` (NotRegistered): its `lifs` holds modules that are not registered: make it an nn.ModuleList"
)
class NotRegistered(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.lifs = nn.Linear(INPUTS, WIDTH), leaky(), [leaky()]

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.lifs[0](self.fc(x)))


class OwnNeuron(snn.Leaky):
    """Carries a layer inside that is not registered."""

    def __init__(self) -> None:
        super().__init__(beta=0.9, init_hidden=True)
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.fc(x))


@refused("`lif` (OwnNeuron): it computes with `lif.fc`, which is not a known layer of such a neuron")
class UnknownInside(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(INPUTS, WIDTH), OwnNeuron()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.fc(x))


@refused("`lif2` (Leaky): no layer reaches it, only weights that are used without their layer: `fc2.weight`")
class OfOneSign(TwoLayers):
    """Dale's law, by hand."""

    def step(self, x: Tensor) -> Tensor:
        return self.lif2(F.linear(self.lif1(self.fc1(x)), self.fc2.weight.abs()))
