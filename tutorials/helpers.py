"""What the tutorials share: options, the digits, nets, counts of spikes and tables."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import snntorch as snn
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from snntorch import surrogate, utils
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snn_homeostasis.monitoring import Watch

torch.set_num_threads(1)  # the matrices are too small to share
plt.rcParams.update({"font.size": 13, "figure.dpi": 100})

Counts = Callable[[Tensor], Tensor]
STEPS = 20  # time steps per image


def options(figure: str, **choices: int | float | list[int]) -> argparse.Namespace:
    """Reads the command line: each choice as an option, `--output` for the figure, and `--quick`."""
    parser = argparse.ArgumentParser()
    for name, default in choices.items():
        is_list = isinstance(default, list)
        kind = type(default[0] if is_list else default)
        parser.add_argument(f"--{name}", type=kind, default=default, nargs="+" if is_list else None)
    parser.add_argument("--output", type=Path, default=Path(figure), help="where the figure goes")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch")
    args, _ = parser.parse_known_args()  # a notebook has arguments of its own
    if args.quick:
        for name, default in choices.items():
            setattr(args, name, default[:1] if isinstance(default, list) else min(default, 1))
    return args


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns scikit-learn's handwritten digits: train images [1198, 64], labels, test images, labels."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=1 / 3, random_state=0, stratify=labels
    )
    return train_x, train_y, test_x, test_y


def batches(x: Tensor, y: Tensor, seed: int = 0) -> DataLoader:
    """Returns shuffled batches of 64, in an order that the seed fixes."""
    order = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True, generator=order)


def dense_net(hidden: int, width: int = 128, slope: float = 25) -> nn.Sequential:
    """Builds 64 inputs, some hidden layers and 10 outputs, each a Linear and a Leaky."""
    snn.SpikingNeuron.init()  # snntorch's reset visits every neuron ever built: forget those of older nets
    net = nn.Sequential()
    for fan_in, fan_out in pairwise([64, *[width] * hidden, 10]):
        net.append(nn.Linear(fan_in, fan_out))
        net.append(snn.Leaky(beta=0.9, init_hidden=True, spike_grad=surrogate.fast_sigmoid(slope=slope)))
    return net


def spike_counts(net: nn.Module, x: Tensor) -> Tensor:
    """Shows images to a rested net; their brightness is a constant input. Returns [B, 10]."""
    utils.reset(net)
    return sum(net(x) for _ in range(STEPS))


@torch.no_grad()
def accuracy_of(net: nn.Module, x: Tensor, y: Tensor, counts: Counts | None = None) -> float:
    """Returns the share of images whose digit spikes most; ``counts`` is by default a call of the net."""
    net.eval()  # freezes homeostasis, too
    share = ((counts or net)(x).argmax(1) == y).float().mean().item()
    net.train()
    return share


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Returns `accuracy_of` a net that takes one step per call."""
    return accuracy_of(net, x, y, lambda x: spike_counts(net, x))


def before_and_after(before: Watch, after: Watch, target: float) -> Figure:
    """Draws the mean rate of each cell as two bars, before and after."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for shift, colour, label, watch in ((-0.2, "0.75", "before", before), (0.2, "tab:blue", "after", after)):
        rates = [rate.mean().item() for rate in watch.rates().values()]
        axes.bar([i + shift for i in range(len(rates))], rates, 0.4, color=colour, label=label)
    axes.axhline(target, color="black", linestyle="--", linewidth=1, label="target")
    axes.set_xticks(range(len(rates)), [f"layer {i + 1}" for i in range(len(rates))])
    axes.set(ylabel="rate [spikes per step]")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def mean_and_spread(values: Iterable[float], form: str = ".1%") -> str:
    """Writes mean ± standard deviation."""
    values = torch.tensor(list(values))
    spread = values.std(correction=min(1, len(values) - 1)).item()
    return f"{values.mean().item():{form}} ± {spread:{form}}"


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints columns, the first to the left and the others to the right."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for first, *others in lines:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print(first.ljust(widths[0]), *cells, sep="   ")


def print_runs(
    head: str, results: Mapping[str, Sequence[Mapping[str, float]]], figures: Mapping[str, str]
) -> None:
    """Prints a row for each name: the mean ± standard deviation of some figures of its runs."""
    rows = []
    for name, runs in results.items():
        cells = [mean_and_spread([run[figure] for run in runs], form) for figure, form in figures.items()]
        rows.append([name, *cells])
    print_table([head, *figures], rows)
