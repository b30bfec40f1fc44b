"""d. Does it help? Test accuracy of nets of growing depth, against a better initialisation."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import digits
import torch
import torch.nn.functional as F  # noqa: N812
from digits import BETA, TARGET, Digits
from matplotlib.figure import Figure
from report import Finding, Table, each, mean_and_spread
from torch import nn

from snn_homeostasis import ExponentialRate, LinearHomeostasis

DEPTHS, WIDTH, CLASSES = (2, 4, 6, 8), 128, 10
EPOCHS, BATCH, LEARNING_RATE = 8, 64, 1e-3
CALIBRATION, CALIBRATING, TRAINING, TAU = 60, 0.05, 0.001, 100  # rounds, the two plasticities, steps


def default(net: nn.Sequential, data: Digits) -> None:
    """PyTorch's own initialisation."""


@torch.no_grad()
def kaiming(net: nn.Sequential, data: Digits) -> None:
    """Weights that keep the variance of their inputs: Kaiming's, without the gain of a ReLU."""
    for layer in digits.layers_of(net):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        layer.bias.zero_()


@torch.no_grad()
def fluctuating(net: nn.Sequential, data: Digits) -> None:
    """Weights of mean zero, with which membranes fluctuate by one threshold around rest.

    After Rossbroich, Gygax and Zenke (2022), for inputs that spike at the target rate; the
    pixels of the first layer are constant currents.
    """
    first, *deeper = digits.layers_of(net)
    powers = [data.train_x.flatten(1).square().sum(1).mean().item() / (1 - BETA) ** 2]
    powers += [layer.in_features * TARGET / (1 - BETA**2) for layer in deeper]
    for layer, power in zip([first, *deeper], powers, strict=True):
        layer.weight.normal_(0, 1 / math.sqrt(power))
        layer.bias.zero_()


@torch.no_grad()
def calibrate(net: nn.Sequential, data: Digits, rounds: int, generator: torch.Generator) -> None:
    """Brings every layer to the target before training, without labels."""
    homeostasis = LinearHomeostasis(CALIBRATING, TARGET, "bias").attach(net)
    for x in digits.batches(data.train_x, rounds, BATCH, generator):
        homeostasis.clear()
        digits.rates_of(net, x)
        homeostasis.step()


