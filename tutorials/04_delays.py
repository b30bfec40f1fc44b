# %% [markdown]
# # Delays
#
# A spike takes time to arrive. With a delay for each synapse, a neuron can ask *when* its inputs
# spike, not only how often. This script does two things. First it trains delays on a task that
# lies in time alone. Then it lets homeostasis regulate delays, and shows where that works (on
# volleys), where it does nothing (on Poisson input), and where it makes matters worse.
# About a minute and a half on one core.

# %%
import argparse
import functools
import itertools
import warnings
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from snntorch import surrogate
from torch import Tensor, nn
from tqdm import tqdm

from snn_homeostasis import Cell, DelayedLinear, ExponentialRate, LinearHomeostasis

parser = argparse.ArgumentParser(description="Delays: what they compute, and what regulating them does.")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--batches", type=int, default=600, help="of training")
parser.add_argument("--steps", type=int, default=12000, help="under homeostasis")
parser.add_argument("--output", type=Path, default=Path("04_delays.png"), help="the figure")
parser.add_argument("--quick", action="store_true", help="one seed, 20 batches, 2000 steps")
args, _ = parser.parse_known_args()  # a notebook has arguments of its own
if args.quick:
    args.seeds, args.batches, args.steps = args.seeds[:1], 20, 2000

torch.set_num_threads(1)  # the matrices are too small to share

# %% [markdown]
# ## A task that lies in time
#
# Two ears of 10 fibres each hear one click. Each fibre spikes exactly once, so that spike counts
# say nothing. The lag between the ears says where the click came from: five lags, five classes.
# The onset is random, and each spike jitters by up to one step.

# %%
FIBRES, LONGEST, DURATION = 10, 10, 30
LAGS = torch.arange(-8, 9, 4)  # steps by which the right ear is late


