"""Several layers for one neuron, several neurons for one layer."""

import snntorch as snn
import torch
from torch import Tensor, nn

from .registry import INPUTS, SEVERAL, WIDTH, Loop, found, images, leaky


@found("conv lif", "shortcut lif", "fc out", warnings=(SEVERAL,), example=images)
class Residual(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shortcut, self.lif = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 1), leaky()
        self.fc, self.out = nn.Linear(4 * 64, 3), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.lif(self.conv(x) + self.shortcut(x)).flatten(1)))


@found("conv lif", "fc out", choice={"exclude": ["shortcut"]}, example=images)
class ResidualWithAChoice(Residual): ...


@found("left.0 left.1", "right.0 right.1", "fc lif")
class Branches(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(2 * WIDTH, 3), leaky()
        self.left = nn.Sequential(nn.Linear(INPUTS, WIDTH), leaky())
        self.right = nn.Sequential(nn.Linear(INPUTS, WIDTH), leaky())

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.fc(torch.cat([self.left(x), self.right(x)], dim=1)))


@found(
    "fc fast", "fc slow",
    warnings=("One bias drives several neurons: the bias of `fc` drives `slow`, `fast`",),
    why_not="one bias cannot bring two kinds of neurons to one rate",
)  # fmt: skip
class TwoNeuronsOfOneLayer(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.slow = nn.Linear(INPUTS, WIDTH), leaky()
        self.fast = snn.Leaky(beta=0.5, init_hidden=True)

    def step(self, x: Tensor) -> Tensor:
        current = self.fc(x)
        return self.slow(current) + self.fast(current)


@found("fc1 lif1", "fc2 lif2", warnings=("One weight drives several neurons",), param="weight")
class TiedWeights(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, INPUTS), leaky()
        self.fc2, self.lif2 = nn.Linear(INPUTS, INPUTS), leaky()
        self.fc2.weight = self.fc1.weight

    def step(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


@found("fc lif", "inhibition lif", warnings=(SEVERAL, "`lif` fires less when `inhibition` puts out more"))
class Inhibited(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.inhibition, self.lif = nn.Linear(INPUTS, WIDTH), nn.Linear(INPUTS, WIDTH), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.fc(x) - 0.5 * self.inhibition(x))


@found(
    "fc lif", "gate lif",
    warnings=(SEVERAL, "The input of `lif` rises with `gate` in some places"),
    why_not="a gate opens for both signs",
)  # fmt: skip
class Gated(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gate, self.lif = nn.Linear(INPUTS, WIDTH), nn.Linear(INPUTS, WIDTH), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.fc(x) * self.gate(x).sigmoid())


@found("value lif", choice={"exclude": ["query", "key"]})
class OwnAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key, self.query = nn.Linear(INPUTS, WIDTH), nn.Linear(INPUTS, WIDTH)
        self.value, self.lif = nn.Linear(INPUTS, WIDTH), leaky()

    def forward(self, x: Tensor) -> Tensor:
        self.lif.reset_mem()
        attention = (self.query(x) @ self.key(x).mT).softmax(-1)
        return self.lif(attention @ self.value(x))
