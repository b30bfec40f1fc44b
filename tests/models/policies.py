"""Policies of reinforcement learning, and other models whose states go in and out."""

import snntorch as snn
import torch
from torch import Tensor, nn

from .registry import BATCH, INPUTS, WIDTH, Loop, found, images, leaky, one_step


@found("conv1 lif1", "conv2 lif2", "fc lif3", example=images)
class ActorAndCritic(Loop):
    """A spiking backbone, and two heads that read its spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3, 2, 1), leaky(output=True)
        self.conv2, self.lif2 = nn.Conv2d(4, 4, 3, 2, 1), leaky(output=True)
        self.fc, self.lif3 = nn.Linear(16, WIDTH), leaky(output=True)
        self.policy, self.value = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 1)

    def step(self, x: Tensor) -> Tensor:
        spikes, _ = self.lif1(self.conv1(x))
        spikes, _ = self.lif2(self.conv2(spikes))
        spikes, _ = self.lif3(self.fc(spikes.flatten(1)))
        return torch.cat([self.policy(spikes), self.value(spikes)], 1)


@found("fc1 lif1", "fc2 lif2", "mean.0 mean.1", "deviation.0 deviation.1", example=lambda: (one_step(), None))
class GaussianPolicy(nn.Module):
    """One step per call: the caller keeps the membranes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, WIDTH), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(WIDTH, WIDTH), snn.Leaky(beta=0.9)
        self.mean = nn.ModuleList([nn.Linear(WIDTH, WIDTH), snn.Leaky(beta=0.9), nn.Linear(WIDTH, 2)])
        self.deviation = nn.ModuleList([nn.Linear(WIDTH, WIDTH), snn.Leaky(beta=0.9), nn.Linear(WIDTH, 2)])

    def forward(self, x: Tensor, states: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        states = states or {name: self.lif1.init_leaky() for name in ("1", "2", "mean", "deviation")}
        spikes, states["1"] = self.lif1(self.fc1(x), states["1"])
        spikes, states["2"] = self.lif2(self.fc2(spikes), states["2"])
        heads = []
        for name, (fc, lif, decoder) in (("mean", self.mean), ("deviation", self.deviation)):
            fired, states[name] = lif(fc(spikes), states[name])
            heads.append(decoder(fired))
        return heads[0], heads[1].clamp(-20, 2).exp()


@found("encoder lif", "lif.recurrent lif", example=lambda: torch.rand(BATCH, 4, INPUTS))
class RecurrentPolicy(nn.Module):
    """Time is the second axis; currents are rectified; heads read the mean of the spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.lif = nn.Linear(INPUTS, WIDTH), snn.RLeaky(beta=0.9, linear_features=WIDTH)
        self.action, self.size = nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes = membrane = torch.zeros(len(x), WIDTH)
        record = []
        for step in x.unbind(1):
            spikes, membrane = self.lif(torch.relu(self.encoder(step)), spikes, membrane)
            record.append(spikes)
        mean = torch.stack(record).mean(0)
        return self.action(mean), self.size(mean)


@found("lin1 rlif", "rlif.recurrent rlif", "lin2 lif", example=one_step)
class StatesInBuffers(nn.Module):
    """Its states are buffers of the model, from one call to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1, self.rlif = nn.Linear(INPUTS, WIDTH), snn.RLeaky(beta=0.5, linear_features=WIDTH)
        self.lin2, self.lif = nn.Linear(WIDTH, 2), snn.Leaky(beta=0.5)
        for name in ("spikes", "inner", "outer"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.spikes, self.inner = self.rlif(self.lin1(x), self.spikes.detach(), self.inner.detach())
        fired, self.outer = self.lif(self.lin2(self.spikes), self.outer.detach())
        return fired


@found("encoder.0 encoder.1", "encoder.2 encoder.3", example=lambda: (one_step(), one_step()))
class Siamese(nn.Module):
    """One encoder for two inputs; what counts is how far apart their spikes are."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Linear(INPUTS, WIDTH), leaky(), nn.Linear(WIDTH, WIDTH), leaky())
        self.encoder = nn.Sequential(*layers)

    def encoded(self, x: Tensor) -> Tensor:
        self.encoder[1].reset_mem(), self.encoder[3].reset_mem()
        return sum(self.encoder(x) for _ in range(3))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (self.encoded(left) - self.encoded(right)).square().sum(1)
