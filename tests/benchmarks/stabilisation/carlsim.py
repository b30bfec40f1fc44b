"""a. CARLsim's homeostasis test, restated: Poisson inputs, one leaky neuron, a target of 35 Hz."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import snntorch as snn
import torch
from matplotlib.figure import Figure
from poisson import DT, STEPS_PER_SECOND, curve, poisson, rate, simulate
from report import Finding, Table, each
from torch import Tensor, nn

from snn_homeostasis import Cell, ExponentialRate, LinearHomeostasis

INPUTS, LOWEST, HIGHEST = 100, 0.2, 20.0
TARGET, TOLERANCE, TOLERANCE_OF_CARLSIM = 35.0, 0.5, 1.5
MEMBRANE = 20.0  # time constant in steps
TAU, EVERY, PLASTICITY = 200, 10, 2e-3
STARTS = {"silent": 0.01, "busy": 0.25}  # mean of the initial weights


@dataclass(frozen=True)
class Run:
    """One neuron's life: one second without the rule, then `learning` seconds, then the judged rest."""

    start: str
    seed: int
    spikes: Tensor
    learning: int

    @property
    def before(self) -> float:
        return rate(self.spikes[:STEPS_PER_SECOND])

    @property
    def last_second(self) -> float:
        """What CARLsim's own test looks at: the rate in the last second of learning."""
        return rate(self.spikes[self.learning * STEPS_PER_SECOND :][:STEPS_PER_SECOND])

    @property
    def after(self) -> float:
        return rate(self.spikes[(1 + self.learning) * STEPS_PER_SECOND :])

    @property
    def holds(self) -> bool:
        return abs(self.after - TARGET) <= TOLERANCE


def live(start: str, seed: int, learning: int, judged: int) -> Run:
    generator = torch.Generator().manual_seed(seed)
    layer, neuron = nn.Linear(INPUTS, 1, bias=False), snn.Leaky(math.exp(-1 / MEMBRANE), init_hidden=True)
    nn.init.uniform_(layer.weight, 0, 2 * STARTS[start], generator=generator)
    recent = functools.partial(ExponentialRate, tau=TAU)
    homeostasis = LinearHomeostasis(PLASTICITY, TARGET, "weight", rate=recent, dt=DT)
    homeostasis.register_cell("neuron", Cell(layer, neuron))

    def regulate(steps: int) -> None:
        if steps > STEPS_PER_SECOND and steps % EVERY == 0:
            homeostasis.step()

    inputs = poisson(torch.linspace(LOWEST, HIGHEST, INPUTS), 1 + learning + judged, generator)
    return Run(start, seed, simulate(layer, neuron, inputs, regulate), learning)


def run(seeds: Sequence[int], quick: bool) -> Finding:
    learning, judged = (1, 1) if quick else (25, 20)
    runs = each(live, itertools.product(STARTS, seeds, [learning], [judged]), "a")
    held = [r.holds for r in runs]
    worst = max(abs(r.after - TARGET) for r in runs)
    carlsims = [abs(r.last_second - TARGET) <= TOLERANCE_OF_CARLSIM for r in runs]
    return Finding(
        "a. CARLsim's homeostasis test",
        f"{INPUTS} Poisson inputs from {LOWEST} to {HIGHEST:g} Hz drive one `Leaky` in steps of 1 ms. The "
        f"weights are regulated to {TARGET:g} Hz: plasticity {PLASTICITY:g}, `ExponentialRate({TAU})`, one "
        f"`step()` every {EVERY} steps, no bounds. One second without the rule, {learning} s with it, then "
        f"{judged} s in which the rule runs on and the rate is judged.",
        [
            f"{TARGET:g} ± {TOLERANCE} Hz over the {judged} s: {sum(held)} of {len(held)} runs; the worst "
            f"is off by {worst:.2f} Hz.",
            f"CARLsim's own test, the single second after {learning} s within ± {TOLERANCE_OF_CARLSIM} Hz: "
            f"{sum(carlsims)} of {len(carlsims)} runs. A second holds some {TARGET:g} spikes of a neuron "
            "driven by chance, so that this says little.",
        ],
        [_table(runs, learning, judged)],
        functools.partial(_draw, runs=runs, learning=learning),
    )


def _table(runs: Sequence[Run], learning: int, judged: int) -> Table:
    columns = [
        "start",
        "seed",
        "before [Hz]",
        f"second {learning} [Hz]",
        f"next {judged} s [Hz]",
        "within 0.5 Hz",
    ]
    rows = [
        [
            r.start,
            r.seed,
            f"{r.before:.0f}",
            f"{r.last_second:.0f}",
            f"{r.after:.2f}",
            "yes" if r.holds else "no",
        ]
        for r in runs
    ]
    return Table(columns, rows)


def _draw(figure: Figure, runs: Sequence[Run], learning: int) -> None:
    axes = figure.subplots()
    colours = dict(zip(STARTS, ["tab:blue", "tab:orange"], strict=True))
    for r in runs:
        label = f"start: {r.start}" if r.seed == runs[0].seed else None
        axes.plot(*curve(r.spikes), color=colours[r.start], linewidth=0.8, label=label)
    axes.axhline(TARGET, color="black", linestyle="--", linewidth=1, label="target")
    axes.axvspan(1 + learning, len(runs[0].spikes) / STEPS_PER_SECOND, color="0.93", label="judged")
    axes.set(xlabel="time, middle of a window of 1 s [s]", ylabel="rate [Hz]", ylim=(0, 4 * TARGET))
    axes.set_title("One neuron, Poisson inputs: each seed")
    axes.legend(loc="upper right", ncols=2)
