# %% [markdown]
# # Attach to your model
#
# Your model is a class: layers as attributes, a `forward` with its own time loop, some pooling in
# between. This script attaches homeostasis to such a model without changing a line of it, trains on
# scikit-learn's handwritten digits, saves, and resumes. Then it answers the questions that come next:
# weight or bias? which λ? which estimate of the rate? how often to step?
# About two and a half minutes on one core.

# %%
import argparse
import functools
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from snntorch import surrogate
from torch import Tensor, nn
from tqdm import tqdm

from snn_homeostasis import (
    ClampBounds,
    CumulativeRate,
    ExponentialRate,
    LinearHomeostasis,
    RateEstimator,
    WindowedRate,
)

parser = argparse.ArgumentParser(description="Attach homeostasis to a model of your own.")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--rounds", type=int, default=120, help="of each choice")
parser.add_argument("--output", type=Path, default=Path("02_attach_to_your_model.png"), help="the figure")
parser.add_argument("--quick", action="store_true", help="one seed, one epoch, 8 rounds")
args, _ = parser.parse_known_args()  # a notebook has arguments of its own
if args.quick:
    args.seeds, args.epochs, args.rounds = args.seeds[:1], 1, 8

torch.set_num_threads(1)  # the matrices are too small to share

# %% [markdown]
# ## A model like yours
#
# Three convolutions, two poolings, one output layer. The membranes are local variables of `forward`.

# %%
STEPS, BATCH = 15, 64

images, labels = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(
    torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8),
    torch.tensor(labels),
    test_size=1 / 3,
    random_state=0,
    stratify=labels,
)


def leaky() -> snn.Leaky:
    return snn.Leaky(beta=0.9, spike_grad=surrogate.fast_sigmoid(slope=25))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 8, 3, padding=1), leaky()
        self.conv2, self.lif2 = nn.Conv2d(8, 16, 3, padding=1), leaky()
        self.conv3, self.lif3 = nn.Conv2d(16, 16, 3, padding=1), leaky()
        self.fc, self.lif4 = nn.Linear(64, 10), leaky()

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem3, mem4 = (lif.init_leaky() for lif in (self.lif1, self.lif2, self.lif3, self.lif4))
        counts = 0
        for _ in range(STEPS):
            spikes, mem1 = self.lif1(self.conv1(x), mem1)
            spikes, mem2 = self.lif2(F.max_pool2d(self.conv2(spikes), 2), mem2)
            spikes, mem3 = self.lif3(F.max_pool2d(self.conv3(spikes), 2), mem3)
            spikes, mem4 = self.lif4(self.fc(spikes.flatten(1)), mem4)
            counts = counts + spikes
        return counts


# %% [markdown]
# ## Attach
#
# `attach(net, example)` runs the model once on the example, follows the data from each layer to each
# neuron, and leaves the model as it was. A cell bears the name of its neuron. One object can
# attach several times: `include=` picks the cells, and any setting may differ between them. Here the
# first layer, which sees the image itself, may fire twice as much.

# %%
recent = functools.partial(ExponentialRate, tau=5 * STEPS)  # remembers about five batches


def attach(net: nn.Module, param: str, plasticity: float, **settings: object) -> LinearHomeostasis:
    homeostasis = LinearHomeostasis(plasticity, target=0.1, param=param, rate=recent, **settings)
    homeostasis.attach(net, train_x[:2], include=["lif1"], target=0.2)
    return homeostasis.attach(net, train_x[:2], exclude=["lif1"])


homeostasis = attach(ConvNet(), "bias", 0.01)
for name, unit in homeostasis.units.items():
    print(f"{name}: {unit.cell.connection.layer}, target {unit.state.target}")