def clicks(count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, B, fibres of the left and the right ear]``, and the class of each click."""
    place = torch.randint(len(LAGS), (count,), generator=source)
    lag = LAGS[place].unsqueeze(1)
    ears = torch.cat([(-lag).clamp_min(0), lag.clamp_min(0)], 1).repeat_interleave(FIBRES, 1)
    onset = torch.randint(1, 5, (count, 1), generator=source)
    jitter = torch.randint(-1, 2, ears.shape, generator=source)
    spikes = torch.zeros(DURATION, *ears.shape)
    return spikes.scatter_(0, (ears + onset + jitter).unsqueeze(0), 1.0), place


# %% [markdown]
# ## One layer
#
# Five output neurons, one per class; the one with the most spikes names the lag. Their membranes
# forget by half in each step (β = 0.5), so that they are driven by coincidence. The rival without
# delays also gets a slow membrane (β = 0.95), which can tell some of the order of spikes by itself.
#
# `step_mode=False` takes all time steps at once. Interpolation is linear by default, so that
# surrogate gradients reach the delays. An optimizer knows no limits: `clamp_delay_` after each step.


# %%
class Locator(nn.Module):
    def __init__(self, *, delayed: bool, beta: float = 0.5) -> None:
        super().__init__()
        sizes = 2 * FIBRES, len(LAGS)
        self.layer = DelayedLinear(*sizes, LONGEST, step_mode=False) if delayed else nn.Linear(*sizes)
        self.lif = snn.Leaky(beta=beta, spike_grad=surrogate.fast_sigmoid(slope=5))
        nn.init.uniform_(self.layer.weight, 0, 0.3)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        membrane, counts = self.lif.init_leaky(), 0
        for current in self.layer(x):
            spikes, membrane = self.lif(current, membrane)
            counts = counts + spikes
        return counts


def optimizer_for(net: Locator, *, learn_delays: bool) -> torch.optim.Optimizer:
    groups = [{"params": [net.layer.weight, net.layer.bias], "lr": 0.01}]
    if learn_delays:
        groups.append({"params": [net.layer.delay], "lr": 0.2})  # in steps
    return torch.optim.Adam(groups)


class Trained(NamedTuple):
    net: Locator
    accuracy: float


def train(seed: int, *, delayed: bool, learn_delays: bool = False, beta: float = 0.5) -> Trained:
    torch.manual_seed(seed)
    net = Locator(delayed=delayed, beta=beta)
    optimizer = optimizer_for(net, learn_delays=learn_delays)
    source = torch.Generator().manual_seed(seed)
    for _ in range(args.batches):
        x, place = clicks(64, source)
        loss = F.cross_entropy(net(x), place)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if learn_delays:
            net.layer.clamp_delay_()
    return Trained(net, accuracy(net))


@torch.no_grad()
def accuracy(net: Locator) -> float:
    x, place = clicks(2000, torch.Generator().manual_seed(1000))
    return (net(x).argmax(1) == place).float().mean().item()


LEARNT = "delays learnt"
NETS = {
    "no delays": {"delayed": False},
    "no delays,\nslow membrane": {"delayed": False, "beta": 0.95},
    "random delays,\nkept": {"delayed": True},
    LEARNT: {"delayed": True, "learn_delays": True},
}
runs = list(itertools.product(args.seeds, NETS))
trained = {(seed, name): train(seed, **NETS[name]) for seed, name in tqdm(runs, unit="net")}

# %%
print(f"\n{'test accuracy, mean and range over seeds':<42}{'mean':>8}{'lowest':>8}{'highest':>8}")
for name in NETS:
    scores = [trained[seed, name].accuracy for seed in args.seeds]
    cells = sum(scores) / len(scores), min(scores), max(scores)
    print(f"{' '.join(name.split()):<42}" + "".join(f"{cell:>8.1%}" for cell in cells))

# %% [markdown]
# ## Homeostasis of a delay
#
# `param="delay"` reverses the sign: a neuron that fires too little gets *shorter* delays. The rule
# moves all delays of a neuron together. A common shift changes when spikes arrive, not how many,
# and not how well they coincide. What does change the rate is the limit: delays that reach 0 stay
# there, the next ones join them, and spikes that left together arrive together.
#
# Four cases, each 32 neurons with 64 inputs and random delays of 0 to 16 steps:
#
# - **volleys, too few spikes**: all inputs spike at once, every 16 steps;
# - **Poisson, too few spikes**: the same mean rate, no synchrony;
# - **volleys, too many spikes**: stronger weights, and a target below the rate;
# - the first case with the **bias** regulated instead, for comparison.

# %%
NEURONS, INPUTS, PERIOD, EVERY = 32, 64, 16, 96


class Case(NamedTuple):
    volleys: bool
    weight: float
    target: float
    param: str = "delay"


CASES = {
    "volleys, too few": Case(volleys=True, weight=0.04, target=0.05),
    "Poisson, too few": Case(volleys=False, weight=0.04, target=0.05),
    "volleys, too many": Case(volleys=True, weight=0.06, target=0.02),
    "volleys, too few, by bias": Case(volleys=True, weight=0.04, target=0.05, param="bias"),
}
PLASTICITY = {"delay": 0.1, "bias": 0.002}  # steps; thresholds


def inputs(case: Case, step: int) -> Tensor:
    if case.volleys:
        return torch.full((1, INPUTS), float(step % PERIOD == 0))
    return torch.bernoulli(torch.full((1, INPUTS), 1 / PERIOD))


class Course(NamedTuple):
    """By windows of 96 steps, six volleys: the rate, and the delays; and whether there was a warning."""

    rate: Tensor
    delay: Tensor
    spread: Tensor
    warned: bool


@torch.no_grad()
def regulate(case: Case) -> Course:
    torch.manual_seed(0)
    layer = DelayedLinear(INPUTS, NEURONS, max_delay=PERIOD)
    nn.init.constant_(layer.weight, case.weight)
    nn.init.zeros_(layer.bias)
    lif = snn.Leaky(beta=0.8, init_hidden=True)
    recent = functools.partial(ExponentialRate, tau=500)
    homeostasis = LinearHomeostasis(PLASTICITY[case.param], case.target, case.param, rate=recent)
    homeostasis.register_cell("neurons", Cell(layer, lif))
    columns = []
    with warnings.catch_warnings(record=True) as heard:  # kept for the table
        warnings.simplefilter("always")
        for window in range(args.steps // EVERY):
            spikes = [lif(layer(inputs(case, window * EVERY + step))).mean() for step in range(EVERY)]
            if window >= 5:  # the estimate has settled
                homeostasis.step()
            columns.append(torch.stack([sum(spikes) / EVERY, layer.delay.mean(), layer.delay.std(1).mean()]))
    return Course(*torch.stack(columns, 1), warned=bool(heard))


courses = {name: regulate(case) for name, case in tqdm(CASES.items(), unit="case")}

# %% [markdown]
# "First" and "last" are means over the first 5 and the last 10 windows. The last column tells whether the
# library warned that the delays of a neuron are all at a limit.

# %%
HEADS = ["target", "rate, first", "rate, last", "delay, first", "delay, last", "spread, last"]
print(f"\n{'regulated':<27}" + "".join(f"{head:>14}" for head in [*HEADS, "warned"]))
for name, course in courses.items():
    rate, delay = course.rate, course.delay
    numbers = [CASES[name].target, rate[:5].mean(), rate[-10:].mean(), delay[0], delay[-1], course.spread[-1]]
    print(f"{name:<27}" + "".join(f"{number:>14.3f}" for number in numbers) + f"{course.warned!s:>14}")

# %% [markdown]
# ## The picture
#
# What to see, over three seeds:
#
# - **a**: Without delays a fast neuron names half of the lags, a slow one three quarters: some
#   order can be told from what is left in the membrane. Random delays that stay as they are come to
#   89 %, since the weights pick those that fit. Learnt delays come to 95 %. The last step is the
#   smaller one: with many synapses to choose from, try random delays first.
# - **b**: Each neuron has learnt to delay the early ear by just the lag of its class, so that both
#   arrive together. Delays undo the lag, and the neuron detects the coincidence.
# - **c, d, volleys, too few**: It works. Delays become shorter until enough of them stand at 0,
#   where their spikes coincide. Then the rate is near the target, and the rule holds it there. It
#   is slow and the spread of the delays is lost for part of the synapses. The bias (green) gets
#   there three times as fast and leaves the delays alone.
# - **Poisson, too few**: Nothing. Delays run toward 0, the rate stays. Which spikes come together
#   is chance before and after.
# - **volleys, too many**: Worse than nothing. Longer delays also end together, at the other limit.
#   The rate *rises*, and the rule pushes on until the library warns. To lower a rate, regulate the
#   bias or the weight.
#
# So regulate delays for neurons that are too quiet and driven by volleys, and where timing is what
# you want to change. Whatever was learnt in the differences of delays is lost where they meet a
# limit.

# %%
COLOURS = dict(zip(CASES, ["tab:blue", "tab:gray", "tab:red", "tab:green"], strict=True))


def draw() -> Figure:
    figure = plt.figure(figsize=(17, 4.6), layout="constrained")
    scores, tuning, rates, delays = figure.subplots(1, 4)
    draw_scores(scores)
    draw_tuning(tuning)
    draw_rates(rates)
    draw_delays(delays)
    return figure


def draw_scores(axes: Axes) -> None:
    for place, name in enumerate(NETS):
        scores = torch.tensor([100 * trained[seed, name].accuracy for seed in args.seeds])
        axes.bar(place, scores.mean().item(), color="tab:blue" if name == LEARNT else "lightgray")
        axes.plot([place] * len(scores), scores, "ko", markersize=4)
    axes.axhline(100 / len(LAGS), color="black", linestyle=":", linewidth=1, label="chance")
    axes.set(title="a  Which lag was it? (dots: seeds)", ylabel="test accuracy [%]", ylim=(0, 100))
    axes.set_xticks(range(len(NETS)), list(NETS), fontsize=7)
    axes.legend(loc="upper left")


def draw_tuning(axes: Axes) -> None:
    axes.plot(LAGS, LAGS, "k--", linewidth=1, label="both ears arrive together")
    for seed in args.seeds:
        layer = trained[seed, LEARNT].net.layer
        weight, delay = layer.weight.detach().clamp_min(0), layer.delay.detach()
        ears = [(w * d).sum(1) / w.sum(1) for w, d in zip(weight.chunk(2, 1), delay.chunk(2, 1), strict=True)]
        axes.plot(LAGS, ears[0] - ears[1], "o", alpha=0.7, label=f"seed {seed}")
    axes.set(title="b  What the delays have learnt", xlabel="lag of the neuron's class [steps]")
    axes.set(ylabel="delay left − delay right [steps]", xticks=LAGS)
    axes.legend(loc="upper left", fontsize=8)


def draw_rates(axes: Axes) -> None:
    windows = args.steps // EVERY
    steps = torch.arange(5, windows + 1) * EVERY
    for name, colour in COLOURS.items():
        smooth = courses[name].rate.unfold(0, 5, 1).mean(1)
        axes.plot(steps, smooth, color=colour, label=name)
    axes.axhline(0.05, color="black", linestyle="--", linewidth=1, label="target: too few")
    axes.axhline(0.02, color="tab:red", linestyle="--", linewidth=1, label="target: too many")
    axes.set(title="c  Rates", xlabel="time [steps]", ylabel="rate [spikes per step]")
    axes.set(ylim=(0, 0.19))
    axes.legend(loc="upper right", ncols=2, fontsize=7)


def draw_delays(axes: Axes) -> None:
    steps = torch.arange(1, args.steps // EVERY + 1) * EVERY
    for name, colour in COLOURS.items():
        if CASES[name].param == "delay":
            _, delay, spread, _ = courses[name]
            axes.plot(steps, delay, color=colour, label=name)
            axes.fill_between(steps, delay - spread, delay + spread, color=colour, alpha=0.15, linewidth=0)
    axes.axhspan(PERIOD, PERIOD + 3, color="lightgray")
    axes.axhspan(-3, 0, color="lightgray")
    axes.set(title="d  Delays (band: ± their spread)", xlabel="time [steps]", ylabel="delay [steps]")
    axes.set(ylim=(-3, PERIOD + 3))
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.82), fontsize=8)


figure = draw()
figure.savefig(args.output, dpi=150)
print(f"\nFigure: {args.output}")
