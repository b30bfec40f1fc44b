"""b. Disturbance rejection, after brian2's example spike_based_homeostasis."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import snntorch as snn
import torch
from matplotlib.figure import Figure
from poisson import DT, STEPS_PER_SECOND, curve, poisson, rate, simulate, smooth
from report import Finding, Table, each, mean_and_spread
from torch import Tensor, nn

from snn_homeostasis import Cell, ClampBounds, ExponentialRate, LinearHomeostasis

BLOCKS, STEADY, TARGET = (25.0, 50.0, 0.0, 35.0), 50.0, 50.0  # Hz
TOLERANCE, RETURNED = 2.0, 0.05
MEMBRANE = 10.0  # time constant in steps
# of all weights of a population together, in thresholds:
FIXED, LARGEST = 2.0, 4.0
TAU, EVERY, PLASTICITY = 50, 10, 0.1
BRIANS_CHANGE = 0.05  # at each spike
POPULATIONS = {100: "populations of 100 inputs", 1: "single inputs, as in brian2's example"}


class Drive(nn.Module):
    """A population with plastic weights and a disturbing one with fixed weights; one current."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.plastic = nn.Linear(inputs, 1, bias=False)
        nn.init.zeros_(self.plastic.weight)
        self.fixed = FIXED / inputs

    def forward(self, x: Tensor) -> Tensor:
        steady, varying = x.chunk(2, dim=1)
        return self.plastic(steady) + self.fixed * varying.sum(1, keepdim=True)


Rule = Callable[[Drive, snn.Leaky, Tensor], Callable[[int], None]]


def ours(drive: Drive, neuron: snn.Leaky, inputs: Tensor) -> Callable[[int], None]:
    """LinearHomeostasis on the plastic weights."""
    number = drive.plastic.in_features
    recent = functools.partial(ExponentialRate, tau=TAU)
    bounds = ClampBounds(0.0, LARGEST / number)
    rule = LinearHomeostasis(PLASTICITY / number, TARGET, rate=recent, bounds=bounds, dt=DT)
    rule.register_cell("neuron", Cell(drive.plastic, neuron))
    return lambda steps: rule.step() if steps % EVERY == 0 else None


def brians(drive: Drive, neuron: snn.Leaky, inputs: Tensor) -> Callable[[int], None]:
    """brian2's rule: a weight grows at each spike of its input and shrinks at each of the neuron."""
    weight, number = drive.plastic.weight, drive.plastic.in_features
    fired: list[Tensor] = []
    neuron.register_forward_hook(lambda module, args, spikes: fired.append(spikes))

    def step(steps: int) -> None:
        change = inputs[steps - 1, :number] - fired.pop()
        weight.add_(change, alpha=BRIANS_CHANGE / number).clamp_(0, LARGEST / number)

    return step


def none(drive: Drive, neuron: snn.Leaky, inputs: Tensor) -> Callable[[int], None]:
    """No homeostasis."""
    return lambda steps: None


RULES: dict[str, Rule] = {"this package": ours, "brian2's rule": brians, "none": none}


@dataclass(frozen=True)
class Run:
    """One neuron through all blocks, each of `seconds`."""

    inputs: int
    rule: str
    spikes: Tensor
    seconds: float

    @property
    def blocks(self) -> list[Tensor]:
        return list(self.spikes.chunk(len(BLOCKS)))

    @property
    def errors(self) -> list[float]:
        """Of each block, the absolute error of its mean rate, transient included, in Hz."""
        return [abs(rate(block) - TARGET) for block in self.blocks]

    @property
    def ripple(self) -> float:
        """The mean absolute error of the rate over one second, in Hz."""
        return (smooth(self.spikes) - TARGET).abs().mean().item()

    @property
    def returns(self) -> list[float]:
        """Of each block, seconds until a window of one second is within 5 % of the target."""
        return [self._first((smooth(block) - TARGET).abs() <= RETURNED * TARGET) for block in self.blocks]

    def _first(self, back: Tensor) -> float:
        return back.int().argmax().item() / STEPS_PER_SECOND if back.any() else self.seconds


def live(inputs: int, rule: str, seed: int, seconds: float) -> Run:
    generator = torch.Generator().manual_seed(seed)
    rates = [torch.cat([torch.full((inputs,), STEADY), torch.full((inputs,), varying)]) for varying in BLOCKS]
    trains = torch.cat([poisson(each, seconds, generator) for each in rates])
    drive = Drive(inputs)
    neuron = snn.Leaky(math.exp(-1 / MEMBRANE), init_hidden=True, reset_mechanism="zero")
    return Run(inputs, rule, simulate(drive, neuron, trains, RULES[rule](drive, neuron, trains)), seconds)


