"""Fully connected models."""

import snntorch as snn
import torch
from torch import Tensor, nn

from .registry import INPUTS, WIDTH, Loop, found, leaky, one_step


@found("0 1", "2 3", example=one_step)
def quickstart() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), leaky(), nn.Linear(WIDTH, 3), leaky())


@found("fc1 lif1", "fc2 lif2")
class ExplicitMembranes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, WIDTH), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(WIDTH, 3), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


@found("fc1 lif1", "fc2 lif2", "fc3 lif3")
class RegisteredInAnyOrder(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.lif3, self.lif1, self.lif2 = leaky(), leaky(), leaky()
        self.fc2, self.fc3, self.fc1 = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(INPUTS, 8)

    def step(self, x: Tensor) -> Tensor:
        return self.lif3(self.fc3(self.lif2(self.fc2(self.lif1(self.fc1(x))))))


@found("fc1 lif1", "fc2 lif2")
class PopulationCoding(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, 16), leaky()
        self.fc2, self.lif2 = nn.Linear(16, 3 * 10), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc2(self.lif1(self.fc1(x)))).unflatten(1, (3, 10)).sum(-1)


@found("encoder.0 encoder.1", "head.fc head.lif", example=lambda: {"scale": 1.0, "images": one_step()})
class NamedArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(INPUTS, WIDTH), leaky())
        self.head = nn.ModuleDict({"fc": nn.Linear(WIDTH, 3), "lif": leaky()})

    def forward(self, images: Tensor, scale: float) -> Tensor:
        return self.head["lif"](self.head["fc"](self.encoder(scale * images)))


@found("fc lif", example=lambda: (one_step(), one_step()))
class TwoArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Bilinear(INPUTS, INPUTS, WIDTH), leaky()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.lif(self.fc(left, right))


@found("fc lif")
class CalledByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(INPUTS, WIDTH), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem = self.lif.init_leaky()
        for step in x:
            spikes, mem = self.lif(mem=mem, input_=self.fc(step))
        return spikes


@found("fc1 lif1", "fc2 lif2", "fc3 lif3", "fc4 lif4")
class OtherNeurons(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, 8), snn.Synaptic(0.5, 0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(8, 8), snn.Alpha(0.9, 0.8, init_hidden=True)
        self.fc3, self.lif3 = nn.Linear(8, 8), snn.Lapicque(beta=0.9, init_hidden=True)
        self.fc4, self.lif4 = nn.Linear(8, 3), leaky(reset_mechanism="zero")

    def step(self, x: Tensor) -> Tensor:
        return self.lif4(self.fc4(self.lif3(self.fc3(self.lif2(self.fc2(self.lif1(self.fc1(x))))))))


@found("fc1 lif1", "fc2 lif2")
class MembraneHandedOn(nn.Module):
    """The next layer reads the membrane, not the spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, WIDTH), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(WIDTH, 3), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        for step in x:
            _, mem1 = self.lif1(self.fc1(step), mem1)
            spk2, mem2 = self.lif2(self.fc2(mem1), mem2)
        return spk2


@found("blocks.0.fc blocks.0.lif", "blocks.1.fc blocks.1.lif", "head lif")
class Blocks(Loop):
    """A skip connection adds spikes to spikes."""

    class Block(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.lif, self.fc = leaky(), nn.Linear(inputs, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            spikes = self.lif(self.fc(x))
            return spikes + x if x.shape == spikes.shape else spikes

    def __init__(self) -> None:
        super().__init__()
        self.lif, self.head = leaky(), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList([self.Block(INPUTS), self.Block(WIDTH)])

    def step(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.lif(self.head(x))