# %% [markdown]
# ## Train
#
# `follow(optimizer)` calls `step()` after every step of the optimizer, so that the training loop
# stays as it is. `rates()` tells the rate of every neuron at any time. Four treatments:
#
# - **plain**: the rates are read, nothing is regulated;
# - **bias**: one number per channel, which shifts the working point and leaves the filters alone;
# - **weight**: the same amount is added to all weights of a channel. They are many, so λ is a tenth.
# - **bias, bounded**: the bias ends inside [−0.05, 0.05], half of the current that makes a `Leaky`
#   with β = 0.9 fire. For hardware with a range, or to see how much the rule needs.


# %%
class Treatment(NamedTuple):
    param: str = "bias"
    plasticity: float = 0.01
    bounds: ClampBounds | None = None
    regulate: bool = True


PLAIN, BIAS = "plain", "bias"
TREATMENTS = {
    PLAIN: Treatment(regulate=False),
    BIAS: Treatment(),
    "weight": Treatment(param="weight", plasticity=0.001),
    "bias, bounded": Treatment(bounds=ClampBounds(-0.05, 0.05)),
}


class Course(NamedTuple):
    """Of one net: rates by batch and cell, accuracy by epoch, share of channels that never fire."""

    rates: Tensor
    accuracy: list[float]
    silent: float


