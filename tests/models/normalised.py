"""Models with norms between layer and neuron."""

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .registry import INPUTS, SEVERAL, STEPS, WIDTH, Loop, found, images, leaky


@found(*(f"fc{n} lif{n} bn{n}.{t}" for n in (1, 2) for t in range(STEPS)))
class NormPerStep(nn.Module):
    """Batch normalisation through time, with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, WIDTH, bias=False), leaky()
        self.fc2, self.lif2 = nn.Linear(WIDTH, 3, bias=False), leaky()
        self.bn1 = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(STEPS))
        self.bn2 = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(STEPS))

    def forward(self, x: Tensor) -> Tensor:
        for neuron in (self.lif1, self.lif2):
            neuron.reset_mem()
        spikes = 0
        for step, bn1, bn2 in zip(x, self.bn1, self.bn2, strict=True):
            spikes = spikes + self.lif2(bn2(self.fc2(self.lif1(bn1(self.fc1(step))))))
        return spikes


@found(
    *(f"fc lif bn.{t}" for t in range(STEPS)),
    param="weight",
    warnings=("BatchNorm1d cancels most of what the weight rule does",),
    why_not="the norms of BatchNormTT have no bias, and cancel what the weights do",
)
class BatchNormThroughTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(INPUTS, WIDTH, bias=False), leaky()
        self.bn = snn.BatchNormTT1d(WIDTH, STEPS)

    def forward(self, x: Tensor) -> Tensor:
        self.lif.reset_mem()
        return torch.stack([self.lif(bn(self.fc(step))) for step, bn in zip(x, self.bn, strict=True)])


@found("conv lif norm", "fc out bn", example=images)
class GroupNorm(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.lif = nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), leaky()
        self.bn, self.fc, self.out = nn.BatchNorm1d(3), nn.Linear(4 * 9, 3), leaky()

    def step(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.norm(self.conv(x)), 2)
        return self.out(self.bn(self.fc(self.lif(x).flatten(1))))


@found("fc lif norm", "norm2 lif2", example=images)
class LayerNorms(Loop):
    """The first has a bias for each channel, the second one for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.lif = nn.Linear(64, WIDTH), nn.LayerNorm(WIDTH), leaky()
        self.conv, self.norm2, self.lif2 = nn.Conv2d(1, 4, 3), nn.LayerNorm((4, 6, 6)), leaky()

    def step(self, x: Tensor) -> Tensor:
        spikes = self.lif2(self.norm2(self.conv(x)))
        return self.lif(self.norm(self.fc(x.flatten(1)))).sum(1) + spikes.sum((1, 2, 3))


@found("a lif bn", "b lif bn", warnings=(SEVERAL, "One bias drives several"), choice={"param": "bias"})
class NormOfASum(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn, self.lif = (
            nn.Linear(INPUTS, WIDTH), nn.Linear(INPUTS, WIDTH), nn.BatchNorm1d(WIDTH), leaky(),
        )  # fmt: skip

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.bn(self.a(x) + self.b(x)))


@found("norm lif")
class NormAlone(Loop):
    """The norm's bias drives the neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.lif = nn.BatchNorm1d(INPUTS), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.norm(x))
