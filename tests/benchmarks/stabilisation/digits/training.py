"""Training, the same for all treatments, and the treatments that experiments share."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from snn_homeostasis import Band, CalibrationReport, Homeostasis, LinearHomeostasis

from .data import Data
from .spikes import TARGET, Present, constant, rates_over

__all__ = [
    "CLASSES",
    "LEARNING_RATE",
    "WIDTH",
    "Penalty",
    "Rule",
    "accuracy",
    "calibrate",
    "constant_plasticity",
    "no_penalty",
    "train",
    "two_lines",
]

WIDTH, CLASSES, BATCH, LEARNING_RATE = 128, 10, 64, 1e-3

Target = float | Band
Rule = Callable[[nn.Sequential], Homeostasis]
Penalty = Callable[[list[Tensor]], Tensor | float]  # sees the rates of all layers


def no_penalty(rates: list[Tensor]) -> float:
    """Nothing but the cross entropy."""
    return 0.0


def train(
    net: nn.Sequential,
    data: Data,
    epochs: int,
    generator: torch.Generator,
    rule: Rule | None = None,
    *,
    present: Present = constant,
    penalty: Penalty = no_penalty,
) -> None:
    """Adam on the cross entropy of the output's spike counts, and on a penalty."""
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    if rule is not None:
        rule(net).follow(optimizer)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_x), generator=generator).split(BATCH):
            frames = present(data.train_x[batch])
            rates = rates_over(net, frames)
            loss = F.cross_entropy(len(frames) * rates[-1], data.train_y[batch]) + penalty(rates)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accuracy(output: Tensor, labels: Tensor) -> float:
    """The share of samples whose neuron fires most."""
    return (output.argmax(1) == labels).float().mean().item()


def two_lines(net: nn.Sequential, target: Target = TARGET, param: str = "bias") -> Homeostasis:
    """The rule as the README has it: the target is its only number."""
    return LinearHomeostasis(target=target, param=param).attach(net)


def constant_plasticity(net: nn.Sequential, plasticity: float, target: Target = TARGET) -> Homeostasis:
    """The two lines with a plasticity that does not fall."""
    return LinearHomeostasis(plasticity, target, "bias").attach(net)


def calibrate(
    net: nn.Sequential, x: Tensor, target: Target = TARGET, present: Present = constant, **settings: Any
) -> CalibrationReport:
    """Brings every layer to the target before training, without labels."""
    homeostasis = two_lines(net, target)
    report = homeostasis.calibrate(
        x, run=lambda batch: rates_over(net, present(batch)), progress=False, **settings
    )
    homeostasis.remove()
    return report
