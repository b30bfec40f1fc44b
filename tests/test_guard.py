"""A push that its rate does not answer is said once, by name, and held; all other pushes go on."""

import warnings
from collections.abc import Callable

import pytest
import snntorch as snn
import torch
from nets import leaky
from snntorch import utils
from torch import Tensor, nn

from snn_homeostasis import Cell, ClampBounds, HomeostasisWarning, LinearHomeostasis, WindowedRate

WAYS = {
    "step": lambda homeostasis: homeostasis.step(),
    "forward, update": lambda homeostasis: (homeostasis.forward(), homeostasis.update()),
}


class Loop:
    """A net, the cell in it that is regulated, and rounds of one sequence and one step each."""

    def __init__(self, net: nn.Module, layer: nn.Module, neuron: nn.Module, draw: Callable[[], Tensor]):
        self.net, self.draw, self.cell = net, draw, Cell(layer, neuron)

    def regulate(self, plasticity: float, param: str, target: float | Tensor = 0.1, **settings) -> "Loop":
        self.homeostasis = LinearHomeostasis(plasticity, target, param, **settings)
        self.unit = self.homeostasis.register_cell("hidden", self.cell)
        self.start = self.value
        return self

    @property
    def value(self) -> Tensor:
        return self.unit.slot.reference.tensor.detach().clone()

    @property
    def moved(self) -> float:
        return (self.value - self.start).abs().max().item()

    @property
    def rate(self) -> float:
        return self.homeostasis.rates()["hidden"].mean().item()

    @torch.no_grad()
    def run(self, rounds: int, steps: int = 3, step=WAYS["step"], clear: bool = False) -> list[str]:
        """Returns the warnings."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(rounds):
                if clear:
                    self.homeostasis.clear()
                utils.reset(self.net)
                for _ in range(steps):
                    self.net(self.draw())
                step(self.homeostasis)
        assert all(each.category is HomeostasisWarning for each in caught)
        return [str(each.message) for each in caught]


def sequential(*modules: nn.Module, draw=lambda: torch.rand(8, 6), layer: int = 0) -> Loop:
    net = nn.Sequential(*modules)
    return Loop(net, net[layer], net[-1], draw)


def slstm() -> Loop:
    neuron = snn.SLSTM(12, 12, init_hidden=True)  # fires at 1, and cannot get there
    return Loop(neuron, neuron.lstm_cell, neuron, lambda: torch.rand(8, 12))


def negative_input() -> Loop:
    return sequential(nn.Linear(6, 8), leaky(), draw=lambda: -torch.rand(8, 6))


def no_input() -> Loop:
    return sequential(nn.Linear(6, 8), leaky(), draw=lambda: torch.zeros(8, 6))


def negative_images() -> Loop:
    return sequential(nn.Conv2d(2, 4, 3), leaky(), draw=lambda: -torch.rand(8, 2, 5, 5))


def normalised() -> Loop:
    return sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), leaky(), draw=lambda: torch.randn(32, 6))


def far_threshold() -> Loop:
    return sequential(nn.Linear(6, 8), leaky(threshold=20_000.0))


class Driven(nn.Module):
    """Recurrent neurons that fire whatever comes back to them."""

    def __init__(self):
        super().__init__()
        self.lif = snn.RLeaky(beta=0.5, all_to_all=False, V=torch.zeros(12), init_hidden=True)
        self.lif.reset_mechanism = "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(x)


def too_busy() -> Loop:
    layer = nn.Linear(6, 8)
    nn.init.zeros_(layer.weight)
    neuron = leaky(threshold=-1.0, reset_mechanism="none")
    return sequential(layer, neuron, draw=lambda: -torch.rand(8, 6))


RUNAWAYS = {
    "slstm bias": (slstm, 0.02, "bias", 0.1),
    "slstm weight": (slstm, 0.02, "weight", 0.1),
    "slstm large steps": (slstm, 0.2, "bias", 0.1),
    "negative input": (negative_input, 0.02, "weight", 0.9),
    "negative images": (negative_images, 0.02, "weight", 0.9),
    "no input": (no_input, 0.02, "weight", 0.9),
    "bias before a norm": (normalised, 0.05, "bias", 0.9),
    "weight before a norm": (normalised, 0.05, "weight", 0.9),
    "far threshold": (far_threshold, 0.05, "bias", 0.1),
    "a rate that does not fall": (too_busy, 0.02, "weight", 0.2),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RUNAWAYS)
def test_a_push_without_an_answer_is_said_once_and_held(name, way):
    build, plasticity, param, target = RUNAWAYS[name]
    loop = build().regulate(plasticity, param, target)
    (message,) = loop.run(450, step=WAYS[way])
    assert f"The {param} of cell 'hidden' was pushed far" in message
    assert 0.5 < loop.moved < 20
    before = loop.value
    assert not loop.run(100, step=WAYS[way])
    assert torch.equal(loop.value, before)


# ---- what is let go


def held(**settings) -> Loop:
    """An LSTM cell after the guard has stopped it."""
    loop = slstm().regulate(0.2, "bias", **settings)
    assert len(loop.run(60)) == 1
    return loop


def test_an_answer_lets_the_push_go_on():
    loop = held()
    before = loop.value
    assert not loop.run(60)
    assert torch.equal(loop.value, before)
    loop.cell.neuron.module.threshold.fill_(0.3)  # within its reach
    assert not loop.run(60)
    assert loop.rate > 0
    assert (loop.value != before).all()


@pytest.mark.parametrize("let_go", ["clear", "target"])
def test_the_user_lets_the_push_go_on(let_go):
    loop = held()
    before = loop.value
    if let_go == "clear":
        loop.homeostasis.clear()
    else:
        loop.unit.state.target = 0.2
    assert not loop.run(22)
    assert (loop.value > before).all()
    assert len(loop.run(200)) == 1


def test_what_others_add_is_not_held():
    loop = held()
    before = loop.value
    loop.cell.updater.bias = torch.tensor(0.5), None
    loop.run(1)
    torch.testing.assert_close(loop.value, before + 0.5)


# ---- what is not disturbed


def test_a_slow_push_has_its_chance():
    loop = sequential(nn.Linear(6, 8), leaky())
    nn.init.constant_(loop.net[0].bias, -5.0)
    loop.regulate(0.005, "bias", rate=lambda: WindowedRate(3))
    assert not loop.run(1200)
    assert loop.moved > 4.5
    assert loop.rate > 0.02


def test_a_wide_silent_net_has_its_chance():
    torch.manual_seed(1)
    loop = sequential(nn.Linear(200, 8), leaky(), draw=lambda: (torch.rand(8, 200) < 0.02).float())
    nn.init.constant_(loop.net[0].weight, -0.1)
    loop.regulate(0.001, "weight", rate=lambda: WindowedRate(3))
    assert not loop.run(300)
    assert loop.rate == pytest.approx(0.1, abs=0.08)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_noisy_rate_at_its_target_is_not_held(batch):
    loop = sequential(nn.Linear(6, 8), leaky(), draw=lambda: torch.rand(batch, 6))
    loop.regulate(0.01, "bias", 0.3, rate=lambda: WindowedRate(3))
    assert not loop.run(800, steps=3)
    assert loop.unit.guard.blocked is None


def test_a_parameter_at_its_bound_is_no_runaway():
    loop = slstm().regulate(0.05, "bias", bounds=ClampBounds(-1.0, 1.0))
    assert not loop.run(300)
    assert (loop.value == 1.0).all()


def test_a_parameter_between_two_bounds_is_no_runaway():
    loop = slstm().regulate(0.05, "bias", bounds=ClampBounds(-100.0, 100.0))
    assert not loop.run(300)
    assert loop.unit.guard.blocked is None


@pytest.mark.filterwarnings("ignore:`step` should be called once")
def test_steps_on_one_observation_are_no_runaway():
    loop = slstm().regulate(0.01, "bias")
    loop.run(1)
    with torch.no_grad():
        for _ in range(1000):
            loop.homeostasis.step()  # any other warning is an error here
    assert loop.moved == pytest.approx(10.0, rel=0.02)


def test_each_neuron_is_held_for_itself():
    threshold = torch.tensor([1.0, 20_000.0, 1.0, 1.0])
    loop = sequential(nn.Linear(6, 4), leaky(threshold=threshold))
    loop.regulate(0.1, "bias", torch.tensor([0.1, 0.1, 0.4, 0.1]), rate=lambda: WindowedRate(30))
    (message,) = loop.run(600, steps=10)
    assert "so far in 1 of 4 rows" in message
    assert loop.unit.guard.blocked.tolist() == [0, 1, 0, 0]
    assert loop.homeostasis.rates()["hidden"].tolist() == pytest.approx([0.1, 0.0, 0.4, 0.1], abs=0.08)


def test_two_cells_that_pull_one_parameter_apart_are_no_runaway():
    first, second = leaky(), leaky(threshold=20_000.0)
    loop = sequential(nn.Linear(6, 4), first).regulate(0.02, "bias", 0.5)
    tied = nn.Linear(6, 4)
    tied.bias = loop.net[0].bias
    loop.homeostasis.register_cell("tied", Cell(tied, second))

    def also(neuron: nn.Module, args: object, output: object) -> None:
        second(tied(loop.draw()))

    first.register_forward_hook(also)
    assert not loop.run(500)
    assert loop.moved < 6
    assert loop.unit.guard.blocked is None


@pytest.mark.parametrize("freeze", ["eval", "pause"])
def test_a_frozen_cell_is_not_looked_at(freeze):
    loop = slstm().regulate(0.05, "bias")
    loop.run(2)
    if freeze == "eval":
        loop.net.eval()
        assert all("eval mode" in message for message in loop.run(100))
    else:
        with loop.homeostasis.pause():
            assert not loop.run(100)
    loop.net.train()
    assert len(loop.run(150)) == 1


def test_clearing_before_each_sequence_does_not_hide_a_runaway():
    assert slstm().regulate(0.05, "bias").run(150, clear=True)


# ---- a checkpoint


def test_what_is_held_stays_held_after_a_checkpoint():
    loop = held()
    other = slstm().regulate(0.2, "bias")
    other.homeostasis.load_state_dict(loop.homeostasis.state_dict())
    assert len(other.run(60)) == 1  # another user may read it
    assert other.moved == 0
    other.homeostasis.load_state_dict(slstm().regulate(0.2, "bias").homeostasis.state_dict())
    other.run(1)
    assert other.moved > 0
