# %% [markdown]
# # Rescue a silent network
#
# Stack six hidden layers of plain snntorch neurons, keep PyTorch's default initialisation, and
# train. Nothing happens: no error, no warning, and an accuracy like a die with ten sides. The
# deep layers never fire, and no learning rate brings them round.
#
# This script finds the silence, ends it with two added lines, and counts what that buys, and
# where it fails. The data are scikit-learn's handwritten digits, which ship with the package.
# Run it whole (about two minutes on two cores) or cell by cell.

# %%
import argparse
import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from snntorch import surrogate, utils
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from snn_homeostasis import ExponentialRate, LinearHomeostasis

parser = argparse.ArgumentParser(description="Rescue a silent network with firing-rate homeostasis.")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--rounds", type=int, default=60, help="of calibration")
parser.add_argument("--plasticity", type=float, default=0.001, help="of the rule during training")
parser.add_argument("--output", type=Path, default=Path("01_rescue_a_silent_network.png"), help="the figure")
parser.add_argument("--quick", action="store_true", help="one seed, one epoch, five rounds")
args, _ = parser.parse_known_args()  # a notebook has arguments of its own
if args.quick:
    args.seeds, args.epochs, args.rounds = args.seeds[:1], 1, 5

torch.set_num_threads(1)  # the matrices are too small to share

# %% [markdown]
# ## The patient
#
# 64 pixels, six times 128 neurons, 10 outputs. The brightness of a pixel is a constant current
# for 20 time steps; the output neuron with the most spikes names the digit.

# %%
STEPS = 20
LAYERS = ["hidden 1", "hidden 2", "hidden 3", "hidden 4", "hidden 5", "hidden 6", "output"]

images, labels = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(
    torch.tensor(images / 16, dtype=torch.float32),
    torch.tensor(labels),
    test_size=1 / 3,
    random_state=0,
    stratify=labels,
)


def build_net() -> nn.Sequential:
    snn.SpikingNeuron.init()  # snntorch's reset visits every neuron ever built: forget those of older nets
    net = nn.Sequential()
    for fan_in, fan_out in itertools.pairwise([64, *[128] * 6, 10]):
        net.append(nn.Linear(fan_in, fan_out))
        net.append(snn.Leaky(beta=0.9, init_hidden=True, spike_grad=surrogate.fast_sigmoid(slope=25)))
    return net


def batches(seed: int) -> DataLoader:
    order = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(train_x, train_y), batch_size=64, shuffle=True, generator=order)


def spike_counts(net: nn.Module, x: Tensor) -> Tensor:
    utils.reset(net)
    return sum(net(x) for _ in range(STEPS))


# %% [markdown]
# ## The two lines
#
# An ordinary training loop, with two added lines marked `+`.
#
# `attach` finds the seven pairs of `Linear` and `Leaky` and listens to their spikes. That alone
# changes nothing, so we let it listen to the unregulated net as well. `step` moves the bias of
# each neuron by plasticity × (target − rate) / target: up where it fires too little, down where
# it fires too much. The rule needs neither labels nor gradients, so silence cannot stop it.
#
# Where the numbers come from:
#
# - `plasticity=0.001` is Adam's learning rate: neither of the two outruns the other.
# - `target=0.1` is sparse for a hidden layer, and for the output it follows from counting: ten
#   classes, each its own neuron, which fires at every step for one image in ten.
# - `ExponentialRate(tau=100)` remembers about 100 steps, here 5 batches. The default estimate is
#   the mean of everything since `clear()`; the weights move on, and it would fall behind them.


# %%
class Look(NamedTuple):
    """What the test images see; rate and silent are per layer."""

    rate: Tensor
    silent: Tensor
    accuracy: float