def train(
    net: nn.Sequential, data: Digits, epochs: int, generator: torch.Generator, *, regulated: bool
) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    if regulated:
        recent = functools.partial(ExponentialRate, tau=TAU)
        homeostasis = LinearHomeostasis(TRAINING, TARGET, "bias", rate=recent).attach(net)
        homeostasis.follow(optimizer)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_x), generator=generator).split(BATCH):
            counts = digits.STEPS * digits.rates_of(net, data.train_x[batch])[-1]
            loss = F.cross_entropy(counts, data.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@dataclass(frozen=True)
class Treatment:
    """What is done to a net; training is the same for all."""

    init: Callable[[nn.Sequential, Digits], None] = default
    calibrated: bool = False
    regulated: bool = False


PLAIN, OURS, RIVALS = "plain", "calibrated, rule on", ["fluctuation-driven init", "Kaiming init"]
TREATMENTS = {
    PLAIN: Treatment(),
    "two lines": Treatment(regulated=True),
    "calibrated, rule off": Treatment(calibrated=True),
    OURS: Treatment(calibrated=True, regulated=True),
    RIVALS[0]: Treatment(fluctuating),
    RIVALS[1]: Treatment(kaiming),
    "Kaiming init, calibrated, rule on": Treatment(kaiming, calibrated=True, regulated=True),
}


@dataclass(frozen=True)
class Run:
    """What the test images see after training; rate and silent over the hidden layers."""

    depth: int
    treatment: str
    accuracy: float
    rate: float
    silent: float


def live(depth: int, name: str, seed: int, epochs: int, rounds: int) -> Run:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data, net, treatment = digits.load(), digits.dense(depth, WIDTH, CLASSES), TREATMENTS[name]
    treatment.init(net, data)
    if treatment.calibrated:
        calibrate(net, data, rounds, torch.Generator().manual_seed(seed))
    train(net, data, epochs, generator, regulated=treatment.regulated)
    *hidden, output = digits.judged(net, data.test_x)
    accuracy = (output.argmax(1) == data.test_y).float().mean().item()
    rate = torch.stack([layer.mean() for layer in hidden]).mean().item()
    return Run(depth, name, accuracy, rate, digits.silent(hidden))


def run(seeds: Sequence[int], quick: bool) -> Finding:
    epochs, rounds, depths = (1, 5, DEPTHS[:1]) if quick else (EPOCHS, CALIBRATION, DEPTHS)
    runs = each(live, itertools.product(depths, TREATMENTS, seeds, [epochs], [rounds]), "d")
    return Finding(
        "d. Does it help?",
        f"Fully connected nets with 2 to 8 hidden layers of {WIDTH} on scikit-learn's digits, {epochs} "
        f"epochs of Adam at {LEARNING_RATE:g}, 599 test images. *Two lines*: a bias rule of plasticity "
        f"{TRAINING:g} during training. *Calibrated*: {rounds} rounds of plasticity {CALIBRATING:g} before "
        "training, without labels. The rivals: a fluctuation-driven initialisation (Rossbroich et al. "
        "2022), and Kaiming's with gain 1.",
        [_verdict(runs, depth) for depth in depths],
        [_table(runs, depths)],
        functools.partial(_draw, runs=runs, depths=depths),
        (11, 4.5),
    )


def _mean_accuracy(runs: Sequence[Run], depth: int, name: str) -> float:
    accuracies = [r.accuracy for r in runs if (r.depth, r.treatment) == (depth, name)]
    return sum(accuracies) / len(accuracies)


def _verdict(runs: Sequence[Run], depth: int) -> str:
    ours, plain, *rivals = (100 * _mean_accuracy(runs, depth, name) for name in (OURS, PLAIN, *RIVALS))
    return (
        f"{depth} hidden layers: {OURS} {ours:.1f} %, that is {ours - plain:+.1f} points against plain and "
        f"{ours - max(rivals):+.1f} against the better of the two rivals."
    )


def _table(runs: Sequence[Run], depths: Sequence[int]) -> Table:
    rows = []
    for name in TREATMENTS:
        cells = []
        for depth in depths:
            same = [r for r in runs if (r.depth, r.treatment) == (depth, name)]
            accuracy = mean_and_spread((100 * r.accuracy for r in same), ".1f")
            silent = sum(r.silent for r in same) / len(same)
            cells.append(f"{accuracy} % ({silent:.0%})")
        rows.append([name, *cells])
    return Table(["accuracy (silent neurons)", *(f"{depth} hidden" for depth in depths)], rows)


def _draw(figure: Figure, runs: Sequence[Run], depths: Sequence[int]) -> None:
    axes = figure.subplots()
    colours = [f"tab:{name}" for name in ("gray", "orange", "green", "blue", "red", "brown", "purple")]
    for number, (name, colour) in enumerate(zip(TREATMENTS, colours, strict=True)):
        shift = 0.08 * (number - (len(TREATMENTS) - 1) / 2)
        same = [r for r in runs if r.treatment == name]
        axes.plot(
            [r.depth + shift for r in same], [100 * r.accuracy for r in same], ".", color=colour, alpha=0.6
        )
        means = [100 * _mean_accuracy(runs, depth, name) for depth in depths]
        axes.plot([depth + shift for depth in depths], means, color=colour, label=name)
    axes.axhline(100 / CLASSES, color="black", linestyle=":", linewidth=1, label="chance")
    axes.set(xlabel="hidden layers", ylabel="test accuracy [%]", ylim=(0, 102), xticks=depths)
    axes.set_title("Accuracy: each seed, and the mean")
    figure.legend(loc="outside right center")
