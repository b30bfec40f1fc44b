"""The rule on delays: its limits, its effect on rates, and the SynapticDelay of snntorch."""

from __future__ import annotations

import warnings

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ClampBounds,
    DelayedConv2d,
    DelayedLinear,
    HomeostasisWarning,
    LinearHomeostasis,
    PowerBounds,
    SharpBounds,
)

from test_delays import pairwise  # isort: skip

LONGEST = 16


def leaky():
    return snn.Leaky(beta=0.0, threshold=0.5, reset_mechanism="none", init_hidden=True)


def built(delay_init=8.0, size=2, max_delay=LONGEST, **settings):
    """A delayed layer, neurons that fire on command, and the rule on the delays."""
    layer, neuron = DelayedLinear(3, size, max_delay, delay_init=delay_init), leaky()
    homeostasis = LinearHomeostasis(**{"plasticity": 0.5, "target": 0.5, "param": "delay"} | settings)
    homeostasis.register_cell("built", Cell(layer, neuron))
    return layer, neuron, homeostasis


def test_silent_neurons_get_shorter_delays_and_busy_ones_longer():
    layer, neuron, homeostasis = built()
    weight = layer.weight.clone()
    neuron(torch.tensor([[0.0, 1.0]]))
    homeostasis.step()
    assert layer.delay.tolist() == [[7.5] * 3, [8.5] * 3]
    assert torch.equal(layer.weight, weight)


BOUNDS = {
    "none": None,
    "power": PowerBounds(-5.0, 40.0),
    "sharp": SharpBounds(max=30.0),
    "wide clamp": ClampBounds(-3.0, 50.0),
    "own": lambda param, pos, neg: 3 * (pos - neg),
}


@pytest.mark.parametrize(
    ("bounds", "build", "dtype"),
    pairwise(BOUNDS, [DelayedLinear, DelayedConv2d], [torch.float32, torch.bfloat16]),
)
@pytest.mark.filterwarnings("ignore:All delays of a neuron:snn_homeostasis.HomeostasisWarning")
def test_delays_never_leave_their_limits(bounds, build, dtype):
    sizes = (3, 4) if build is DelayedLinear else (3, 4, 2)
    layer = build(*sizes, max_delay=LONGEST, dtype=dtype)
    updater = Cell(layer, leaky()).updater
    updater.delay.bounds = BOUNDS[bounds]
    lowest, highest = [], []
    for _ in range(300):
        pos, neg = 3 * torch.rand(2, 4, *(1,) * (layer.delay.ndim - 1))
        updater.delay = (pos, -neg)
        updater()
        lowest.append(layer.delay.min().item())
        highest.append(layer.delay.max().item())
    assert 0 == min(lowest) < max(lowest)
    assert LONGEST == max(highest) > min(highest)


def test_narrower_bounds_of_the_user_hold_too():
    layer = DelayedLinear(3, 4, LONGEST, delay_init=6.0)
    updater = Cell(layer, leaky()).updater
    updater.delay.bounds = ClampBounds(5.0, 7.0)
    for sign, limit in ((1, 7.0), (-1, 5.0)):
        updater.delay = (torch.tensor(9.0 if sign > 0 else 0.0), torch.tensor(0.0 if sign > 0 else 9.0))
        updater()
        assert layer.delay.eq(limit).all()


def test_a_delay_that_an_optimizer_left_outside_comes_inside():
    layer, neuron, homeostasis = built()
    with torch.no_grad():
        layer.delay.copy_(torch.tensor([[-3.0, 5.0, 20.0], [30.0, 8.0, 2.0]]))
    neuron(torch.tensor([[0.0, 1.0]]))
    homeostasis.step()
    assert layer.delay.tolist() == [[0.0, 4.5, 16.0], [16.0, 8.5, 2.5]]


@pytest.mark.filterwarnings("ignore:`step` should be called once")
def test_half_precision_keeps_small_changes_of_delays():
    layer, neuron, homeostasis = built(plasticity=0.01)
    layer.bfloat16()
    neuron(torch.tensor([[0.0, 0.0]]))
    for _ in range(100):
        homeostasis.step()
    torch.testing.assert_close(layer.delay.float(), torch.full((2, 3), 7.0), rtol=0, atol=0.05)


