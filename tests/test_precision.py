"""Half precision: nothing is lost from rates, updates or bounds."""

import pytest
import torch
from cases import pairwise
from nets import Recount, leaky, linear, spikes
from snntorch import utils
from torch import nn

from snn_homeostasis import Cell, ClampBounds, CumulativeRate, ExponentialRate, LinearHomeostasis

STEPS = 3000  # float16 counts up to 2048, bfloat16 up to 256
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def test_rates_and_updates_are_right_under_autocast():
    net = linear()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    homeostasis = LinearHomeostasis(0.02, 0.2, rate=CumulativeRate).attach(net).follow(optimizer)
    recount = Recount(net[1])
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            utils.reset(net)
            output = sum(net(2 * spikes(4, 6)) for _ in range(5))
            loss = output.square().mean()
        loss.backward()
        before = net[0].weight.detach().clone()
        optimizer.step()
        optimizer.zero_grad()
        assert net[0].weight.dtype == torch.get_default_dtype()
        assert not torch.equal(net[0].weight, before)
    assert homeostasis.rates()["1"].dtype == torch.float32
    torch.testing.assert_close(homeostasis.rates()["1"].double(), recount.rate)


@pytest.mark.filterwarnings("ignore:`step` should be called once")
@HALVES
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_a_thousand_small_updates_add_up(dtype, start):
    net = nn.Sequential(nn.Linear(1, 1), leaky()).to(dtype)
    nn.init.constant_(net[0].weight, start)
    homeostasis = LinearHomeostasis(1e-4, 0.2).attach(net)
    naive = net[0].weight.detach().clone()
    with torch.no_grad():
        net(torch.full((1, 1), -9.0, dtype=dtype))
    for _ in range(1000):
        homeostasis.step()
        naive += 1e-4
    resolution = torch.finfo(dtype).eps * (start + 0.1)
    assert net[0].weight.item() == pytest.approx(start + 0.1, abs=resolution)
    assert abs(naive.item() - start - 0.1) > 5 * resolution


@torch.no_grad()
@HALVES
@pytest.mark.parametrize("rate", [CumulativeRate, lambda: ExponentialRate(1e4)])
def test_rates_are_exact_after_many_steps(dtype, rate):
    net = nn.Sequential(nn.Linear(4, 3), leaky()).to(dtype)
    homeostasis = LinearHomeostasis(0.01, 0.2, rate=rate).attach(net)
    estimator = homeostasis.units["1"].rate
    total, mean, weight, decay = 0.0, 0.0, 0.0, torch.tensor(-1e-4, dtype=torch.float64).exp()
    inputs = [net[0](4 * spikes(2, 4).to(dtype)) for _ in range(50)]
    for step in range(STEPS):
        fired = net[1](inputs[step % 50]).double()
        total, mean, weight = total + fired, mean * decay + fired, weight * decay + 1
    expected = total / STEPS if isinstance(estimator, CumulativeRate) else mean / weight
    tolerance = 1e-6 if isinstance(estimator, CumulativeRate) else 1e-5
    torch.testing.assert_close(estimator.rate.double(), expected, rtol=tolerance, atol=1e-7)


@pytest.mark.filterwarnings("ignore:`step` should be called once")
@pytest.mark.parametrize(
    ("dtype", "limit", "sign"),
    pairwise([torch.bfloat16, torch.float16], [0.1, 0.3, 0.625, 1 / 3], [1, -1]),
    ids=str,
)
def test_a_clamp_never_ends_outside(dtype, limit, sign):
    net = nn.Sequential(nn.Linear(1, 4), leaky()).to(dtype)
    bounds = ClampBounds(-limit, limit)
    homeostasis = LinearHomeostasis(0.01, 0.2, bounds=bounds)
    homeostasis.register_cell("1", Cell(net[0], net[1], sign=sign))
    with torch.no_grad():
        net(torch.full((1, 1), -9.0, dtype=dtype))
    for _ in range(200):
        homeostasis.step()
        assert net[0].weight.double().abs().max() <= limit
    assert net[0].weight.double().abs().min() >= limit * (1 - torch.finfo(dtype).eps)


@pytest.mark.filterwarnings("ignore:`step` should be called once")
def test_tied_layers_share_what_rounding_takes_away():
    net = nn.Sequential(nn.Linear(1, 1), leaky(), nn.Linear(1, 1), leaky()).to(torch.bfloat16)
    net[2].weight = net[0].weight
    nn.init.constant_(net[0].weight, 0.5)
    homeostasis = LinearHomeostasis(1e-4, 0.2)
    for name, index in (("a", 0), ("b", 2)):
        homeostasis.register_cell(name, Cell(net[index], net[index + 1]))
    with torch.no_grad():
        for neuron in (net[1], net[3]):
            neuron(torch.full((1, 1), -9.0))
    for _ in range(100):
        homeostasis.step()
        homeostasis.step(cells=["b"])
    exact = net[0].weight.float() + homeostasis.units["a"].slot.residue
    assert exact.item() == pytest.approx(0.53, abs=1e-4)
