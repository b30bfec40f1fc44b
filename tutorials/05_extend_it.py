# %% [markdown]
# # Extend it
#
# Your layer, your neuron, your estimate of the rate, your bound, your rule: each is one
# registration or one small class, and the rest of the package stays as it is. This script writes one
# of each and tries it on scikit-learn's handwritten digits. It takes less than a minute.

# %%
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from snn_homeostasis import (
    Cell,
    DenseConnection,
    Homeostasis,
    LinearHomeostasis,
    RateEstimator,
    Settings,
    connect,
    one_step,
    spikes_of,
)

parser = argparse.ArgumentParser(description="Your own layer, neuron, estimator, bound and rule.")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--rounds", type=int, default=150, help="of regulation")
parser.add_argument("--output", type=Path, default=Path("05_extend_it.png"), help="the figure")
parser.add_argument("--quick", action="store_true", help="twenty rounds")
args, _ = parser.parse_known_args()  # a notebook has arguments of its own
if args.quick:
    args.rounds = 20

torch.set_num_threads(1)  # the matrices are too small to share

# %% [markdown]
# ## The bench
#
# One layer, one population of 50 neurons, a target of 0.1 spikes per step. A round shows 64 images
# for 20 steps and then calls `step()`. The bench counts spikes by hand; `spikes_of` is how the
# package itself reads a neuron's output, whatever that is.

# %%
NEURONS, STEPS, BATCH, TARGET = 50, 20, 64, 0.1

images = torch.tensor(load_digits().data / 16, dtype=torch.float32)


@torch.no_grad()
def regulate(homeostasis: Homeostasis, layer: nn.Module, neuron: nn.Module, *, forget: bool = True) -> Tensor:
    """The mean rate of each neuron in each round: [rounds, neurons]."""
    homeostasis.register_cell("cell", Cell(layer, neuron))
    rounds = tqdm(range(args.rounds), f"{type(layer).__name__}, {type(neuron).__name__}", unit="round")
    return torch.stack([one_round(homeostasis, layer, neuron, forget) for _ in rounds])


def one_round(homeostasis: Homeostasis, layer: nn.Module, neuron: nn.Module, forget: bool) -> Tensor:
    x = images[torch.randint(len(images), (BATCH,))]
    neuron.reset_mem()
    counts = sum(spikes_of(neuron, neuron(layer(x)))[0] for _ in range(STEPS))
    homeostasis.step()
    if forget:
        homeostasis.clear()  # older spikes were fired under older parameters
    return counts.mean(0) / STEPS


def linear() -> nn.Linear:
    torch.manual_seed(args.seed)
    return nn.Linear(64, NEURONS)


def leaky() -> snn.Leaky:
    snn.SpikingNeuron.init()
    return snn.Leaky(beta=0.9, init_hidden=True)


# %% [markdown]
# ## Your layer
#
# A layer whose weights are all excitatory: it keeps a raw parameter and takes its softplus. The
# package only has to know how the neurons lie against that parameter. Here they lie as in any dense
# layer, so the connection is `DenseConnection`, and one line says which parameter plays the weight.
#
# The rule presumes that more of the parameter means more spikes: softplus rises, so it does.


# %%
class Excitatory(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(outputs, inputs) - 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.softplus(self.raw))


@connect.register(Excitatory)
class ExcitatoryConnection(DenseConnection):
    names = {"weight": "raw"}  # noqa: RUF012


torch.manual_seed(args.seed)
by_layer = regulate(LinearHomeostasis(0.1, TARGET, "weight"), Excitatory(64, NEURONS), leaky())

# %% [markdown]
# ## Your neuron
#
# A neuron that tires: each spike raises its threshold, which then relaxes. It is no snntorch class and
# returns a dictionary. One registration says where the spikes are.