@pytest.mark.filterwarnings("ignore:`step` should be called once")
@pytest.mark.parametrize(("fires", "limit"), [(0.0, 0.0), (1.0, 16.0)])
def test_a_row_stuck_at_a_limit_warns_once_by_name(fires, limit):
    layer, neuron, homeostasis = built(delay_init=abs(limit - 0.75))
    neuron(torch.tensor([[fires, fires]]))
    homeostasis.step()  # by a full step
    homeostasis.step()  # to the limit
    assert layer.delay.eq(limit).all()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            homeostasis.step()
    assert layer.delay.eq(limit).all()
    assert len(caught) == 1
    assert "cell 'built'" in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:`step` should be called once")
def test_one_stuck_row_warns_and_one_free_synapse_does_not():
    delays = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.5]])
    layer, neuron, homeostasis = built(delay_init=delays)
    neuron(torch.tensor([[0.0, 0.0]]))
    homeostasis.step()
    with pytest.warns(HomeostasisWarning, match="cell 'built'"):
        homeostasis.step()
    assert layer.delay.tolist() == [[0.0] * 3, [0.0] * 3]


def test_rows_that_move_inwards_or_rest_do_not_warn():
    _, neuron, homeostasis = built(delay_init=torch.tensor([[0.0], [16.0]]).expand(2, 3))
    neuron(torch.tensor([[1.0, 0.0]]))
    homeostasis.step()
    homeostasis.clear()
    for fires in (0.0, 1.0):
        neuron(torch.tensor([[fires, fires]]))
    homeostasis.step()


def test_weights_have_no_limits():
    layer, neuron, homeostasis = built(param="weight", plasticity=100.0)
    neuron(torch.tensor([[0.0, 0.0]]))
    homeostasis.step()
    assert (layer.weight > 16).all()


def test_the_warning_of_a_lone_updater_names_the_parameter():
    updater = Cell(DelayedLinear(3, 2, LONGEST, delay_init=0.0), leaky()).updater
    updater.delay = (None, torch.tensor(1.0))
    with pytest.warns(HomeostasisWarning, match="`delay` of DelayedLinear"):
        updater()


def test_max_delay_0_warns_that_no_delay_can_move():
    layer, neuron, homeostasis = built(delay_init=0.0, max_delay=0)
    neuron(torch.tensor([[0.0, 0.0]]))
    with pytest.warns(HomeostasisWarning, match="another `max_delay`"):
        homeostasis.step()
    assert not layer.delay.any()


def test_a_norm_replaces_the_bias_and_not_the_delay():
    layer, norm = DelayedConv2d(2, 3, 3, LONGEST), nn.BatchNorm2d(3)
    connection = Cell(layer, leaky(), norm).connection
    assert connection.bias is norm.bias
    assert connection.delay is layer.delay


VOLLEYS = lambda step: torch.full((2, 64), float(step % 16 == 0))  # noqa: E731
POISSON = lambda step: (torch.rand(2, 64) < 1 / 16).float()  # noqa: E731


def closed_loop(drive, target, strength, updates=60, steps=64):
    """The mean rates and the mean delays before and after the rule has run on an input."""
    torch.manual_seed(0)
    layer = DelayedLinear(64, 16, LONGEST, bias=False)
    nn.init.uniform_(layer.weight, 0, 2 * strength / 64)
    net = nn.Sequential(layer, snn.Leaky(beta=0.8, init_hidden=True))
    homeostasis = LinearHomeostasis(0.5, target=target, param="delay").attach(net)
    rates, delays = [], []
    for _ in range(updates):
        homeostasis.clear()
        layer.reset()
        net[1].reset_mem()
        with torch.no_grad():
            for step in range(steps):
                net(drive(step))
        rates.append(homeostasis.rates()["1"].mean().item())
        delays.append(layer.delay.mean().item())
        homeostasis.step()
    return (rates[0], rates[-1]), (delays[0], delays[-1])


def test_volleys_bring_a_silent_cell_to_its_target():
    (silent, rate), (_, delay) = closed_loop(VOLLEYS, target=1 / 16, strength=2, updates=30)
    assert silent < 0.01
    assert rate == pytest.approx(1 / 16, rel=0.1)
    assert 0 < delay < 4


