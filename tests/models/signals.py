"""Models of time series: biosignals, gestures, sounds, graphs of sensors."""

import snntorch as snn
import torch
from snntorch import spikegen
from torch import Tensor, nn

from .registry import BATCH, INPUTS, STEPS, WIDTH, Loop, found, leaky, one_step, refused, steps

FAST, SLOW = [0, 1, 2], [3, 4, 5]


@found(
    "fast.1 fast_lif", "fast_lif.recurrent fast_lif", "slow.1 slow_lif", "slow_lif.recurrent slow_lif",
    "merge.0 merge_lif", "merge_lif.recurrent merge_lif",
    warnings=("Left out: the readout `out`",), example=one_step,
)  # fmt: skip
class TwoPathways(nn.Module):
    """A fast and a slow pathway of recurrent neurons, with the same current at all steps, then merged."""

    def __init__(self) -> None:
        super().__init__()
        self.fast = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 5), nn.Dropout(0.1))
        self.slow = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 7), nn.Dropout(0.1))
        self.merge = nn.Sequential(nn.Linear(12, WIDTH), nn.Dropout(0.1))
        self.fast_lif = snn.RLeaky(beta=0.7, linear_features=5, learn_beta=True, learn_threshold=True)
        self.slow_lif = snn.RLeaky(beta=0.95, linear_features=7, learn_beta=True, learn_threshold=True)
        self.merge_lif = snn.RLeaky(beta=0.9, linear_features=WIDTH)
        self.fc, self.out = nn.Linear(WIDTH, 5), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        fast, slow, merged = (lif.init_rleaky() for lif in (self.fast_lif, self.slow_lif, self.merge_lif))
        membrane, membranes = self.out.init_leaky(), []
        current_fast, current_slow = self.fast(x[:, FAST]), self.slow(x[:, SLOW])
        for _ in range(2 * STEPS):
            fast = self.fast_lif(current_fast, *fast)
            slow = self.slow_lif(current_slow, *slow)
            merged = self.merge_lif(self.merge(torch.cat([fast[0], slow[0]], 1)), *merged)
            _, membrane = self.out(self.fc(merged[0]), membrane)
            membranes.append(membrane)
        return torch.stack(membranes)


@found("fc1 lif1", "fc2 lif2", "fc3 lif3")
class RawInputToEveryLayer(Loop):
    """Each layer reads the spikes before it and the input of the model, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, WIDTH), leaky()
        self.fc2, self.lif2 = nn.Linear(INPUTS + WIDTH, WIDTH), leaky()
        self.fc3, self.lif3 = nn.Linear(INPUTS + WIDTH, 3), leaky()

    def step(self, x: Tensor) -> Tensor:
        spikes = self.lif1(self.fc1(x))
        spikes = self.lif2(self.fc2(torch.cat([x, spikes], 1)))
        return self.lif3(self.fc3(torch.cat([x, spikes], 1)))


@found(
    "conv lif", "fc out", "slstm1.lstm_cell slstm1", "slstm2.lstm_cell slstm2",
    example=lambda: 2 * torch.rand(BATCH, STEPS, 1, 8, 8),
)  # fmt: skip
class ConvolutionThenLSTM(nn.Module):
    """Frames pass a convolution, a layer and two spiking LSTMs; the states start as zeros of their size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif, self.pool = nn.Conv2d(1, 4, 3), snn.Leaky(beta=0.9), nn.AvgPool2d(2)
        self.fc, self.out = nn.Linear(36, WIDTH), snn.Leaky(beta=0.9)
        self.slstm1, self.slstm2 = (snn.SLSTM(WIDTH, WIDTH, threshold=0.05) for _ in range(2))
        self.classes = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        membranes = [self.lif.init_leaky(), self.out.init_leaky()]
        first, second = ([torch.zeros(len(x), WIDTH)] * 2 for _ in range(2))
        for frame in x.unbind(1):
            spikes, membranes[0] = self.lif(self.conv(frame), membranes[0])
            spikes, membranes[1] = self.out(self.fc(self.pool(spikes).flatten(1)), membranes[1])
            spikes, *first = self.slstm1(spikes, *first)
            spikes, *second = self.slstm2(spikes, *second)
        return self.classes(second[1])


@found(
    *(f"layers.{n}.rnn layers.{n}" for n in range(3)),
    example=lambda: (torch.rand(BATCH, STEPS, 1), torch.rand(BATCH, 2)),
)
class ParallelSynthesiser(nn.Module):
    """Parallel layers with sums around them, on a signal and its fixed settings."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, WIDTH, WIDTH)
        self.layers = nn.ModuleList(snn.LeakyParallel(size, WIDTH, beta=0.9) for size in sizes)
        self.readout = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, settings: Tensor) -> Tensor:
        x = torch.cat([x, settings[:, None].expand(-1, x.shape[1], -1)], -1).transpose(0, 1)
        for layer in self.layers:
            spikes = layer(x)
            x = spikes + x if x.shape == spikes.shape else spikes
        return self.readout(x.transpose(0, 1))


@found("fc1 lif1", "fc2 lif2", example=lambda: torch.rand(STEPS, BATCH, 4, INPUTS))
class SensorGraph(Loop):
    """Each node of a graph sums what its neighbours put out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", (torch.eye(4) + torch.eye(4).roll(1, 0)) / 2)
        self.fc1, self.lif1 = nn.Linear(INPUTS, WIDTH), leaky()
        self.fc2, self.lif2 = nn.Linear(WIDTH, 3), leaky()

    def step(self, x: Tensor) -> Tensor:
        spikes = self.lif1(self.adjacency @ self.fc1(x))
        return self.lif2(self.adjacency @ self.fc2(spikes)).mean(1)


@found("fc1 lif1", "fc2 lif2", example=steps)
class DeltaModulated(Loop):
    """Its input fires up or down where the signal changes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, WIDTH), leaky()
        self.fc2, self.lif2 = nn.Linear(WIDTH, 3), snn.Synaptic(0.8, 0.9, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(spikegen.delta(x, threshold=0.2, off_spike=True))

    def step(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


@refused("`leaky` (Leaky): no layer reaches it", "`state` (StateLeaky): no layer reaches it")
class NeuronsWithoutLayers(nn.Module):
    """The input drives the first neuron, and spikes drive the last."""

    def __init__(self) -> None:
        super().__init__()
        self.leaky, self.linear = leaky(), snn.LinearLeaky(0.8, INPUTS, WIDTH)
        self.state = snn.StateLeaky(0.75, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.leaky.reset_mem()
        spikes, _ = self.linear(torch.stack([self.leaky(step) for step in x]))
        return self.state(spikes)[0]


@found("linear.linear linear", choice={"exclude": ["leaky", "state"]})
class NeuronsWithoutLayersLeftOut(NeuronsWithoutLayers): ...