def run(seeds: Sequence[int], quick: bool) -> Finding:
    seconds = 0.5 if quick else 10.0
    runs = each(live, itertools.product(POPULATIONS, RULES, seeds, [seconds]), "b")
    disturbances = ", ".join(f"{hertz:g}" for hertz in BLOCKS)
    return Finding(
        "b. Disturbance rejection, after brian2's `spike_based_homeostasis`",
        f"One `Leaky`, steps of 1 ms, target {TARGET:g} Hz. A population at {STEADY:g} Hz has plastic "
        f"weights, which start at 0; another, with fixed weights, disturbs at {disturbances} Hz in turn, "
        f"{seconds:g} s each. Plasticity {PLASTICITY:g} divided by the number of inputs, "
        f"`ExponentialRate({TAU})`, one `step()` every {EVERY} steps, `ClampBounds(0, {LARGEST:g} / "
        "number of inputs)`. Errors are those of a block's mean rate, the transient included. *Return*: "
        "seconds after a change until the rate over the second that follows is within 5 % of the target, "
        "median over seeds. brian2's rule is restated on the same spikes; the neuron resets to 0, not to "
        "−1 as in the example.",
        [_verdict(runs, inputs) for inputs in POPULATIONS],
        [_table(runs), _seeds(runs, seeds)],
        functools.partial(_draw, runs=runs),
    )


def _verdict(runs: Sequence[Run], inputs: int) -> str:
    errors = [error for r in runs if (r.inputs, r.rule) == (inputs, "this package") for error in r.errors]
    within = sum(error <= TOLERANCE for error in errors)
    sentence = (
        f"{POPULATIONS[inputs].capitalize()}: the block's mean is within {TOLERANCE:g} Hz in {within} of "
        f"{len(errors)} blocks; the worst is off by {max(errors):.1f} Hz."
    )
    if inputs == 1:
        sentence += (
            " One spike of a single input already makes the neuron fire. So at best it repeats the steady "
            "input, whose own count over 10 s varies by ± 2.2 Hz."
        )
    return sentence


def _table(runs: Sequence[Run]) -> Table:
    blocks = [f"{hz:g} Hz: mean, return" for hz in BLOCKS]
    rows = []
    for (inputs, rule), group in itertools.groupby(runs, lambda r: (r.inputs, r.rule)):
        same = list(group)
        means = [
            mean_and_spread(map(rate, blocks), ".1f")
            for blocks in zip(*(r.blocks for r in same), strict=True)
        ]
        returns = [sorted(each)[len(each) // 2] for each in zip(*(r.returns for r in same), strict=True)]
        cells = [
            f"{mean}, {back:.2f} s" if back < same[0].seconds else f"{mean}, never"
            for mean, back in zip(means, returns, strict=True)
        ]
        error = sum(sum(r.errors) / len(r.errors) for r in same) / len(same)
        ripple = sum(r.ripple for r in same) / len(same)
        rows.append([inputs, rule, *cells, f"{error:.1f}", f"{ripple:.1f}"])
    return Table(["inputs", "rule", *blocks, "mean error [Hz]", "error over 1 s [Hz]"], rows)


def _seeds(runs: Sequence[Run], seeds: Sequence[int]) -> Table:
    rows = []
    for inputs in POPULATIONS:
        same = [r for r in runs if (r.inputs, r.rule) == (inputs, "this package")]
        rows += [
            [
                inputs,
                seed,
                *(f"{rate(block):.1f}" for block in r.blocks),
                "yes" if max(r.errors) <= TOLERANCE else "no",
            ]
            for seed, r in zip(seeds, same, strict=True)
        ]
    return Table(["inputs", "seed", *(f"{hz:g} Hz" for hz in BLOCKS), f"all within {TOLERANCE:g} Hz"], rows)


def _draw(figure: Figure, runs: Sequence[Run]) -> None:
    axes = figure.subplots()
    colours = dict(zip(RULES, ["tab:blue", "tab:orange", "tab:gray"], strict=True))
    for rule, colour in colours.items():
        same = [curve(r.spikes) for r in runs if r.inputs == max(POPULATIONS) and r.rule == rule]
        time, curves = same[0][0], torch.stack([rates for _, rates in same])
        axes.fill_between(time, curves.amin(0), curves.amax(0), color=colour, alpha=0.25, linewidth=0)
        axes.plot(time, curves.mean(0), color=colour, label=rule)
    axes.axhline(TARGET, color="black", linestyle="--", linewidth=1, label="target")
    axes.set(xlabel="time, middle of a window of 1 s [s]", ylabel="rate [Hz]", ylim=(0, 1.9 * TARGET))
    for block, varying in enumerate(BLOCKS):
        start = block * runs[0].seconds
        axes.axvline(start, color="black", linewidth=0.5)
        axes.text(
            start, 0.02, f" disturbed by {varying:g} Hz", transform=axes.get_xaxis_transform(), fontsize=8
        )
    axes.set_title(f"Disturbance, {max(POPULATIONS)} inputs: mean and range over seeds")
    axes.legend(loc="upper right", ncols=2)
