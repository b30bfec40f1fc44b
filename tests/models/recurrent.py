"""Recurrent models."""

import snntorch as snn
import torch
from torch import Tensor, nn

from .registry import INPUTS, SEVERAL, WIDTH, Loop, found, images, leaky, steps


@found("fc1 rlif", "rlif.recurrent rlif", choice={"exclude": "out"})
class RecurrentRegression(nn.Module):
    """Its output is a membrane that need not spike."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.rlif = nn.Linear(INPUTS, WIDTH), snn.RLeaky(beta=0.9, linear_features=WIDTH)
        self.fc2, self.out = nn.Linear(WIDTH, 1), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        spikes, mem = self.rlif.init_rleaky()
        out = self.out.init_leaky()
        membranes = []
        for step in x:
            spikes, mem = self.rlif(self.fc1(step), spikes, mem)
            _, out = self.out(self.fc2(spikes), out)
            membranes.append(out)
        return torch.stack(membranes)


@found("fc lif1", "lif1.recurrent lif1", "conv lif2", "lif2.recurrent lif2", example=steps)
class RecurrentNeurons(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif1 = (
            nn.Linear(INPUTS, 16),
            snn.RSynaptic(0.5, 0.9, linear_features=16, init_hidden=True),
        )
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.lif2 = snn.RLeaky(0.9, conv2d_channels=2, kernel_size=3, init_hidden=True)

    def step(self, x: Tensor) -> Tensor:
        return self.lif2(self.conv(self.lif1(self.fc(x)).view(-1, 1, 4, 4)))


@found("fc lif", "rec lif", warnings=(SEVERAL,))
class OwnRecurrence(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.rec, self.fc, self.lif = nn.Linear(WIDTH, WIDTH), nn.Linear(INPUTS, WIDTH), leaky()

    def start(self, x: Tensor) -> None:
        self.spikes = torch.zeros(x.shape[1], WIDTH)

    def step(self, x: Tensor) -> Tensor:
        self.spikes = self.lif(self.fc(x) + self.rec(self.spikes))
        return self.spikes


@found("fc lif", "rec lif", warnings=(SEVERAL,))
class RecurrenceFromTheSecondStep(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.rec, self.fc, self.lif = nn.Linear(WIDTH, WIDTH), nn.Linear(INPUTS, WIDTH), leaky()

    def start(self, x: Tensor) -> None:
        self.spikes = None

    def step(self, x: Tensor) -> Tensor:
        current = self.fc(x)
        if self.spikes is not None:
            current += self.rec(self.spikes)
        self.spikes = self.lif(current)
        return self.spikes


@found("fc lif")
class LateInput(Loop):
    """A transmission delay: the first step brings nothing yet."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(INPUTS, WIDTH), leaky()

    def start(self, x: Tensor) -> None:
        self.line = torch.zeros(x.shape[1], WIDTH)

    def step(self, x: Tensor) -> Tensor:
        arriving, self.line = self.line, self.fc(x)
        return self.lif(arriving)


@found("lstm1.lstm_cell lstm1", "lstm2.lstm_cell lstm2", "fc lif")
class SpikingLSTM(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.lstm1 = snn.SLSTM(INPUTS, INPUTS, threshold=0.1, init_hidden=True)
        self.lstm2 = snn.SLSTM(INPUTS, INPUTS, threshold=0.1, init_hidden=True)
        self.fc, self.lif = nn.Linear(INPUTS, 3), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.fc(self.lstm2(self.lstm1(x))))


@found("lstm1.conv lstm1", "lstm2.conv lstm2", "fc lif", example=images)
class ConvolutionalLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm1 = snn.SConv2dLSTM(1, 4, 3, max_pool=2, threshold=0.1)
        self.lstm2 = snn.SConv2dLSTM(4, 4, 3, max_pool=2, threshold=0.1)
        self.fc, self.lif = nn.Linear(4 * 4, 3), snn.Leaky(beta=0.5)

    def forward(self, x: Tensor) -> Tensor:
        syn1, mem1 = self.lstm1.init_sconv2dlstm()
        syn2, mem2 = self.lstm2.init_sconv2dlstm()
        mem3 = self.lif.init_leaky()
        for step in x:
            spk1, syn1, mem1 = self.lstm1(step, syn1, mem1)
            spk2, syn2, mem2 = self.lstm2(spk1, syn2, mem2)
            spk3, mem3 = self.lif(self.fc(spk2.flatten(1)), mem3)
        return spk3


@found("fc lif", warnings=("Not regulated: `matrix`",))
class RecurrentMatrix(Loop):
    """A recurrent weight that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(INPUTS, WIDTH), leaky()
        self.matrix = nn.Parameter(0.1 * torch.randn(WIDTH, WIDTH))

    def start(self, x: Tensor) -> None:
        self.spikes = torch.zeros(x.shape[1], WIDTH)

    def step(self, x: Tensor) -> Tensor:
        self.spikes = self.lif(self.fc(x) + self.spikes @ self.matrix)
        return self.spikes