# %%
class Tiring(nn.Module):
    def reset_mem(self) -> None:
        self.mem = self.fatigue = torch.zeros(())

    def forward(self, current: Tensor) -> dict[str, Tensor]:
        self.mem = 0.9 * self.mem + current
        spikes = (self.mem > 1 + self.fatigue).float()
        self.mem = self.mem * (1 - spikes)
        self.fatigue = 0.95 * self.fatigue + 0.5 * spikes
        return {"spikes": spikes, "threshold": 1 + self.fatigue}


@spikes_of.register
def _(neuron: Tiring, output: dict[str, Tensor]) -> Tensor:
    return one_step(output["spikes"])


by_neuron = regulate(LinearHomeostasis(0.02, TARGET, "bias"), linear(), Tiring())

# %% [markdown]
# ## Your estimate of the rate
#
# An estimator keeps a total of spikes `[B, *N]`, and the rate is this total divided by a weight. It
# defines `update`, which adds the spikes `[T, B, *N]` to the total and counts their steps, and
# `weight`. The default estimator is the mean over all steps. It never forgets the quiet start, and the
# rule then raises the rate too far. This estimator weighs recent rounds more: it halves its total
# and its weight whenever the weight reaches 40 steps.
#
# The base class saves and loads the tensors named in `state`, and `reset` forgets them.


# %%
class HalvingRate(RateEstimator):
    state = (*RateEstimator.state, "seen")

    def reset(self) -> None:
        super().reset()
        self.seen = torch.zeros(())

    def update(self, spikes: Tensor) -> None:
        keep = torch.where(self.seen < 40, 1.0, 0.5)
        self.total_for(spikes[0]).mul_(keep).add_(spikes.sum(0))
        self.seen = keep * self.seen + len(spikes)
        self.count(len(spikes), spikes.device)

    @property
    def weight(self) -> float:
        return self.seen.item()


def remembering(**settings: object) -> Tensor:
    return regulate(LinearHomeostasis(0.02, TARGET, "bias", **settings), linear(), leaky(), forget=False)


by_default, by_estimate = remembering(), remembering(rate=HalvingRate)

# %% [markdown]
# ## Your bound
#
# A bound turns the two magnitudes of an update into the change of the parameter. Any function of the
# three can be one; a bound with limits subclasses `Bounds` and defines `__call__`. This function scales
# each weight in proportion to itself, as synapses do (Turrigiano et al. 1998): silent synapses stay
# silent, no weight changes its sign, and a neuron keeps what it has learnt up to a factor.


