# %% [markdown]
# # Homeostasis with STDP
#
# Spike-timing-dependent plasticity (STDP) learns without labels and without gradients: a synapse
# whose input spiked shortly before the neuron grows, the others shrink. It has a known illness.
# The neuron that happens to fire first learns to fire first, so that in the end a few neurons
# take all the spikes, whatever the image, and the rest never learn anything.
#
# Homeostasis is the other half of the mechanism: a neuron that fires too often becomes less
# excitable, one that is left out becomes more so. This script learns scikit-learn's handwritten
# digits with and without it, over several seeds, and shows what each neuron has learnt. As a
# check it also takes homeostasis without any learning. About a minute on two cores.

# %%
import argparse
import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import snntorch as snn
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from snntorch import utils
from torch import Tensor, nn
from tqdm import tqdm

from snn_homeostasis import Cell, ExponentialRate, LinearHomeostasis

parser = argparse.ArgumentParser(description="Unsupervised learning by STDP, with and without homeostasis.")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--plasticity", type=float, default=0.003, help="of homeostasis")
parser.add_argument("--output", type=Path, default=Path("03_homeostasis_with_stdp.png"), help="the figure")
parser.add_argument("--quick", action="store_true", help="one seed, one epoch")
args, _ = parser.parse_known_args()  # a notebook has arguments of its own
if args.quick:
    args.seeds, args.epochs = args.seeds[:1], 1

torch.set_num_threads(1)  # the matrices are too small to share

# %% [markdown]
# ## One layer that competes
#
# 64 pixels spike at random, the brighter the more often, for 50 steps. They drive 64 `Leaky`
# neurons through one plain `Linear` layer; each spike inhibits all the other neurons, so that they
# compete for an image. That is ordinary snntorch code, with a time loop of its own.

# %%
NEURONS, STEPS, BATCH = 64, 50, 32
BRIGHTEST = 0.5  # spikes per step of a white pixel
INHIBITION = 0.3  # thresholds

images, labels = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(
    torch.tensor(images / 16, dtype=torch.float32),
    torch.tensor(labels),
    test_size=1 / 3,
    random_state=0,
    stratify=labels,
)


class Competition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        snn.SpikingNeuron.init()  # snntorch's reset visits every neuron ever built: forget older ones
        self.fc = nn.Linear(64, NEURONS)
        self.lif = snn.Leaky(beta=0.95, init_hidden=True, reset_mechanism="zero")
        nn.init.uniform_(self.fc.weight, 0, STRONGEST / 2)
        nn.init.zeros_(self.fc.bias)

    def forward(self, pixels: Tensor, before: Tensor) -> Tensor:
        others = before.sum(1, keepdim=True) - before
        return self.lif(self.fc(pixels) - INHIBITION * others)


# %% [markdown]
# ## STDP in a few lines
#
# Each input leaves a trace: 1 when it spikes, then fading by a fifth per step. Whenever a neuron
# spikes, its weights move a little toward the traces. Pairs of "input, then neuron" make a synapse
# grow; a neuron that spikes without that input makes it shrink. A batch of images is learnt at
# once, by the mean of their changes.

# %%
STRONGEST = 0.03  # weight, in thresholds
LEARNING_RATE, FADING = 0.05, 0.8


@torch.no_grad()
def stdp(weight: Tensor, traces: Tensor, spikes: Tensor) -> None:
    toward = STRONGEST * spikes.T @ traces
    away = spikes.sum(0).unsqueeze(1) * weight
    weight.add_(toward - away, alpha=LEARNING_RATE / len(spikes))


@torch.no_grad()
def present(net: Competition, x: Tensor, *, learn: bool) -> Tensor:
    """Shows images to a rested net and returns the spike counts of its neurons."""
    utils.reset(net)
    traces, spikes = torch.zeros_like(x), torch.zeros(len(x), NEURONS)
    counts = torch.zeros_like(spikes)
    for _ in range(STEPS):
        pixels = torch.bernoulli(BRIGHTEST * x)
        spikes = net(pixels, spikes)
        traces = torch.maximum(FADING * traces, pixels)
        if learn:
            stdp(net.fc.weight, traces, spikes)
        counts += spikes
    return counts


# %% [markdown]
# ## Add homeostasis
#
# STDP owns the weights, homeostasis the bias: it works as a threshold that adapts. The cell is named by
# hand, one line, because this net calls its layers from code of its own. `step()` comes once per
# batch, after learning; homeostasis has no say in what is learnt, only in who takes part.
#
# - The target: one spike in five steps for the whole layer, shared by all its neurons.
# - `ExponentialRate(tau=300)` remembers six batches.
# - The bias enters at every step and a membrane with β = 0.95 sums up some 20 of them, so that
#   `plasticity=0.003` lifts a silent neuron by at most 0.06 thresholds per batch.

# %%
TARGET = 0.2 / NEURONS  # spikes per step


