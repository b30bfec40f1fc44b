"""Paths of data from layer to neuron, and wrappers around models."""

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from snn_homeostasis import one_step as as_one_step
from snn_homeostasis import spikes_of

from .dense import quickstart
from .registry import INPUTS, SIGN_DIFFERS, STEPS, WIDTH, Loop, found, images, leaky, one_step

TRUST = "It is taken on trust that the neurons are the layer's channels"


@found("fc1 lif1", "fc2 lif2", warnings=(TRUST, TRUST))
class InPlace(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, WIDTH), leaky()
        self.fc2, self.lif2 = nn.Linear(WIDTH, WIDTH), leaky()

    def start(self, x: Tensor) -> None:
        self.current = torch.zeros(x.shape[1], WIDTH)

    def step(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.current.copy_(self.fc1(x)).mul_(1.5)
            spikes = self.lif1(self.current)
            self.current.copy_(self.fc2(spikes))
            return self.lif2(self.current)


@found("fc1 lif1", "fc2 lif2", warnings=(TRUST, TRUST))
class OutOfTheGraph(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, WIDTH), leaky()
        self.fc2, self.lif2 = nn.Linear(WIDTH, 3), leaky()

    def step(self, x: Tensor) -> Tensor:
        spikes = self.lif1(self.fc1(x).detach())
        with torch.no_grad():
            return self.lif2(2 * self.fc2(spikes))


class Rounded(torch.autograd.Function):
    """Rounding with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@found("fc lif")
class Quantised(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(INPUTS, WIDTH), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(Rounded.apply(self.fc(x)))


class Checkpointed(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv2d(1, 4, 3), snn.Leaky(beta=0.9)
        self.fc, self.out = nn.Linear(4 * 9, 3), leaky()

    def block(self, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        return self.lif(F.max_pool2d(self.conv(x), 2), mem)

    def start(self, x: Tensor) -> None:
        self.mem = self.lif.init_leaky()

    def step(self, x: Tensor) -> Tensor:
        spikes, self.mem = checkpoint(self.block, x, self.mem, use_reentrant=self.use_reentrant)
        return self.out(self.fc(spikes.flatten(1)))


@found("conv lif", "fc out", example=lambda: images().requires_grad_(), warnings=(TRUST,))
class CheckpointedReentrant(Checkpointed):
    use_reentrant = True


@found("conv lif", "fc out", example=images)
class CheckpointedNewStyle(Checkpointed):
    use_reentrant = False


@found("_orig_mod.0 _orig_mod.1", "_orig_mod.2 _orig_mod.3", example=one_step)
def compiled() -> nn.Module:
    return torch.compile(quickstart(), backend="eager")


class MyLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@found("pruned lif1", "normed lif2", "mine lif3")
class PeculiarLayers(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.pruned = prune.l1_unstructured(nn.Linear(INPUTS, WIDTH), "weight", 0.5)
        self.normed = parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
        self.mine = MyLinear(WIDTH, 3)
        self.lif1, self.lif2, self.lif3 = leaky(), leaky(), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif3(self.mine(self.lif2(self.normed(self.lif1(self.pruned(x))))))


@found("module.0 module.1", "module.2 module.3", example=one_step)
def data_parallel() -> nn.Module:
    return nn.DataParallel(quickstart())


@found("0 1", "2 3", example=one_step)
def observed_by_hooks_of_its_own() -> nn.Module:
    net = quickstart()
    net[0].register_forward_hook(lambda module, args, output: 2 * output)
    net[1].register_forward_pre_hook(lambda module, args: (args[0].clone(),))
    return net


class TwoBranches(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(INPUTS, WIDTH), leaky()
        self.fc2, self.lif2 = nn.Linear(INPUTS, WIDTH), leaky()


@found(
    "fc1 lif1",
    "fc2 lif2",
    warnings=("Left out: `fc2`. On this example the input of `lif1`", "Left out: `fc1`"),
)
class StackedThenTakenApart(TwoBranches):
    """Both currents share their memory."""

    def step(self, x: Tensor) -> Tensor:
        first, second = torch.stack([self.fc1(x), self.fc2(x)])
        return self.lif1(first) + self.lif2(second)


@found(
    "fc1 lif1",
    "fc2 lif2",
    warnings=("Left out: `fc2`. On this example the input of `lif1`", "Left out: `fc1`"),
)
class WrittenIntoOneTensor(TwoBranches):
    def step(self, x: Tensor) -> Tensor:
        currents = torch.zeros(2, len(x), WIDTH)
        currents[0], currents[1] = self.fc1(x), self.fc2(x)
        return self.lif1(currents[0]) + self.lif2(currents[1])


@found("fc1 lif1", "fc2 lif2")
class OfTheShapeOfAnother(TwoBranches):
    def step(self, x: Tensor) -> Tensor:
        current = self.fc1(x)
        offset = torch.full_like(current, 0.1) + torch.zeros_like(current)
        return self.lif1(current) + self.lif2(self.fc2(x) + offset)


@found("fc1 lif1", "fc2 lif2", warnings=(SIGN_DIFFERS,), why_not="its current has either sign")
class OfEitherSignLater(TwoBranches):
    def start(self, x: Tensor) -> None:
        self.sign = 1.0

    def step(self, x: Tensor) -> Tensor:
        current, self.sign = self.sign * self.fc1(x), -1.0
        return self.lif1(current) + self.lif2(self.fc2(x))


@found("conv lif", example=lambda: torch.rand(STEPS, 2, 1, 20000))
class MeanOfALongSound(Loop):
    """One position of many changes the mean by little."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv1d(1, WIDTH, 3), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(self.conv(x).mean(-1))


@found("fc1 lif1", "fc2 lif2")
class InHalfPrecision(TwoBranches):
    def step(self, x: Tensor) -> Tensor:
        return self.lif1((self.fc1(x).bfloat16() * 0.7).float()) + self.lif2(self.fc2(x).half().float())


@found("fc lif norm", "conv out gn", example=images)
class NormsCalledByKeyword(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.lif = nn.Linear(64, WIDTH), nn.BatchNorm1d(WIDTH), leaky()
        self.conv, self.gn, self.out = nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), leaky()

    def step(self, x: Tensor) -> Tensor:
        spikes = self.lif(self.norm(input=self.fc(x.flatten(1))))
        return self.out(self.gn(input=self.conv(x))).sum((1, 2, 3)) + spikes.sum(1)


@found("lstm lif", "fc lif", warnings=("Several layers drive `lif`",))
class StatesOfALayer(Loop):
    """A layer that puts out several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc, self.lif = nn.LSTMCell(INPUTS, WIDTH), nn.Linear(INPUTS, WIDTH), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(3 * self.lstm(x)[0] + self.fc(x))


@found("fc lif", warnings=(TRUST,))
class CheckpointBetween(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(INPUTS, WIDTH), leaky()

    def step(self, x: Tensor) -> Tensor:
        return self.lif(checkpoint(torch.sigmoid, self.fc(x), use_reentrant=True))


@found("fc lif")
class KeptMembrane(nn.Module):
    """Its state stays in a graph between calls, and changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.mem = nn.Linear(INPUTS, WIDTH), snn.Leaky(beta=0.9), None

    def forward(self, x: Tensor) -> Tensor:
        mem = self.lif.init_leaky() if self.mem is None else self.mem.zero_().detach()
        for step in x:
            spikes, mem = self.lif(self.fc(step), mem)
        self.mem = mem
        return spikes


@found("fc lif", example=lambda: (0.1, one_step()))
class TimeFirst(nn.Module):
    """Its neuron takes the time before the current, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(INPUTS, WIDTH), TimedNeuron()

    def forward(self, time: float, x: Tensor) -> Tensor:
        return self.lif(time, self.fc(x))["fired"].float()


class TimedNeuron(nn.Module):
    def forward(self, time: float, x: Tensor) -> dict[str, Tensor]:
        return {"fired": x > 0.3, "potential": x}


@spikes_of.register
def _(neuron: TimedNeuron, output: dict[str, Tensor]) -> Any:
    return as_one_step(output["fired"].float())