@pytest.mark.filterwarnings("ignore:All delays of a neuron:snn_homeostasis.HomeostasisWarning")
def test_stationary_input_leaves_the_rate_where_it_is():
    (before, after), (_, delay) = closed_loop(POISSON, target=0.1, strength=3)
    assert delay < 0.5  # nearly as short as they can be
    assert before < 0.05
    assert after < 0.06
    (before, after), _ = closed_loop(VOLLEYS, target=0.1, strength=3)
    assert before < 0.07
    assert after == pytest.approx(0.1, rel=0.1)


class SynapticDelay(nn.Module):
    """A copy of the class in later releases of snntorch: one delay per channel."""

    def __init__(self, max_delay, delay=0.0, channels=None, learn_delay=False, kernel="linear"):
        super().__init__()
        value = torch.as_tensor(delay, dtype=torch.float32)
        value = value if channels is None else value.expand(channels).clone()
        self.max_delay, self.kernel = max_delay, kernel
        if learn_delay:
            self.delay = nn.Parameter(value)
        else:
            self.register_buffer("delay", value)
        self.past = []

    def forward(self, x):
        self.past = [x, *self.past[: self.max_delay]]
        delay = self.delay.clamp(0, self.max_delay)
        shares = [(1 - (delay - lag).abs()).clamp_min(0) for lag in range(len(self.past))]
        return sum(share * past for share, past in zip(shares, self.past, strict=True))


@pytest.mark.filterwarnings("ignore:`step` should be called once")
def test_a_cell_takes_a_synaptic_delay_as_its_delay():
    layer, delay, neuron = nn.Linear(3, 2), SynapticDelay(4, 3.75, channels=2, learn_delay=True), leaky()
    homeostasis = LinearHomeostasis(0.5, target=0.5, param="delay")
    cell = Cell(layer, neuron, delay=delay)
    homeostasis.register_cell("cell", cell)
    assert (cell.connection.weight is layer.weight, cell.connection.delay is delay.delay) == (True, True)
    neuron(torch.tensor([[0.0, 1.0]]))
    homeostasis.step()
    assert delay.delay.tolist() == [3.25, 4.0]
    with pytest.warns(HomeostasisWarning, match="cell 'cell'"):
        homeostasis.step()
    assert delay.delay.tolist() == [2.75, 4.0]


def test_a_synaptic_delay_covers_the_channels_of_a_convolution():
    layer, delay = nn.Conv2d(1, 3, 3), SynapticDelay(4, 2.0, channels=3, learn_delay=True)
    neuron = leaky()
    homeostasis = LinearHomeostasis(0.5, target=0.5)
    homeostasis.register_cell("delay", Cell(layer, neuron, delay=delay), param="delay")
    homeostasis.register_cell("weight", Cell(layer, neuron))
    weight = layer.weight.clone()
    neuron(torch.tensor([0.0, 1.0, 0.0])[None, :, None, None].expand(2, 3, 4, 4))
    homeostasis.step()
    assert delay.delay.tolist() == [1.5, 2.5, 1.5]
    assert not torch.equal(layer.weight, weight)


@pytest.mark.parametrize(
    ("layer", "delay", "words"),
    [
        (nn.Linear(3, 2), SynapticDelay(4, channels=2), "no Parameter.* `channels=2, learn_delay=True`"),
        (nn.Linear(3, 2), SynapticDelay(4, learn_delay=True), r"shape \[2\].* `delay` of shape \[\]"),
        (nn.Linear(3, 2), SynapticDelay(4, channels=3, learn_delay=True), r"`delay` of shape \[3\]"),
        (nn.Linear(3, 2), nn.Identity(), "Identity with no `delay`"),
        (
            DelayedLinear(3, 2, 4),
            SynapticDelay(4, channels=2, learn_delay=True),
            "`delay = SynapticDelay` behind DelayedLinear",
        ),
    ],
    ids=["buffer", "shared", "other channels", "no delay", "delayed layer"],
)
def test_unusable_delay_modules_are_refused(layer, delay, words):
    with pytest.raises(ArgumentError, match=words):
        Cell(layer, leaky(), delay=delay)


def test_param_delay_without_delays_is_refused_with_advice():
    with pytest.raises(ArgumentError, match="Take a DelayedLinear or DelayedConv2d"):
        LinearHomeostasis(0.1, 0.1, "delay").register_cell("cell", Cell(nn.Linear(3, 2), leaky()))
