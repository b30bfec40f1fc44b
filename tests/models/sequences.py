"""Models that take whole sequences, or fold time into the batch."""

import snntorch as snn
import torch
from torch import Tensor, nn

from .registry import BATCH, INPUTS, STEPS, WIDTH, Loop, found, leaky


@found("0.rnn 0", "2.rnn 2")
def leaky_parallel_sequential() -> nn.Module:
    return nn.Sequential(snn.LeakyParallel(INPUTS, WIDTH), nn.Dropout(0.2), snn.LeakyParallel(WIDTH, 3))


@found("lif1.linear lif1", "lif2.linear lif2", "fc lif3")
class SequenceNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lif1 = snn.LinearLeaky(0.8, INPUTS, WIDTH)
        self.lif2 = snn.LinearLeaky(0.8, WIDTH, WIDTH)
        self.fc, self.lif3 = nn.Linear(WIDTH, 3), snn.StateLeaky(0.8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif3(self.fc(self.lif2(self.lif1(x)[0])[0]))[0]


@found("conv lif", example=lambda: torch.rand(STEPS, BATCH, 1, 6, 6))
class FoldedIntoTheBatch(nn.Module):
    """All steps pass the convolution as one batch, and a sequence neuron takes them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv2d(1, 2, 3), snn.StateLeaky(0.8, 2 * 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.conv(x.flatten(0, 1)).view(*x.shape[:2], -1))[0]


@found("fc1 lif1", "fc2 lif2")
class FoldedThenStepped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, WIDTH), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(WIDTH, 3), snn.Leaky(beta=0.9)

    def unrolled(self, lif: nn.Module, currents: Tensor) -> Tensor:
        mem, spikes = lif.init_leaky(), []
        for current in currents:
            spk, mem = lif(current, mem)
            spikes.append(spk)
        return torch.stack(spikes)

    def forward(self, x: Tensor) -> Tensor:
        folded = self.fc1(x.reshape(-1, INPUTS)).view(STEPS, BATCH, WIDTH)
        return self.unrolled(self.lif2, self.fc2(self.unrolled(self.lif1, folded)))


@found("conv lif", "fc out", example=lambda: torch.rand(BATCH, 2, 10))
class TimeOnTheLastAxis(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv1d(2, WIDTH, 3), leaky()
        self.fc, self.out = nn.Linear(WIDTH, 3), leaky()

    def forward(self, x: Tensor) -> Tensor:
        self.lif.reset_mem(), self.out.reset_mem()
        return sum(self.out(self.fc(self.lif(current))) for current in self.conv(x).unbind(-1))
