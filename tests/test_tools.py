"""Tools that people train with: the real ones, each skipped where it is not installed (extra ``tools``)."""

from __future__ import annotations

import pytest
import torch
from nets import leaky, snapshot, unchanged
from snntorch import utils
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from snn_homeostasis import ArgumentError, ClampBounds, LinearHomeostasis

# the tools warn of their own code, each release of other things
pytestmark = pytest.mark.filterwarnings("default")

FEATURES, CLASSES, STEPS, SAMPLES, BATCH = 6, 3, 5, 24, 4
BATCHES = SAMPLES // BATCH


class Net(nn.Module):
    """Loops over time inside, and returns counts of spikes."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(FEATURES, 8), leaky(), nn.Linear(8, CLASSES), leaky()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self.layers)
        return sum(self.layers(x) for _ in range(STEPS))


def data() -> torch.utils.data.TensorDataset:
    inputs, labels = 2 * torch.rand(SAMPLES, FEATURES), torch.randint(CLASSES, (SAMPLES,))
    return torch.utils.data.TensorDataset(inputs, labels)


def loader() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(data(), BATCH)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.1)


def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for x, y in loader():
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()


# --- optimizers in wrappers ------------------------------------------------------------------


def accelerated(optimizer: torch.optim.Optimizer) -> object:
    return pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(optimizer)


def private(optimizer: torch.optim.Optimizer) -> object:
    wrapper = pytest.importorskip("opacus").optimizers.DPOptimizer
    return wrapper(optimizer, noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=BATCH)


def lightning(optimizer: torch.optim.Optimizer) -> object:
    return pytest.importorskip("lightning").pytorch.core.optimizer.LightningOptimizer(optimizer)


def fabric(optimizer: torch.optim.Optimizer) -> object:
    return pytest.importorskip("lightning").Fabric(accelerator="cpu").setup_optimizers(optimizer)


WRAPPERS = {each.__name__: each for each in (accelerated, private, lightning, fabric)}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapper_and_what_it_wraps_are_one_optimizer(wrap):
    net = Net()
    optimizer = sgd(net)
    wrapper = WRAPPERS[wrap](optimizer)
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net).follow(wrapper)
    for again in (wrapper, optimizer):
        with pytest.raises(ArgumentError, match="Found a second `follow` of the same SGD"):
            homeostasis.follow(again)
    homeostasis.remove()
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("wrap", ["accelerated", "lightning", "fabric"])
def test_wrappers_of_wrappers_are_followed(wrap):
    net = Net()
    optimizer = sgd(net)
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net).follow(WRAPPERS[wrap](private(optimizer)))
    with torch.no_grad():
        net(data()[:BATCH][0])
    before = snapshot(net)
    optimizer.step()
    assert not unchanged(net, before)
    homeostasis.remove()


def test_a_wrapper_that_goes_on_after_its_optimizer_is_refused():
    schedulefree, net = pytest.importorskip("schedulefree"), Net()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
    for wrapper in (schedulefree.ScheduleFreeWrapper, schedulefree.ScheduleFreeWrapperReference):
        with pytest.raises(ArgumentError, match=f"Found `optimizer = {wrapper.__name__}`") as caught:
            homeostasis.follow(wrapper(sgd(net)))
        caught.match(r"call `step\(\)` of the homeostasis after each step of the wrapper")


@pytest.mark.parametrize("kind", ["AdamWScheduleFree", "RAdamScheduleFree"])
def test_optimizers_without_a_schedule_are_followed(kind):
    schedulefree, net = pytest.importorskip("schedulefree"), Net()
    optimizer = getattr(schedulefree, kind)(net.parameters(), 0.01)
    optimizer.train()
    bounds = ClampBounds(-0.3, 0.3)
    homeostasis = LinearHomeostasis(0.02, 0.2, bounds=bounds).attach(net).follow(optimizer)
    for x, y in loader():

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(net(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert net.layers[0].weight.abs().max() <= 0.3  # the rule comes last
    assert homeostasis.units["layers.1"].rate.steps == BATCHES * STEPS
