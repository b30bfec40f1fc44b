"""The two models of the benchmark, and two ways to use one: show it a sequence, or train it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MODELS", "TIME", "Model", "idle", "pairs_of", "present", "train"]

TIME = 25
RATE = 0.3
LEARNING_RATE = 1e-5  # the work should stay the same


def idle() -> None:
    """Does nothing, as a model without homeostasis."""


def leaky() -> nn.Module:
    return snn.Leaky(beta=0.9, init_hidden=True)


def fc() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(784, 1000), leaky(), nn.Linear(1000, 1000), leaky(), nn.Linear(1000, 10), leaky()
    )


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 5),
        nn.MaxPool2d(2),
        leaky(),
        nn.Conv2d(12, 64, 5),
        nn.MaxPool2d(2),
        leaky(),
        nn.Flatten(),
        nn.Linear(1024, 10),
        leaky(),
    )


@dataclass(frozen=True)
class Model:
    """A model; each copy starts from the same parameters, and all see the same spikes."""

    build: Callable[[], nn.Sequential]
    shape: tuple[int, ...]

    def new(self) -> nn.Sequential:
        """Builds a copy."""
        torch.manual_seed(0)
        return self.build()

    def inputs(self, batch: int, steps: int = TIME) -> Tensor:
        """Random spikes ``[T, B, *shape]``."""
        torch.manual_seed(1)
        return (torch.rand(steps, batch, *self.shape) < RATE).float()


MODELS = {"fc": Model(fc, (784,)), "conv": Model(conv, (1, 28, 28))}


def pairs_of(net: nn.Sequential) -> list[tuple[nn.Module, nn.Module]]:
    """Each neuron module with the layer that drives it."""
    pairs, layer = [], None
    for module in net:
        if isinstance(module, snn.SpikingNeuron):
            pairs.append((layer, module))
        elif isinstance(module, nn.Linear | nn.Conv2d):
            layer = module
    return pairs


def reset(net: nn.Module) -> None:
    """Resets this net alone; `snntorch.utils.reset` resets the neurons of all models."""
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()


def present(
    net: nn.Module, inputs: Tensor, each: Callable[[], object] = idle, after: Callable[[], object] = idle
) -> Callable[[], None]:
    """Returns a call that shows a sequence to a net without gradients.

    Args:
        net: the net.
        inputs: ``[T, B, ...]``.
        each: runs after each step.
        after: runs at the end.
    """

    @torch.no_grad()
    def call() -> None:
        reset(net)
        for x in inputs:
            net(x)
            each()
        after()

    return call


def train(
    net: nn.Module,
    inputs: Tensor,
    penalty: Callable[[], Tensor | float] = lambda: 0.0,
    after: Callable[[], object] = idle,
) -> Callable[[], None]:
    """Returns a call that makes one training step: forward, backward, Adam.

    Args:
        net: the net.
        inputs: ``[T, B, ...]``.
        penalty: added to the loss.
        after: runs at the end.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    labels = torch.arange(inputs.shape[1]) % 10

    def call() -> None:
        reset(net)
        logits = sum(net(x) for x in inputs)
        loss = functional.cross_entropy(logits, labels) + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after()

    return call
