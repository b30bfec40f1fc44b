"""c. Whole networks, from silence and from saturation, against what a user would take instead."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import digits
import snntorch.functional as SF  # noqa: N812
import torch
from digits import TARGET, starts
from inferno import learn
from matplotlib.figure import Figure
from report import Finding, Table, each, mean_and_spread
from torch import Tensor, nn

from snn_homeostasis import Cell, CumulativeRate, ExponentialRate, LinearHomeostasis, WindowedRate

ROUNDS, BATCH, SMOOTHED, WITHIN = 120, 32, 5, 0.1
SAMPLES = 512  # of a calibration
PLASTICITY = {"bias": 0.02, "weight": 0.002}
MEMORY = 5 * digits.STEPS  # of the exponential and the windowed estimate: five rounds
LEARNING_RATE, SPARSITY = 1e-2, 1e-5

NETS = {"6 dense layers": functools.partial(digits.dense, 6, 100), "4 convolutions": digits.convolutional}
Regulate = Callable[[list[Tensor]], int | None]  # sees the rates of a round; how often it ran the net itself


STARTS = {"silent": starts.silent, "saturated": starts.saturated, "bias 1": starts.bias_to_threshold}
DENSE, CONVOLUTIONAL = NETS
SCENES = [
    (DENSE, "silent"),
    (DENSE, "saturated"),
    (CONVOLUTIONAL, "silent"),
    (CONVOLUTIONAL, "saturated"),
    (DENSE, "bias 1"),
]


def two_lines(net: nn.Sequential, param: str) -> Regulate:
    """This package with its defaults: the target is the only number."""
    homeostasis = digits.two_lines(net, param=param)
    return lambda rates: homeostasis.step()


def calibrated(net: nn.Sequential, param: str) -> Regulate:
    """`calibrate` in the first round, and nothing after it."""
    homeostasis = digits.two_lines(net, param=param)
    images = [digits.load().train_x[:SAMPLES]]

    def regulate(rates: list[Tensor]) -> int:
        if not images:
            return 0
        return homeostasis.calibrate(images.pop(), num_steps=digits.STEPS, progress=False).forwards

    return regulate


def ours(net: nn.Sequential, param: str, rate: Callable, forget: bool = False) -> Regulate:
    """This package with a constant plasticity; `forget` clears the estimate after each step."""
    homeostasis = LinearHomeostasis(PLASTICITY[param], TARGET, param, rate=rate).attach(net)

    def regulate(rates: list[Tensor]) -> None:
        homeostasis.step()
        if forget:
            homeostasis.clear()

    return regulate


def as_published(value: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    """inferno's updater subtracts a part that is negative already; our slots keep its magnitude."""
    return pos + neg


def infernos(net: nn.Sequential, param: str) -> Regulate:
    """inferno's own trainer, with what its updater makes of it."""
    trainer = learn.LinearHomeostasis(PLASTICITY[param], TARGET, param)
    cells = list(map(Cell, digits.layers_of(net), digits.neurons_of(net)))
    for name, cell in enumerate(cells):
        trainer.register_cell(str(name), cell)
        getattr(cell.updater, param).bounds = as_published

    def regulate(rates: list[Tensor]) -> None:
        trainer()
        for cell in cells:
            cell.updater()

    return regulate


def by_gradient(net: nn.Sequential, loss: Callable[[list[Tensor]], Tensor]) -> Regulate:
    """A loss on the rates of all layers, by backpropagation and Adam."""
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)

    def regulate(rates: list[Tensor]) -> None:
        optimizer.zero_grad()
        loss(rates).backward()
        optimizer.step()

    return regulate


def sparsity_loss(rates: list[Tensor]) -> Tensor:
    """snntorch's penalty on the number of spikes."""
    penalty = SF.l1_rate_sparsity(SPARSITY)
    return sum(penalty(rate * digits.STEPS) for rate in rates)