class Outcome(NamedTuple):
    """Of one net: its weights, each neuron's part in the spikes for the test images, and the read-out."""

    weight: Tensor
    share: Tensor
    rate: float
    accuracy: float

    @property
    def used(self) -> float:
        """Neurons with more than a tenth of an even share."""
        return (self.share > 0.1 / NEURONS).float().mean().item()

    @property
    def most(self) -> float:
        """The part of the busiest tenth of the neurons."""
        return self.share.topk(NEURONS // 10).values.sum().item()


def live(seed: int, *, learn: bool, regulate: bool) -> Outcome:
    torch.manual_seed(seed)
    net = Competition()
    recent = functools.partial(ExponentialRate, tau=300)
    homeostasis = LinearHomeostasis(args.plasticity, TARGET, "bias", rate=recent)
    homeostasis.register_cell("competition", Cell(net.fc, net.lif))
    for _ in range(args.epochs):
        for batch in torch.randperm(len(train_x)).split(BATCH):
            present(net, train_x[batch], learn=learn)
            if regulate:
                homeostasis.step()
    return judge(net.eval())


# %% [markdown]
# The judge: a linear read-out (logistic regression) that sees nothing but spike counts. It is fitted on
# those of the training images and tested on images that the net has not seen. `net.eval()`
# freezes homeostasis.


# %%
def judge(net: Competition) -> Outcome:
    seen, unseen = (present(net, x, learn=False) for x in (train_x, test_x))
    read_out = LogisticRegression(max_iter=5000).fit(seen, train_y)
    share = unseen.sum(0) / unseen.sum().clamp_min(1)
    rate = unseen.mean().item() / STEPS
    return Outcome(net.fc.weight.detach().clone(), share, rate, read_out.score(unseen, test_y))


ALONE, TOGETHER, UNTAUGHT = "STDP alone", "STDP and homeostasis", "homeostasis, no STDP"
TREATMENTS = {
    ALONE: {"learn": True, "regulate": False},
    TOGETHER: {"learn": True, "regulate": True},
    UNTAUGHT: {"learn": False, "regulate": True},
}
runs = list(itertools.product(args.seeds, TREATMENTS))
outcomes = {(seed, name): live(seed, **TREATMENTS[name]) for seed, name in tqdm(runs, unit="net")}

# %% [markdown]
# ## The table
#
# "Used" are neurons with more than a tenth of an even share of the spikes; an even share for the busiest
# tenth would be 9 %. The last column is what a read-out makes of the spikes.


# %%
def print_row(*cells: str) -> None:
    first, *others = cells
    print(f"{first:<24}" + "".join(f"{cell:>24}" for cell in others))


def print_table() -> None:
    print_row(
        "\nmean ± std over seeds", "neurons used", "share of busiest tenth", "rate [per step]", "accuracy"
    )
    for name in TREATMENTS:
        kept = [outcomes[seed, name] for seed in args.seeds]
        columns = torch.tensor([[each.used, each.most, each.rate, each.accuracy] for each in kept])
        spread = columns.std(0, correction=min(1, len(kept) - 1))
        forms = [".1%", ".1%", ".4f", ".1%"]
        cells = zip(columns.mean(0).tolist(), spread.tolist(), forms, strict=True)
        print_row(name, *(f"{mean:{form}} ± {std:{form}}" for mean, std, form in cells))


print_table()

# %% [markdown]
# ## The picture
#
# Each little square is what one neuron has learnt: its 64 weights, laid out as the pixels they come from,
# the busiest neuron first.
#
# What to see, over five seeds of four epochs: with STDP alone 9 % of the neurons take all the spikes. They
# have learnt the average of all digits, and the read-out is right for 15 % of the images. With homeostasis
# every neuron takes part, most of them show strokes of digits, and the read-out is right for 86 %. But look
# at the gray points as well: random weights under homeostasis already give 81 %. Taking part is the larger
# half of the gain, and what STDP adds to it is five points.

# %%
COLOURS = dict(zip(TREATMENTS, ["tab:orange", "tab:blue", "tab:gray"], strict=True))


def draw() -> Figure:
    seed = args.seeds[0]
    figure = plt.figure(figsize=(16, 4.8), layout="constrained")
    alone, together, shares, accuracy = figure.subplots(1, 4)
    picture = draw_fields(alone, outcomes[seed, ALONE], f"a  {ALONE}, seed {seed}")
    draw_fields(together, outcomes[seed, TOGETHER], f"b  {TOGETHER}, seed {seed}")
    figure.colorbar(picture, ax=together, label="weight [thresholds]", shrink=0.75)
    draw_shares(shares)
    draw_accuracy(accuracy)
    return figure


def draw_fields(axes: Axes, outcome: Outcome, title: str) -> object:
    fields = outcome.weight[outcome.share.argsort(descending=True)].reshape(8, 8, 8, 8)
    framed = nn.functional.pad(fields, (0, 1, 0, 1), value=torch.nan)
    page = framed.permute(0, 2, 1, 3).reshape(72, 72).numpy()
    axes.set(title=title, xticks=[], yticks=[], xlabel="64 neurons, the busiest first")
    return axes.imshow(page, cmap="viridis", vmin=0, vmax=0.025)


def draw_shares(axes: Axes) -> None:
    for name, colour in COLOURS.items():
        shares = torch.stack([outcomes[seed, name].share.sort(descending=True).values for seed in args.seeds])
        axes.plot(range(1, NEURONS + 1), 100 * shares.mean(0), color=colour, label=name)
    axes.axhline(100 / NEURONS, color="black", linestyle="--", linewidth=1, label="even share")
    axes.set(title="c  Who fires (mean over seeds)", xlabel="neurons, the busiest first")
    axes.set(ylabel="share of all spikes [%]", yscale="log", ylim=(0.01, 100))
    axes.legend(loc="upper right")


def draw_accuracy(axes: Axes) -> None:
    for name, colour in COLOURS.items():
        kept = [outcomes[seed, name] for seed in args.seeds]
        used, accuracy = [100 * each.used for each in kept], [100 * each.accuracy for each in kept]
        axes.plot(used, accuracy, "o", color=colour, alpha=0.7, label=name)
    axes.axhline(10, color="black", linestyle=":", linewidth=1, label="chance")
    axes.set(title="d  Each seed", xlabel="neurons used [%]", ylabel="read-out accuracy [%]")
    axes.set(xlim=(0, 105), ylim=(0, 100))
    axes.legend(loc="center left")


figure = draw()
figure.savefig(args.output, dpi=150)
print(f"\nFigure: {args.output}")
