"""d. Does it help? Test accuracy of nets of growing depth, against a better initialisation."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import digits
import signals
import torch
from digits import CLASSES, LEARNING_RATE, TARGET, WIDTH, Data, Rule, constant_plasticity, starts, two_lines
from matplotlib.figure import Figure
from report import Finding, Table, each, mean_and_spread
from torch import nn

from snn_homeostasis import Band, Homeostasis, SynapticScaling

SAMPLES = 512  # to calibrate on
DATA: dict[str, Callable[[], Data]] = {"digits": digits.load}
if signals.HAS_MNIST1D:
    DATA["mnist1d"] = signals.load


def scaling(net: nn.Sequential) -> Homeostasis:
    """Synaptic scaling with its default plasticity."""
    return SynapticScaling(target=TARGET).attach(net)


@dataclass(frozen=True)
class Treatment:
    """What is done to a net; training is the same for all."""

    start: starts.Start = starts.default
    calibrated: bool = False
    rule: Rule | None = None


PLAIN, OURS, RIVALS = "plain", "two lines", ["fluctuation-driven init", "Kaiming init"]
TREATMENTS = {
    PLAIN: Treatment(),
    OURS: Treatment(rule=two_lines),
    "calibrated": Treatment(calibrated=True),
    "calibrated, two lines": Treatment(calibrated=True, rule=two_lines),
    "band": Treatment(rule=functools.partial(two_lines, target=Band(TARGET / 2, 2 * TARGET))),
    "floor": Treatment(rule=functools.partial(two_lines, target=Band(TARGET / 10, None))),
    "thresholds": Treatment(rule=functools.partial(two_lines, param="threshold")),
    "synaptic scaling": Treatment(rule=scaling),
    "constant 0.001": Treatment(rule=functools.partial(constant_plasticity, plasticity=0.001)),
    "constant 0.01": Treatment(rule=functools.partial(constant_plasticity, plasticity=0.01)),
    RIVALS[0]: Treatment(starts.fluctuating),
    RIVALS[1]: Treatment(starts.kaiming),
}


FEW = (PLAIN, OURS, "calibrated", "calibrated, two lines")


@dataclass(frozen=True)
class Column:
    """Nets with so many hidden layers, trained for so many epochs, by some treatments."""

    data: str
    depth: int
    epochs: int
    treatments: tuple[str, ...] = tuple(TREATMENTS)

    @property
    def head(self) -> str:
        return f"{self.data}, {self.depth} hidden, {self.epochs} epochs"


SHORT, LONG = 8, 24
COLUMNS = [  # the last three take long
    *(Column("digits", depth, SHORT) for depth in (2, 4, 6, 8)),
    Column("digits", 6, LONG, (PLAIN, OURS, FEW[-1], "constant 0.001", "constant 0.01")),
    *(Column("mnist1d", depth, SHORT, (*FEW, *RIVALS)) for depth in (4, 6)),
]
QUICK = [Column(data, 2, 1) for data in ("digits", "mnist1d")]


@dataclass(frozen=True)
class Run:
    """What the test samples see after training; rate and silent over the hidden layers."""

    column: Column
    treatment: str
    accuracy: float
    rate: float
    silent: float


def live(column: Column, name: str, seed: int) -> Run:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data, treatment = DATA[column.data](), TREATMENTS[name]
    net = digits.dense(column.depth, WIDTH, CLASSES, inputs=data.train_x[0].numel())
    treatment.start(net, data.train_x)
    if treatment.calibrated:
        digits.calibrate(net, data.train_x[:SAMPLES])
    digits.train(net, data, column.epochs, generator, treatment.rule)
    *hidden, output = digits.judged(net, data.test_x)
    rate = torch.stack([layer.mean() for layer in hidden]).mean().item()
    return Run(column, name, digits.accuracy(output, data.test_y), rate, digits.silent(hidden))


def run(seeds: Sequence[int], quick: bool) -> Finding:
    columns = [column for column in (QUICK if quick else COLUMNS) if column.data in DATA]
    settings = [
        (column, *name_and_seed)
        for column in columns
        for name_and_seed in itertools.product(column.treatments, seeds)
    ]
    runs = each(live, settings, "d")
    return Finding(
        "d. Does it help?",
        f"Fully connected nets with 2 to 8 hidden layers of {WIDTH}, Adam at {LEARNING_RATE:g}. Data: "
        f"scikit-learn's digits, 599 test images; {_about_mnist1d()} *Two lines*: the rule as the README "
        f"has it, no number but the target {TARGET}. *Calibrated*: `calibrate` on {SAMPLES} training "
        "samples before, without labels. *Band*: half to twice the target; *floor*: a tenth of it, and "
        "nothing above. *Constant*: a plasticity that does not fall. The rivals: a fluctuation-driven "
        "initialisation (Rossbroich et al. 2022), and Kaiming's with gain 1.",
        [_verdict(runs, column) for column in columns],
        [_table(runs, columns)],
        functools.partial(_draw, runs=runs, columns=columns),
        (12, 4.5),
    )


def _about_mnist1d() -> str:
    if not signals.HAS_MNIST1D:
        return "those on mnist1d are left out, as the extra `mnist1d` is not installed."
    return (
        "mnist1d as its package makes it, 4000 signals of 40 samples and 1000 to test. Each pixel or sample "
        f"is an input, and its value a current that is constant for {digits.STEPS} steps."
    )


def _mean_accuracy(runs: Sequence[Run], column: Column, name: str) -> float:
    accuracies = [r.accuracy for r in runs if (r.column, r.treatment) == (column, name)]
    return 100 * sum(accuracies) / len(accuracies)


def _verdict(runs: Sequence[Run], column: Column) -> str:
    ours, plain = (_mean_accuracy(runs, column, name) for name in (OURS, PLAIN))
    against = [f"{ours - plain:+.1f} points against plain"]
    if rivals := [_mean_accuracy(runs, column, name) for name in RIVALS if name in column.treatments]:
        against.append(f"{ours - max(rivals):+.1f} against the better of the two rivals")
    return f"{column.head}: {OURS} {ours:.1f} %, that is {' and '.join(against)}."


def _table(runs: Sequence[Run], columns: Sequence[Column]) -> Table:
    rows = []
    for name in TREATMENTS:
        cells = []
        for column in columns:
            same = [r for r in runs if (r.column, r.treatment) == (column, name)]
            if not same:
                cells.append("–")
                continue
            accuracy = mean_and_spread((100 * r.accuracy for r in same), ".1f")
            silent = sum(r.silent for r in same) / len(same)
            cells.append(f"{accuracy} % ({silent:.0%})")
        rows.append([name, *cells])
    return Table(["accuracy (silent neurons)", *(column.head for column in columns)], rows)


def _draw(figure: Figure, runs: Sequence[Run], columns: Sequence[Column]) -> None:
    shortest = min(column.epochs for column in columns)
    panels = figure.subplots(1, len(DATA), sharey=True, squeeze=False)
    for axes, data in zip(panels.flat, DATA, strict=True):
        drawn = [column for column in columns if (column.data, column.epochs) == (data, shortest)]
        for number, name in enumerate(TREATMENTS):
            colour = f"C{number % 10}" if number < 10 else ("black", "tan")[number - 10]
            shift = 0.08 * (number - (len(TREATMENTS) - 1) / 2)
            same = [r for r in runs if r.treatment == name and r.column in drawn]
            depths = [r.column.depth + shift for r in same]
            axes.plot(depths, [100 * r.accuracy for r in same], ".", color=colour, alpha=0.6)
            shown = [column for column in drawn if name in column.treatments]
            means = [_mean_accuracy(runs, column, name) for column in shown]
            axes.plot([column.depth + shift for column in shown], means, color=colour, label=name)
        axes.axhline(100 / CLASSES, color="black", linestyle=":", linewidth=1, label="chance")
        axes.set(xlabel="hidden layers", ylim=(0, 102), xticks=[column.depth for column in drawn])
        axes.set_title(f"{data}, {shortest} epochs: each seed, and the mean", fontsize=10)
    figure.supylabel("test accuracy [%]", fontsize=10)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