ESTIMATORS = {
    "cumulative": {"rate": CumulativeRate},
    "cumulative, cleared": {"rate": CumulativeRate, "forget": True},
    f"exponential {MEMORY}": {"rate": functools.partial(ExponentialRate, tau=MEMORY)},
    f"windowed {MEMORY}": {"rate": functools.partial(WindowedRate, MEMORY)},
}
DEFAULTS = {f"{param}, defaults": param for param in ("bias", "weight", "threshold")}
RULES: dict[str, Callable[[nn.Sequential], Regulate]] = {
    **{name: functools.partial(two_lines, param=param) for name, param in DEFAULTS.items()},
    **{f"{param}, calibrate": functools.partial(calibrated, param=param) for param in PLASTICITY},
    **{
        f"{param}, {name}": functools.partial(ours, param=param, **estimator)
        for param in PLASTICITY
        for name, estimator in ESTIMATORS.items()
    },
    **{f"inferno, {param}": functools.partial(infernos, param=param) for param in PLASTICITY},
    "rate-target loss": functools.partial(by_gradient, loss=digits.rate_loss),
    "l1_rate_sparsity": functools.partial(by_gradient, loss=sparsity_loss),
}


# one of each kind
QUICK = [
    "bias, defaults",
    "bias, calibrate",
    f"bias, exponential {MEMORY}",
    "inferno, bias",
    "rate-target loss",
    "l1_rate_sparsity",
]


@dataclass(frozen=True)
class Run:
    """The life of one net: the mean rate of each layer in each round, and a look at test images."""

    net: str
    start: str
    rule: str
    rates: Tensor  # [rounds, layers]
    final: Tensor  # [layers]
    silent: float
    extra: int = 0  # sequences that the rule ran by itself

    @property
    def error(self) -> Tensor:
        """Relative error of each layer, mean over a few rounds: [rounds, layers]."""
        return self.rates.unfold(0, SMOOTHED, 1).mean(-1) / TARGET - 1

    @property
    def settled(self) -> int | None:
        """Rounds until all layers are within 10 %, and stay there to the end; None if they do not."""
        outside = (self.error.abs() > WITHIN).any(1).nonzero()
        after = int(outside[-1]) + 1 if len(outside) else 0
        return after if after < len(self.error) else None

    @property
    def forwards(self) -> int | None:
        """Sequences that the net ran until it had settled; None if it did not."""
        return None if self.settled is None else self.settled + self.extra

    @property
    def residual(self) -> float:
        """Of the layer that is farthest off at the end, on test images."""
        return (self.final / TARGET - 1).abs().max().item()

    @property
    def overshoot(self) -> float:
        """How far a layer went past its target, seen from the side where it started; 0 if none did."""
        side = (self.error[0]).sign()
        return (-side * (self.rates / TARGET - 1)).max().clamp_min(0).item()


def live(scene: tuple[str, str], rule: str, seed: int, rounds: int) -> Run:
    torch.manual_seed(seed)
    (name, start), data = scene, digits.load()
    net = NETS[name]()
    STARTS[start](net, data.train_x)
    regulate = RULES[rule](net)
    rates, extra = [], 0
    with torch.set_grad_enabled(RULES[rule].func is by_gradient):
        for x in digits.batches(data.train_x, rounds, BATCH, torch.Generator().manual_seed(seed)):
            seen = digits.rates_of(net, x)
            rates.append(torch.stack([rate.detach().mean() for rate in seen]))
            extra += regulate(seen) or 0
    final = digits.judged(net, data.test_x)
    means = torch.stack([rate.mean() for rate in final])
    return Run(name, start, rule, torch.stack(rates), means, digits.silent(final), extra)


