"""Models of images and events, with skips, blocks and attention."""

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .registry import BATCH, INPUTS, Loop, found, images, leaky, refused


class EdgesOfEvents(nn.Module):
    """One frame per call; the states of all neurons stay in the model, off the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3, padding=1), snn.Leaky(beta=0.9, threshold=0.5)
        self.conv2, self.lif2 = nn.Conv2d(4, 4, 3, padding=1), snn.Leaky(beta=0.5, threshold=0.3)
        self.lstm = snn.SConv2dLSTM(4, 1, 3, threshold=0.05, learn_threshold=True)
        self.rlif = snn.RLeaky(beta=0.9, threshold=0.7, conv2d_channels=1, kernel_size=3)
        self.states = [each.reset_mem() for each in (self.lif1, self.lif2, self.lstm, self.rlif)]

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, fourth = self.states
        x, first = self.lif1(self.conv1(x), first)
        x, second = self.lif2(self.conv2(x), second)
        x, *third = self.lstm(x, *third)
        x, membrane = self.rlif(x, *fourth)
        third, fourth = [each.detach() for each in third], [x.detach(), membrane.detach()]
        self.states = [first.detach(), second.detach(), third, fourth]
        return x


FRAME = {"example": lambda: torch.rand(BATCH, 1, 6, 6)}


@refused("`rlif` (RLeaky): ", **FRAME)
class EdgesOfEventsWithoutAChoice(EdgesOfEvents): ...


@found(
    "conv1 lif1", "conv2 lif2", "lstm.conv lstm", "rlif.recurrent rlif",
    choice={"pairs": {"rlif": "rlif.recurrent"}}, **FRAME,
)  # fmt: skip
class EdgesOfEventsWithAPair(EdgesOfEvents): ...


@found("conv1 lif1", "conv2 lif2", "lstm.conv lstm", choice={"exclude": ["rlif"]}, **FRAME)
class EdgesOfEventsLeftOut(EdgesOfEvents): ...


class Block(nn.Module):
    """Convolution, norm, neuron, with dropout between the norm and the neuron."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.drop, self.lif = nn.Dropout2d(0.1), leaky()

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.drop(self.norm(self.conv(x))))


@found(
    *(f"{block}.conv {block}.lif {block}.norm" for block in ("down1", "down2", "bottom", "up2", "up1")),
    example=images,
)
class UNet(Loop):
    """The way up is a transposed convolution, beside the spikes of the way down; no neuron at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = Block(1, 4), Block(4, 6), Block(6, 6)
        self.rise2, self.rise1 = (nn.ConvTranspose2d(6, size, 2, 2) for size in (6, 4))
        self.up2, self.up1, self.classes = Block(12, 6), Block(8, 4), nn.Conv2d(4, 2, 1)

    def step(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.bottom(F.max_pool2d(second, 2))
        x = self.up2(torch.cat([self.rise2(x), second], 1))
        return self.classes(self.up1(torch.cat([self.rise1(x), first], 1)))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.lif1, self.lif2, self.shortcut = leaky(), leaky(), nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        current = self.bn2(self.conv2(self.lif1(self.bn1(self.conv1(x)))))
        return self.lif2(current + self.shortcut(x))


@found(
    "stem.0 stem.2 stem.1",
    *(f"blocks.{n}.conv{i} blocks.{n}.lif{i} blocks.{n}.bn{i}" for n in (0, 1) for i in (1, 2)),
    "blocks.1.shortcut.0 blocks.1.lif2 blocks.1.shortcut.1",
    "fc out",
    warnings=("Several layers drive `blocks.1.lif2`",),
    example=images,
)
class ResidualNet(Loop):
    """Blocks with a shortcut: spikes that are added to a current, or a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), leaky())
        self.blocks = nn.ModuleList([ResidualBlock(4, 4, 1), ResidualBlock(4, 6, 2)])
        self.fc, self.out = nn.Linear(6, 3), leaky()

    def step(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.out(self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)))


@found("layers.0 neurons.0", "layers.2 neurons.2", "layers.3 neurons.3", "layers.6 neurons.6", example=images)
class FromAList(nn.Module):
    """A deep stack that is built from a list of widths; membranes are kept by number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.neurons, channels = nn.ModuleList(), nn.ModuleDict(), 1
        for number, width in enumerate((4, "pool", 6, 6, "pool")):
            self.layers.append(nn.MaxPool2d(2) if width == "pool" else nn.Conv2d(channels, width, 3, 1, 1))
            if width != "pool":
                self.neurons[str(number)], channels = snn.Leaky(beta=0.9, learn_beta=True), width
        self.layers.extend([nn.Flatten(), nn.Linear(24, 3)])
        self.neurons["6"] = snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        membranes = {number: lif.init_leaky() for number, lif in self.neurons.items()}
        total = torch.zeros(())
        for step in x:
            for number, layer in enumerate(self.layers):
                step = layer(step)
                if str(number) in membranes:
                    step, membranes[str(number)] = self.neurons[str(number)](step, membranes[str(number)])
            total = total + step
        return total


class SpikingAttention(Loop):
    """Queries, keys and values are spikes; their product drives a neuron, then comes a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale = nn.LayerNorm(INPUTS), 0.4
        self.query, self.key, self.value, self.out = (nn.Linear(INPUTS, INPUTS) for _ in range(4))
        self.q_lif, self.k_lif, self.v_lif, self.mixed_lif, self.out_lif = (leaky() for _ in range(5))

    def step(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = self.q_lif(self.query(normed)), self.k_lif(self.key(normed)), self.v_lif(self.value(normed))
        mixed = self.mixed_lif((q @ k.mT) @ v * self.scale)
        return x + self.out_lif(self.out(mixed))


TOKENS = {"example": lambda: torch.randn(4, BATCH, 3, INPUTS)}


@refused("`mixed_lif` (Leaky): no layer reaches it", **TOKENS)
class SpikingTransformer(SpikingAttention): ...


@found(
    "query q_lif", "key k_lif", "value v_lif", "out out_lif", choice={"exclude": ["mixed_lif"]}, **TOKENS
)  # fmt: skip
class SpikingTransformerWithAChoice(SpikingAttention): ...
