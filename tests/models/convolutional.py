"""Convolutional models."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .registry import BATCH, INPUTS, STEPS, Loop, found, images, leaky, steps


@found("0 2", "3 5", "7 8", example=lambda: torch.rand(BATCH, 1, 12, 12))
def convolutional_sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.MaxPool2d(2), leaky(), nn.Conv2d(4, 8, 3), nn.MaxPool2d(2), leaky(),
        nn.Flatten(), nn.Linear(8, 3), leaky(output=True),
    )  # fmt: skip


@found("conv1 lif1", "conv2 lif2", "fc lif3", example=images)
class ConvolutionalClass(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3, padding=1), leaky()
        self.conv2, self.lif2 = nn.Conv2d(4, 8, 3, padding=1, groups=2), leaky()
        self.fc, self.lif3 = nn.Linear(8 * 4, 3), leaky()

    def step(self, x: Tensor) -> Tensor:
        x = self.lif1(F.max_pool2d(self.conv1(x), 2))
        x = self.lif2(F.avg_pool2d(self.conv2(x), 2))
        return self.lif3(self.fc(x.view(len(x), -1)))


@found("conv lif", "fc out", example=images)
class FlattenedBeforeTheNeuron(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv2d(1, 4, 3), leaky()
        self.fc, self.out = nn.Linear(4 * 9, 3), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.lif(F.max_pool2d(torch.relu(self.conv(x)), 2).flatten(1))))


@found("conv1 lif1", "conv2 lif2", "fc lif3", example=lambda: torch.rand(STEPS, BATCH, 2, 16))
class OneDimensional(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv1d(2, 4, 5, stride=2), leaky()
        self.conv2, self.lif2 = nn.Conv1d(4, 4, 3, groups=4, dilation=2), leaky()
        self.fc, self.lif3 = nn.Linear(8, 3), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif3(self.fc(self.lif2(self.conv2(self.lif1(self.conv1(x)))).flatten(1)))


@found("conv lif", example=lambda: torch.rand(STEPS, 2, 1, 4, 6, 6))
class ThreeDimensional(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.lif = nn.Conv3d(1, 3, 3), nn.AdaptiveMaxPool3d(2), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.pool(self.conv(x)))


@found(
    "enc1 lif1 bn1", "enc2 lif2 bn2", "code lif3", "spread lif4", "dec1 lif5 bn5", "dec2 lif6", example=images
)
class SpikingAutoencoder(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.bn1, self.lif1 = nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), leaky()
        self.enc2, self.bn2, self.lif2 = nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), leaky()
        self.code, self.lif3 = nn.Linear(24, 10), leaky()
        self.spread, self.lif4 = nn.Linear(10, 24), leaky()
        self.dec1, self.bn5 = nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), nn.BatchNorm2d(4)
        self.dec2, self.lif5, self.lif6 = nn.ConvTranspose2d(4, 1, 3, 2, 1, 1), leaky(), leaky()

    def step(self, x: Tensor) -> Tensor:
        x = self.lif2(self.bn2(self.enc2(self.lif1(self.bn1(self.enc1(x))))))
        x = self.lif3(self.code(x.flatten(1)))
        x = self.lif4(self.spread(x)).unflatten(1, (6, 2, 2))
        return self.lif6(self.dec2(self.lif5(self.bn5(self.dec1(x)))))


@found("fc lif", "conv out", example=steps)
class UnfoldedBeforeTheNeuron(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(INPUTS, 2 * 4 * 4), leaky()
        self.conv, self.out = nn.ConvTranspose2d(2, 4, 2, groups=2), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.out(self.conv(self.lif(self.fc(x).view(-1, 2, 4, 4))))