def learn(net: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    loss = F.cross_entropy(net(train_x[batch]), train_y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(seed: int, treatment: Treatment) -> Course:
    torch.manual_seed(seed)
    net = ConvNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    homeostasis = attach(net, treatment.param, treatment.plasticity, bounds=treatment.bounds)
    if treatment.regulate:
        homeostasis.follow(optimizer)
    rates, scores = [], [accuracy(net)]
    for _ in range(args.epochs):
        for batch in torch.randperm(len(train_x)).split(BATCH):
            learn(net, optimizer, batch)
            rates.append(layer_means(homeostasis))
        scores.append(accuracy(net))
    return Course(torch.stack(rates), scores, silent_share(homeostasis))


def layer_means(homeostasis: LinearHomeostasis) -> Tensor:
    return torch.stack([rate.mean() for rate in homeostasis.rates().values()])


def silent_share(homeostasis: LinearHomeostasis) -> float:
    """Channels below one spike in 1000 steps, at their average position."""
    channels = [rate.flatten(1).mean(1) if rate.ndim > 1 else rate for rate in homeostasis.rates().values()]
    return (torch.cat(channels) < 0.001).float().mean().item()


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    net.eval()  # freezes homeostasis as well
    score = (net(test_x).argmax(1) == test_y).float().mean().item()
    net.train()
    return score


runs = list(itertools.product(args.seeds, TREATMENTS))
courses = {(seed, name): train(seed, TREATMENTS[name]) for seed, name in tqdm(runs, unit="net")}

# %% [markdown]
# Rates are those of the last training batches, mean over seeds; accuracy is on the test images.

# %%
CELLS = ["lif1", "lif2", "lif3", "lif4"]
HEADS = [*(f"rate {cell}" for cell in CELLS), "silent channels"]
print(f"\n{'mean over seeds':<16}" + "".join(f"{head:>17}" for head in [*HEADS, "accuracy"]))
for name in TREATMENTS:
    kept = [courses[seed, name] for seed in args.seeds]
    rates = torch.stack([course.rates[-1] for course in kept]).mean(0)
    silent = sum(course.silent for course in kept) / len(kept)
    scores = torch.tensor([course.accuracy[-1] for course in kept])
    spread = scores.std(correction=min(1, len(kept) - 1))
    print(f"{name:<16}" + "".join(f"{rate:>17.3f}" for rate in rates) + f"{silent:>17.1%}", end="")
    print(f"{scores.mean():>9.1%} ± {spread:.1%}")

# %% [markdown]
# ## Save and resume
#
# `homeostasis.state_dict()` holds the estimates. Save it with the model and the optimizer. Below a net
# trains for 10 batches and is saved. Then it goes on for 10 more, and so does a fresh one that has loaded the
# file. If nothing was lost, the two are the same to the last bit.

# %%
Parts = tuple[nn.Module, torch.optim.Optimizer, LinearHomeostasis]


def build() -> Parts:
    net = ConvNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    return net, optimizer, attach(net, "bias", 0.01).follow(optimizer)


def save(parts: Parts) -> io.BytesIO:
    file = io.BytesIO()  # or a path
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    return file


def resume(file: io.BytesIO) -> Parts:
    parts = build()
    for part, state in zip(parts, torch.load(file), strict=True):
        part.load_state_dict(state)
    return parts


batches = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(0)).split(BATCH)
going = build()
for batch in batches[:10]:
    learn(*going[:2], batch)
resumed = resume(save(going))
for net, optimizer, _ in (going, resumed):
    for batch in batches[10:]:
        learn(net, optimizer, batch)
pairs = zip(going[0].parameters(), resumed[0].parameters(), strict=True)
print(f"\nResumed net equal to the last bit: {all(torch.equal(one, other) for one, other in pairs)}")
print(f"Rates as well: {torch.equal(layer_means(going[2]), layer_means(resumed[2]))}")

# %% [markdown]
# ## What to choose
#
# Now without learning: only images, and the rule on the biases. Half-way the target is doubled:
# `step(0.2)` takes another target for that call. A good choice comes to the target soon, follows
# it soon, and is calm. The rates shown are counted by hand, batch by batch; the rule sees its own
# estimate.


# %%
class Choice(NamedTuple):
    plasticity: float = 0.01
    rate: Callable[[], RateEstimator] = recent
    every: int = 1  # batches from step to step
    clear: bool = False  # before each batch


@torch.no_grad()
def follow_target(choice: Choice) -> Tensor:
    """The rate of each output neuron in each batch."""
    torch.manual_seed(0)
    net, rates = ConvNet(), []
    homeostasis = LinearHomeostasis(choice.plasticity, 0.1, "bias", rate=choice.rate).attach(net, train_x[:2])
    for round_ in range(args.rounds):
        if choice.clear:
            homeostasis.clear()
        counts = net(train_x[torch.randint(len(train_x), (BATCH,))])
        rates.append(counts.mean(0) / STEPS)
        if round_ % choice.every == choice.every - 1:
            homeostasis.step(target_at(round_))
    return torch.stack(rates)


def target_at(round_: int) -> float:
    return 0.1 if round_ < args.rounds // 2 else 0.2


CHOICES = {
    "d  How large a λ": {
        "λ = 0.003: slow": Choice(plasticity=0.003),
        "λ = 0.01": Choice(),
        "λ = 0.4: swings": Choice(plasticity=0.4),
    },
    "e  Which estimate (λ = 0.01)": {
        "CumulativeRate()": Choice(rate=CumulativeRate),
        "CumulativeRate(), cleared": Choice(rate=CumulativeRate, clear=True),
        "ExponentialRate(75)": Choice(),
        "WindowedRate(75)": Choice(rate=functools.partial(WindowedRate, 5 * STEPS)),
    },
    "f  How often to step (λ = 0.03)": {
        "every batch": Choice(plasticity=0.03),
        "every 5 batches": Choice(plasticity=0.03, every=5),
        "every 20 batches": Choice(plasticity=0.03, every=20),
    },
}
names = [(title, name) for title, choices in CHOICES.items() for name in choices]
followed = {key: follow_target(CHOICES[key[0]][key[1]]) for key in tqdm(names, unit="choice")}

# %%
LATE = args.rounds // 4  # the second half of each half
print(f"\n{'root mean square error of the rate of a neuron':<64}{'target 0.1':>14}{'target 0.2':>14}")
for (title, name), rates in followed.items():
    errors = [half[-LATE:] - target for half, target in zip(rates.chunk(2), (0.1, 0.2), strict=True)]
    print(
        f"{title[3:]:<34}{name:<30}" + "".join(f"{error.square().mean().sqrt():>14.3f}" for error in errors)
    )

# %% [markdown]
# ## The picture
#
# What to see, over three seeds of six epochs:
#
# - **a, b**: The plain net needs 40 batches before its output fires. The rule wakes it sooner, and
#   no channel is silent at the end. It does *not* hold the rates at the target: the optimizer pulls
#   the other way, and `lif2` ends above 0.2. A larger λ holds them better, at a price: on seed 0,
#   λ = 0.05 brought the last three layers to 0.17, 0.13 and 0.10, and the accuracy from 88 % down
#   to 55 %.
# - **c**: Regulated nets learn earlier. After six epochs 85 % (plain) stand beside 88 % (bias), 89 %
#   (weight) and 87 % (bounded): too little for three seeds to settle. This net would have learnt by
#   itself; where silence is total, see the first tutorial. Bias and weight do alike here. Weights
#   are for layers without a bias, and only behind inputs that are not negative.
# - **d, λ**: Too small is slow. Too large swings around the target, since the estimate still
#   remembers spikes fired under older biases. Halve λ until it is calm.
# - **e, estimate**: The mean of everything since `clear()` reacts late. It still holds the silent
#   start against neurons that already fire too much, overshoots, and does worse the longer it has
#   run. Clear it, or take an estimate that forgets: the other three hardly differ.
#   `ExponentialRate` needs no window in memory.
# - **f, how often**: Stepping rarely acts like a smaller λ: slow, without overshoot. After each batch
#   is the simple choice. A memory (`tau`) of a few batches goes with it. With `tau=750` in place of 75
#   even λ = 0.01 overshot by more than half (0.16 for a target of 0.1).
#
# The target: 0.05 to 0.2 for hidden layers. For the output, one class in ten firing at each step
# makes 0.1.

# %%
COLOURS = dict(zip(TREATMENTS, ["tab:gray", "tab:blue", "tab:orange", "tab:green"], strict=True))


def draw() -> Figure:
    seed = args.seeds[0]
    figure = plt.figure(figsize=(15, 8.5), layout="constrained")
    plain, regulated, scores, *choices = figure.subplots(2, 3).flat
    draw_rates(plain, courses[seed, PLAIN].rates, f"a  {PLAIN}, seed {seed}")
    draw_rates(regulated, courses[seed, BIAS].rates, f"b  {BIAS}, seed {seed}")
    plain.sharey(regulated)
    draw_accuracy(scores)
    for axes, (title, group) in zip(choices, CHOICES.items(), strict=True):
        draw_choice(axes, title, list(group))
    return figure


def draw_rates(axes: Axes, rates: Tensor, title: str) -> None:
    for cell, rate in zip(CELLS, rates.T, strict=True):
        axes.plot(rate, label=cell)
    axes.axhline(0.2, color="tab:blue", linestyle="--", linewidth=1, label="target of lif1")
    axes.axhline(0.1, color="black", linestyle="--", linewidth=1, label="target of the others")
    axes.set(title=title, xlabel="batches seen", ylabel="mean rate [spikes per step]", ylim=(0, 0.4))
    axes.legend(loc="upper right", ncols=2, fontsize=8)


def draw_accuracy(axes: Axes) -> None:
    for name, colour in COLOURS.items():
        curves = 100 * torch.tensor([courses[seed, name].accuracy for seed in args.seeds])
        axes.plot(curves.T, color=colour, linewidth=0.7, alpha=0.5)
        axes.plot(curves.mean(0), color=colour, linewidth=3, label=name)
    axes.set(title="c  Thin: each seed, thick: mean", xlabel="epochs", ylabel="test accuracy [%]")
    axes.set(ylim=(0, 100))
    axes.legend(loc="lower right")


def draw_choice(axes: Axes, title: str, group: list[str]) -> None:
    for name in group:
        axes.plot(followed[title, name].mean(1), label=name, linewidth=1.3)
    targets = [target_at(round_) for round_ in range(args.rounds)]
    axes.plot(targets, color="black", linestyle="--", linewidth=1, label="target")
    axes.set(title=title, xlabel="batches seen", ylabel="rate of the output [spikes per step]", ylim=(0, 0.4))
    axes.legend(loc="upper left", fontsize=8)


figure = draw()
figure.savefig(args.output, dpi=150)
print(f"\nFigure: {args.output}")
