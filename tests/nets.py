"""Small nets for the tests of training, each with an input that fits, and a plain count of spikes."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn

from snn_homeostasis import CumulativeRate, ExponentialRate, WindowedRate

RATES = [CumulativeRate, functools.partial(ExponentialRate, 5.0), functools.partial(WindowedRate, 3)]


def leaky(**kwargs) -> nn.Module:
    return snn.Leaky(beta=0.9, init_hidden=True, **kwargs)


def spikes(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.5).float()


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 8), leaky(), nn.Linear(8, 3), leaky())


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.MaxPool2d(2),
        nn.Dropout(0.1),
        leaky(),
        nn.Conv2d(4, 3, 2),
        leaky(),
        nn.Flatten(),
        nn.Linear(12, 3),
        leaky(),
    )


def recurrent() -> nn.Sequential:
    hidden = snn.RLeaky(beta=0.9, linear_features=8, init_hidden=True)
    return nn.Sequential(nn.Linear(6, 8), hidden, nn.Linear(8, 3), leaky())


def slstm() -> nn.Sequential:
    hidden = snn.SLSTM(8, 8, threshold=0.05, init_hidden=True)
    return nn.Sequential(nn.Linear(6, 8), leaky(), hidden, nn.Linear(8, 3), leaky())


@dataclass(frozen=True)
class Net:
    """A way to build a net, and the shape of its input without the batch."""

    build: Callable[[], nn.Sequential]
    shape: tuple[int, ...] = (6,)

    def present(self, net: nn.Module, steps: int = 10, batch: int = 4) -> Tensor:
        """One sequence of random input; returns the spikes of the last layer, summed."""
        utils.reset(net)
        return sum(net(2 * spikes(batch, *self.shape)) for _ in range(steps))


NETS = {
    "linear": Net(linear),
    "conv": Net(conv, (1, 8, 8)),
    "recurrent": Net(recurrent),
    "slstm": Net(slstm),
}


class Recount:
    """Counts the spikes of a neuron with a hook of the test's own, in double precision."""

    def __init__(self, neuron: nn.Module) -> None:
        self.steps, self.total = 0, 0.0
        neuron.register_forward_hook(self._count)

    def _count(self, neuron: nn.Module, args: object, output: object) -> None:
        fired = output if isinstance(output, Tensor) else output[0]
        self.total = self.total + (fired.detach() != 0).double().mean(0)
        self.steps += 1

    @property
    def rate(self) -> Tensor:
        return self.total / self.steps


def hooks_of(net: nn.Module) -> int:
    """The number of hooks on a module and all inside it; torch has no public count."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    return sum(len(getattr(module, kind)) for module in net.modules() for kind in kinds)


def bytes_of(state: Mapping[str, Tensor]) -> int:
    """The memory of what grows with a net in a state dict: neither counters nor settings."""
    growing = [value for key, value in state.items() if value.ndim > 0 and not key.endswith("held")]
    return sum(value.numel() * value.element_size() for value in growing if value.dtype != torch.float64)


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in net.named_parameters()}


def unchanged(net: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(param, before[name]) for name, param in net.named_parameters())