# %%
def proportional(param: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    return param * (pos - neg)


def scaled(**settings: object) -> tuple[Tensor, Tensor, Tensor]:
    """Rates, and the weights before and after; they start positive and too small."""
    layer = linear()
    with torch.no_grad():
        layer.weight.abs_().mul_(0.02)
        layer.bias.zero_()
    before = layer.weight.detach().clone()
    rates = regulate(LinearHomeostasis(target=TARGET, param="weight", **settings), layer, leaky())
    return rates, before, layer.weight.detach()


by_addition, *_ = added = scaled(plasticity=0.0005)
by_bound, *_ = multiplied = scaled(plasticity=0.1, bounds=proportional)

# %% [markdown]
# ## Your rule
#
# A rule defines `drive`: from a rate and a target, how much each neuron wants its parameter to rise. This
# rule leaves a neuron alone while its rate is within half of the target, so neurons keep some character
# of their own and none is silent.
#
# `drive` works on each sample by itself. Twenty steps of one image are too few to judge a neuron by, so
# the rule also overrides `parts` and hands the mean rate over the batch to its `drive`. The base class
# `Homeostasis` takes the settings as one object.


# %%
class BandHomeostasis(Homeostasis):
    def drive(self, rate: Tensor, target: float) -> Tensor:
        error = (target - rate) / target
        return torch.where(error.abs() > 0.5, error, 0.0)

    def parts(self, cell: Cell, state: object, rate: Tensor, target: float) -> tuple[Tensor, Tensor]:
        return super().parts(cell, state, rate.mean(0, keepdim=True), target)


by_rule = regulate(BandHomeostasis(Settings(0.02, TARGET, "bias")), linear(), leaky())
by_linear_rule = regulate(LinearHomeostasis(0.02, TARGET, "bias"), linear(), leaky())

# %% [markdown]
# ## What came of it

# %%
COURSES = {
    "your layer": by_layer,
    "your neuron": by_neuron,
    "the default estimate": by_default,
    "your estimate": by_estimate,
    "no bound": by_addition,
    "your bound": by_bound,
    "the linear rule": by_linear_rule,
    "your rule": by_rule,
}


def print_table() -> None:
    print(f"\nRates in spikes per step, target {TARGET}\n")
    print(f"{'':24}{'first round':>14}{'highest':>10}{'last 5 rounds':>16}{'neurons from - to':>20}")
    for name, rates in COURSES.items():
        last = rates[-5:].mean(0)
        figures = f"{rates[0].mean():14.3f}{rates.mean(1).max():10.3f}{last.mean():16.3f}"
        print(f"{name:24}{figures}{last.min():13.3f} - {last.max():.3f}")


print_table()

# %% [markdown]
# ## The picture

# %%
OURS, YOURS = "tab:gray", "tab:blue"


def draw() -> Figure:
    figure = plt.figure(figsize=(15, 8), layout="constrained")
    layer, neuron, estimate, bound, weights, rule = figure.subplots(2, 3).flat
    draw_course(layer, "a  Your layer", {"50 neurons": (by_layer, YOURS)})
    draw_course(neuron, "b  Your neuron", {"50 neurons": (by_neuron, YOURS)})
    compared = {"the default": (by_default, OURS), "yours": (by_estimate, YOURS)}
    draw_course(estimate, "c  Your estimate of the rate", compared)
    draw_course(bound, "d  Your bound", {"none": (by_addition, OURS), "yours": (by_bound, YOURS)})
    draw_weights(weights)
    draw_rates(rule)
    return figure


def draw_course(axes: Axes, title: str, courses: dict[str, tuple[Tensor, str]]) -> None:
    for name, (rates, colour) in courses.items():
        rounds = range(1, len(rates) + 1)
        thin, *_ = axes.plot(rounds, rates, color=colour, linewidth=0.5, alpha=0.3)
        thin.set_label(f"{name}: each")
        axes.plot(rounds, rates.mean(1), color=colour, linewidth=2.5, label=f"{name}: mean")
    axes.axhline(TARGET, color="black", linestyle="--", linewidth=1, label="target")
    axes.set(title=title, xlabel="rounds", ylabel="rate [spikes per step]")
    axes.set_ylim(0, 1.5 * axes.get_ylim()[1])  # room for the legend
    axes.legend(loc="upper right", ncols=2, fontsize=9)


def draw_weights(axes: Axes) -> None:
    for name, (_, before, after), colour in (("none", added, OURS), ("yours", multiplied, YOURS)):
        axes.plot(before[:5].flatten(), after[:5].flatten(), ".", color=colour, alpha=0.6, label=name)
    axes.set(title="e  Your bound, weights of five neurons")
    axes.set(xlabel="weight before [thresholds]", ylabel="weight after [thresholds]")
    axes.legend(loc="upper left")


def draw_rates(axes: Axes) -> None:
    last = {"the linear rule": by_linear_rule[-5:].mean(0), "yours": by_rule[-5:].mean(0)}
    bins = torch.linspace(0.05, 0.15, 21).numpy()
    for (name, rates), colour in zip(last.items(), (OURS, YOURS), strict=True):
        axes.hist(rates.numpy(), bins=bins, color=colour, alpha=0.7, label=name)
    axes.axvline(TARGET, color="black", linestyle="--", linewidth=1, label="target")
    axes.set(title="f  Your rule, last 5 rounds", xlabel="rate [spikes per step]", ylabel="neurons")
    axes.legend(loc="upper right")


figure = draw()
figure.savefig(args.output, dpi=150)
print(f"\nFigure: {args.output}")
