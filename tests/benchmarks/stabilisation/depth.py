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

from snn_homeostasis import Band, Homeostasis, LinearHomeostasis, SynapticScaling

DEPTHS, WIDTH, CLASSES = (2, 4, 6, 8), 128, 10
EPOCHS, BATCH, LEARNING_RATE = (8, 24), 64, 1e-3
SAMPLES = 512  # to calibrate on


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


def two_lines(net: nn.Sequential) -> Homeostasis:
    """The rule as the README has it."""
    return LinearHomeostasis(target=TARGET, param="bias").attach(net)


def with_target(net: nn.Sequential, target: Band) -> Homeostasis:
    """The two lines toward another target."""
    return LinearHomeostasis(target=target, param="bias").attach(net)


def by_threshold(net: nn.Sequential) -> Homeostasis:
    """The two lines on thresholds in place of biases."""
    return LinearHomeostasis(target=TARGET, param="threshold").attach(net)


def scaling(net: nn.Sequential) -> Homeostasis:
    """Synaptic scaling with its default plasticity."""
    return SynapticScaling(target=TARGET).attach(net)


def constant(net: nn.Sequential, plasticity: float) -> Homeostasis:
    """A plasticity that does not fall, on the rate since the last step."""
    return LinearHomeostasis(plasticity, TARGET, "bias").attach(net)


def calibrate(net: nn.Sequential, data: Digits) -> None:
    """Brings every layer to the target before training, without labels."""
    homeostasis = two_lines(net)
    homeostasis.calibrate(data.train_x[:SAMPLES], num_steps=digits.STEPS, progress=False)
    homeostasis.remove()


Rule = Callable[[nn.Sequential], Homeostasis]


def train(
    net: nn.Sequential, data: Digits, epochs: int, generator: torch.Generator, rule: Rule | None
) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    if rule is not None:
        rule(net).follow(optimizer)
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
    rule: Rule | None = None


PLAIN, OURS, RIVALS = "plain", "two lines", ["fluctuation-driven init", "Kaiming init"]
TREATMENTS = {
    PLAIN: Treatment(),
    OURS: Treatment(rule=two_lines),
    "calibrated": Treatment(calibrated=True),
    "calibrated, two lines": Treatment(calibrated=True, rule=two_lines),
    "band": Treatment(rule=functools.partial(with_target, target=Band(TARGET / 2, 2 * TARGET))),
    "floor": Treatment(rule=functools.partial(with_target, target=Band(TARGET / 10, None))),
    "thresholds": Treatment(rule=by_threshold),
    "synaptic scaling": Treatment(rule=scaling),
    "constant 0.001": Treatment(rule=functools.partial(constant, plasticity=0.001)),
    "constant 0.01": Treatment(rule=functools.partial(constant, plasticity=0.01)),
    RIVALS[0]: Treatment(fluctuating),
    RIVALS[1]: Treatment(kaiming),
}


@dataclass(frozen=True)
class Run:
    """What the test images see after training; rate and silent over the hidden layers."""

    depth: int
    treatment: str
    epochs: int
    accuracy: float
    rate: float
    silent: float


def live(depth: int, name: str, seed: int, epochs: int) -> Run:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data, net, treatment = digits.load(), digits.dense(depth, WIDTH, CLASSES), TREATMENTS[name]
    treatment.init(net, data)
    if treatment.calibrated:
        calibrate(net, data)
    train(net, data, epochs, generator, treatment.rule)
    *hidden, output = digits.judged(net, data.test_x)
    accuracy = (output.argmax(1) == data.test_y).float().mean().item()
    rate = torch.stack([layer.mean() for layer in hidden]).mean().item()
    return Run(depth, name, epochs, accuracy, rate, digits.silent(hidden))


def run(seeds: Sequence[int], quick: bool) -> Finding:
    epochs, depths = ((1,), DEPTHS[:1]) if quick else (EPOCHS, DEPTHS)
    longest = {epochs[0]: depths} | dict.fromkeys(epochs[1:], depths[2:3])  # long at six layers alone
    settings = [
        (depth, name, seed, each_epochs)
        for each_epochs, some in longest.items()
        for depth, name, seed in itertools.product(some, TREATMENTS, seeds)
    ]
    runs = each(live, settings, "d")
    first = [r for r in runs if r.epochs == epochs[0]]
    columns = [(depth, each_epochs) for each_epochs, some in longest.items() for depth in some]
    return Finding(
        "d. Does it help?",
        f"Fully connected nets with 2 to 8 hidden layers of {WIDTH} on scikit-learn's digits, {epochs[0]} "
        f"epochs of Adam at {LEARNING_RATE:g}, 599 test images. *Two lines*: the rule as the README has it, "
        f"no number but the target {TARGET}. *Calibrated*: `calibrate` on {SAMPLES} training images before, "
        "without labels. *Band*: half to twice the target; *floor*: a tenth of it, and nothing above. "
        "*Constant*: a plasticity that does not fall. The rivals: a fluctuation-driven initialisation "
        "(Rossbroich et al. 2022), and Kaiming's with gain 1.",
        [_verdict(first, depth) for depth in depths],
        [_table(runs, columns)],
        functools.partial(_draw, runs=first, depths=depths),
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


def _table(runs: Sequence[Run], columns: Sequence[tuple[int, int]]) -> Table:
    rows = []
    for name in TREATMENTS:
        cells = []
        for depth, epochs in columns:
            same = [r for r in runs if (r.depth, r.treatment, r.epochs) == (depth, name, epochs)]
            accuracy = mean_and_spread((100 * r.accuracy for r in same), ".1f")
            silent = sum(r.silent for r in same) / len(same)
            cells.append(f"{accuracy} % ({silent:.0%})")
        rows.append([name, *cells])
    heads = [f"{depth} hidden, {epochs} epochs" for depth, epochs in columns]
    return Table(["accuracy (silent neurons)", *heads], rows)


def _draw(figure: Figure, runs: Sequence[Run], depths: Sequence[int]) -> None:
    axes = figure.subplots()
    for number, name in enumerate(TREATMENTS):
        colour = f"C{number % 10}" if number < 10 else ("black", "tan")[number - 10]
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
    figure.legend(loc="outside right center", fontsize=8)