def run(seeds: Sequence[int], quick: bool) -> Finding:
    rounds = 10 if quick else ROUNDS
    scenes, rules = (SCENES[:1], QUICK) if quick else (SCENES, RULES)
    runs = each(live, itertools.product(scenes, rules, seeds, [rounds]), "c")
    return Finding(
        "c. Whole networks",
        "Plain nets of `Leaky` neurons on scikit-learn's digits: 6 dense layers of 100, and 4 "
        f"convolutions. A round is one `step()` after {BATCH} random images of {digits.STEPS} steps; "
        f"{rounds} rounds, target {TARGET}. `defaults` names nothing but the target; `calibrate` is one "
        f"call in the first round, on {SAMPLES} images, and nothing after it. The others have a constant "
        f"plasticity, {PLASTICITY['bias']} for biases and {PLASTICITY['weight']} for weights; `exponential` "
        "and `windowed` remember "
        f"{MEMORY} steps, `cumulative` everything, `cleared` one round. Starts: *silent*, a tenth of the "
        "default weights and no bias; *saturated*, weights shifted up by 3 / fan-in; *bias 1*, neurons "
        "that fire without any input. `inferno` is its published rule and updater on these nets; the "
        f"losses are minimised with Adam at a learning rate of {LEARNING_RATE} over all parameters. "
        f"*Settled*: seeds on which every layer came within {WITHIN:.0%} of its target and stayed; *rounds* "
        "and *forwards* until then, medians. *Residual*: error of the farthest layer on the test "
        "images at the end. *Overshoot*: the farthest a layer went past the target, of the target. "
        "*Silent*: neurons that no test image makes fire.",
        [_verdict(runs, rule) for rule in rules],
        [_table(runs)],
        functools.partial(_draw, runs=runs, scenes=scenes[:4]),
        (11, 6.5),
    )


def _verdict(runs: Sequence[Run], rule: str) -> str:
    settled = [r.settled is not None for r in runs if r.rule == rule]
    return f"{rule}: settled in {sum(settled)} of {len(settled)} runs."


def _table(runs: Sequence[Run]) -> Table:
    rows = []
    for (net, start, rule), group in itertools.groupby(runs, lambda r: (r.net, r.start, r.rule)):
        same = list(group)
        settled = [r for r in same if r.settled is not None]
        share = f"{len(settled)}/{len(same)}"
        medians = [_median(r.settled for r in settled), _median(r.forwards for r in settled)]
        figures = [(r.residual, r.overshoot, r.silent) for r in same]
        spreads = [mean_and_spread(column, ".0%") for column in zip(*figures, strict=True)]
        rows.append([net, start, rule, share, *medians, *spreads])
    heads = ["net", "start", "rule", "settled", "rounds", "forwards", "residual", "overshoot", "silent"]
    return Table(heads, rows)


def _median(numbers: Iterable[int | None]) -> str:
    known = sorted(number for number in numbers if number is not None)
    return str(known[len(known) // 2]) if known else "–"


DRAWN = {
    "bias, defaults": "black",
    "bias, calibrate": "tab:pink",
    "bias, cumulative": "tab:cyan",
    "bias, cumulative, cleared": "tab:blue",
    f"bias, exponential {MEMORY}": "tab:green",
    "weight, cumulative, cleared": "tab:purple",
    "inferno, bias": "tab:red",
    "rate-target loss": "tab:orange",
    "l1_rate_sparsity": "tab:gray",
}


def _draw(figure: Figure, runs: Sequence[Run], scenes: Sequence[tuple[str, str]]) -> None:
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (net, start) in zip(panels.flat, scenes, strict=False):
        for rule, colour in DRAWN.items():
            same = [r for r in runs if (r.net, r.start, r.rule) == (net, start, rule)]
            if not same:
                continue
            worst = torch.stack([100 * r.error.abs().amax(1) for r in same]).mean(0)
            axes.semilogy(range(1, len(worst) + 1), worst, color=colour, label=rule)
        axes.axhline(100 * WITHIN, color="black", linestyle="--", linewidth=1, label="10 %")
        axes.set_title(f"{net}, {start}", fontsize=10)
    figure.supxlabel("rounds", fontsize=10)
    figure.supylabel("error of the worst layer [% of the target]", fontsize=10)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
