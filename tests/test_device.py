"""No tensor is made on another device than the model's: shown on the meta device, which has no values."""

import functools

import pytest
import torch
from nets import leaky
from torch import nn

from snn_homeostasis import (
    ClampBounds,
    CumulativeRate,
    ExponentialRate,
    LinearHomeostasis,
    PowerBounds,
    SharpBounds,
    WindowedRate,
    homeostasis,
    sweep,
    taps,
)
from snn_homeostasis.updates.bounds import Bounds

RATES = [CumulativeRate, functools.partial(ExponentialRate, 5.0), functools.partial(WindowedRate, 3)]


@pytest.fixture
def _without_values(monkeypatch):
    """Leaves out what has to read a value: whether all is finite, and whether a factor is 1."""
    for module in (homeostasis, sweep):
        monkeypatch.setattr(module, "require_finite", lambda tensors, agree=None: None)
    monkeypatch.setattr(sweep, "is_finite", lambda tensor: True)
    monkeypatch.setattr(Bounds, "_contain", lambda bounds, ends, roundings=0: True)
    monkeypatch.setattr(taps, "binary_factor", lambda factor: True)


@pytest.mark.usefixtures("_without_values")
@pytest.mark.parametrize(
    "bounds", [None, ClampBounds(-1.0, 1.0), PowerBounds(-1.0, 1.0), SharpBounds(max=1.0)]
)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("param", ["weight", "bias"])
def test_a_whole_step_stays_on_the_device(param, dtype, rate, bounds):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), leaky(), nn.Flatten(), nn.Linear(64, 3), leaky())
    net.to("meta", dtype)
    net[3].float()
    rule = LinearHomeostasis(0.02, 0.2, param, rate=rate, bounds=bounds).attach(net)
    for batch in (4, 4, 2):
        with torch.no_grad():
            net(torch.empty(batch, 1, 6, 6, device="meta", dtype=dtype))
        assert {tensor.device.type for tensor in rule.buffers()} == {"meta"}
    rule.step()
    rule.step(0.3)
    devices = {tensor.device.type for tensor in rule.buffers()} | {p.device.type for p in net.parameters()}
    assert devices == {"meta"}
    assert {rate.device.type for rate in rule.rates().values()} == {"meta"}


@pytest.mark.usefixtures("_without_values")
@pytest.mark.parametrize("rate", RATES)
def test_a_model_moved_after_attach_takes_its_estimates_along(rate):
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    rule = LinearHomeostasis(0.02, torch.full((8,), 0.2), rate=rate).attach(net)
    net(torch.rand(4, 6))
    rule.to("meta")
    assert {tensor.device.type for tensor in rule.buffers()} == {"meta"}
    net.to("meta")
    with torch.no_grad():
        net(torch.rand(4, 6, device="meta"))
    rule.step()
    assert {tensor.device.type for tensor in rule.buffers()} == {"meta"}
    assert rule.units["1"].rate.steps == 2