def train(net: nn.Sequential, seed: int, *, regulate: bool) -> tuple[list[Look], list[Tensor]]:
    looks, rates = [look(net)], []
    loader = batches(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    recent = functools.partial(ExponentialRate, tau=100)
    homeostasis = LinearHomeostasis(args.plasticity, target=0.1, param="bias", rate=recent).attach(net)  # +
    for _ in range(args.epochs):
        for x, y in loader:
            loss = F.cross_entropy(spike_counts(net, x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if regulate:
                homeostasis.step()  # +
            rates.append(layer_means(homeostasis))
        looks.append(look(net))
    return looks, rates


def layer_means(homeostasis: LinearHomeostasis) -> Tensor:
    return torch.stack([rate.mean() for rate in homeostasis.rates().values()])


# %% [markdown]
# The judge is not the library: `look` counts spikes by hand, layer by layer, on the test images.
# A neuron is silent if not one of the 599 images makes it fire. `net.eval()` freezes homeostasis
# just as it freezes batch norm, so nothing is learnt from the test set.


# %%
@torch.no_grad()
def look(net: nn.Sequential) -> Look:
    net.eval()
    utils.reset(net)
    counts = dict.fromkeys(LAYERS, 0)
    for _ in range(STEPS):
        x = test_x
        for i, layer in enumerate(LAYERS):
            x = net[2 * i + 1](net[2 * i](x))
            counts[layer] = counts[layer] + x
    net.train()
    return Look(
        rate=torch.stack([count.mean() / STEPS for count in counts.values()]),
        silent=torch.stack([(count.sum(0) == 0).float().mean() for count in counts.values()]),
        accuracy=(counts["output"].argmax(1) == test_y).float().mean().item(),
    )


# %% [markdown]
# ## Wake it up first
#
# Why wait for training? Show the new net some images, let the rule move the biases, repeat: no
# labels, no backward pass, a second of work. With no optimizer to keep pace with, the strides
# may be long. A `Leaky` with β = 0.9 and threshold 1 fires from a constant current of 0.1 on;
# `plasticity=0.05` carries a silent neuron half that way per round.
#
# Here the default estimate is the right one: exact, over all spikes since `clear()`, which each
# round begins with, because older spikes were fired under older biases.


# %%
@torch.no_grad()
def calibrate(net: nn.Sequential) -> list[Tensor]:
    rates = []
    homeostasis = LinearHomeostasis(plasticity=0.05, target=0.1, param="bias").attach(net)
    for x in train_x[torch.randint(len(train_x), (args.rounds, 64))]:
        homeostasis.clear()
        spike_counts(net, x)
        rates.append(layer_means(homeostasis))
        homeostasis.step()
    return rates


# %% [markdown]
# ## Four nets per seed
#
# The same initial weights, the same batches in the same order, four treatments.


# %%
class Course(NamedTuple):
    """The life of a net: `looks` before and after each epoch, `rates` per batch and layer."""

    looks: list[Look]
    rates: Tensor


PLAIN, REGULATED = "plain", "calibrated, rule on"
TREATMENTS = {
    PLAIN: {"calibrated": False, "regulated": False},
    "two lines": {"calibrated": False, "regulated": True},
    "calibrated, rule off": {"calibrated": True, "regulated": False},
    REGULATED: {"calibrated": True, "regulated": True},
}


def treat(seed: int, *, calibrated: bool, regulated: bool) -> Course:
    torch.manual_seed(seed)
    net = build_net()
    calibration = calibrate(net) if calibrated else []
    looks, rates = train(net, seed, regulate=regulated)
    return Course(looks, torch.stack(calibration + rates))


runs = list(itertools.product(args.seeds, TREATMENTS))
courses = {(seed, name): treat(seed, **TREATMENTS[name]) for seed, name in tqdm(runs, unit="net")}

# %% [markdown]
# ## Layer by layer
#
# The first seed. In the new net each layer hands fewer spikes to the next, until there are none.


# %%
def print_layers(seed: int) -> None:
    plain, regulated = courses[seed, PLAIN].looks, courses[seed, REGULATED].looks
    columns = {
        "new": plain[0],
        "plain, trained": plain[-1],
        "calibrated": regulated[0],
        "regulated, trained": regulated[-1],
    }
    print(f"\nSeed {seed}, by layer: rate in spikes per step, and silent neurons\n")
    print(" " * 10 + "".join(f"{name:>20}" for name in columns))
    for i, layer in enumerate(LAYERS):
        cells = [f"{seen.rate[i]:.3f} {seen.silent[i]:7.1%}" for seen in columns.values()]
        print(f"{layer:<10}" + "".join(f"{cell:>20}" for cell in cells))


print_layers(args.seeds[0])

# %% [markdown]
# ## The table
#
# On the test images; silent neurons and rate over the 768 hidden neurons. "Before" and "after"
# are before and after training, so the calibrated nets show there what calibration did.

# %%
FORMATS = [".1%", ".3f", ".1%"] * 2


def numbers(course: Course) -> list[float]:
    before_and_after = course.looks[0], course.looks[-1]
    columns = [(seen.silent[:-1].mean(), seen.rate[:-1].mean(), seen.accuracy) for seen in before_and_after]
    return [float(number) for column in columns for number in column]


def print_row(seed: object, name: str, cells: list[str]) -> None:
    print(f"{seed:<6}{name:<22}" + "".join(f"{cell:>15}" for cell in cells))


def print_table() -> None:
    print(f"\n{'':28}{'before training':>45}{'after training':>45}")
    print_row("seed", "net", ["silent", "rate", "accuracy"] * 2)
    for (seed, name), course in courses.items():
        print_row(seed, name, [f"{n:{form}}" for n, form in zip(numbers(course), FORMATS, strict=True)])
    for name in TREATMENTS:
        table = torch.tensor([numbers(courses[seed, name]) for seed in args.seeds])
        print_row("mean", name, mean_and_spread(table))


def mean_and_spread(table: Tensor) -> list[str]:
    """Over seeds; the spread is the sample standard deviation, 0 for a single seed."""
    spread = table.std(0, correction=min(1, len(table) - 1))
    moments = zip(table.mean(0).tolist(), spread.tolist(), FORMATS, strict=True)
    return [f"{mean:{form}} ± {spread:{form}}" for mean, spread, form in moments]


print_table()

# %% [markdown]
# ## The picture

# %%
COLOURS = dict(zip(TREATMENTS, ["tab:gray", "tab:orange", "tab:green", "tab:blue"], strict=True))


def draw() -> Figure:
    seed = args.seeds[0]
    figure = plt.figure(figsize=(15, 4.8), layout="constrained")
    plain, regulated, accuracy = figure.subplots(1, 3)
    draw_rates(plain, courses[seed, PLAIN].rates, f"a  Plain, seed {seed}")
    draw_rates(regulated, courses[seed, REGULATED].rates, f"b  Calibrated, rule on, seed {seed}")
    plain.sharey(regulated)
    regulated.axvline(args.rounds, color="black", linewidth=1)
    regulated.text(args.rounds, 0.01, "calibration \n(no labels) ", ha="right", va="bottom")
    regulated.text(args.rounds, 0.01, " training", ha="left", va="bottom")
    plain.legend(loc="upper right", ncols=2)
    draw_accuracy(accuracy)
    return figure


def draw_rates(axes: Axes, rates: Tensor, title: str) -> None:
    shades = [*colormaps["viridis"](torch.linspace(0, 0.9, 6).numpy()), "tab:red"]
    for layer, colour, rate in zip(LAYERS, shades, rates.T, strict=True):
        axes.plot(rate, color=colour, label=layer)
    axes.axhline(0.1, color="black", linestyle="--", linewidth=1, label="target")
    axes.set(title=title, xlabel="batches seen", ylabel="mean rate [spikes per step]")


def draw_accuracy(axes: Axes) -> None:
    for name, colour in COLOURS.items():
        curves = torch.tensor([[100 * seen.accuracy for seen in courses[s, name].looks] for s in args.seeds])
        axes.plot(curves.T, color=colour, linewidth=0.7, alpha=0.5)
        axes.plot(curves.mean(0), color=colour, linewidth=3, label=name)
    axes.axhline(10, color="black", linestyle=":", linewidth=1, label="chance")
    axes.set(
        title="c  Thin: each seed, thick: mean", xlabel="epochs", ylabel="test accuracy [%]", ylim=(0, 100)
    )
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.1))


figure = draw()
figure.savefig(args.output, dpi=150)
print(f"\nFigure: {args.output}")
