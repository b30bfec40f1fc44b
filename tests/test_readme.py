"""The front page, word for word: its diff trains on the digits, and its recipes run."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import snn_homeostasis

README = (Path(__file__).parent.parent / "README.md").read_text()
STEPS, EPOCHS = 20, 4


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", README, flags=re.S)


def of_the_diff(*, added):
    """The code of the first block; with its added lines or without."""
    lines = blocks("diff")[0].splitlines()
    return "\n".join(line[1:] for line in lines if added or not line.startswith("+"))


def digits():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def layers(hidden):
    sizes = [64, *[128] * hidden, 10]
    return "".join(
        f"    nn.Linear({fan_in}, {fan_out}), snn.Leaky(beta=0.9, init_hidden=True),\n"
        for fan_in, fan_out in pairwise(sizes)
    )


def accuracy_of_the_snippet(hidden, *, added):
    torch.manual_seed(0)
    snn.SpikingNeuron.instances.clear()
    train_x, train_y, test_x, test_y = digits()
    code = of_the_diff(added=added)
    assert layers(1) in code
    code = code.replace(layers(1), layers(hidden))
    loader = DataLoader(TensorDataset(train_x, train_y), 64, shuffle=True)
    code = code.replace(
        "for x, y in loader:", f"for x, y in [pair for _ in range({EPOCHS}) for pair in loader]:"
    )
    names = vars(snn_homeostasis) | {"torch": torch, "nn": nn, "snn": snn, "utils": utils}
    names |= {"loader": loader, "num_steps": STEPS, "loss_fn": cross_entropy}
    exec(code, names)
    net = names["net"].eval()
    utils.reset(net)
    with torch.no_grad():
        counts = sum(net(test_x) for _ in range(STEPS))
    return (counts.argmax(1) == test_y).float().mean().item()


@pytest.mark.parametrize("hidden", [1, 3])
def test_the_two_lines_do_no_harm_on_the_digits(hidden):
    plain = accuracy_of_the_snippet(hidden, added=False)
    regulated = accuracy_of_the_snippet(hidden, added=True)
    assert regulated > plain - 0.03  # one seed, few epochs; the benchmarks have the figures
    assert regulated > 0.8


class Model(nn.Module):
    """What the recipes assume: `fc1` and `lif1`, `fc2` and `lif2`."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 8), snn.Leaky(beta=0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(8, 3), snn.Leaky(beta=0.9, init_hidden=True)

    def forward(self, x):
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


@pytest.mark.parametrize("recipe", blocks("python"), ids=range(len(blocks("python"))))
def test_a_recipe_runs(recipe):
    pytest.importorskip("matplotlib").use("agg")
    net, x = Model(), torch.rand(64, 6)
    optimizer = torch.optim.Adam(net.parameters())

    def train():
        for _ in range(3):
            optimizer.zero_grad()
            utils.reset(net)
            sum(net(x) for _ in range(25)).square().mean().backward()
            optimizer.step()

    recipe = recipe.replace("...  # train", "train()").replace(
        "homeostasis(cells", "run()\nhomeostasis(cells"
    )
    names = vars(snn_homeostasis) | {"net": net, "x": x, "optimizer": optimizer, "train": train}
    exec(recipe, names | {"run": torch.no_grad()(lambda: [net(x) for _ in range(25)])})


def test_the_front_page_is_short():
    assert len(README.split()) <= 1500
