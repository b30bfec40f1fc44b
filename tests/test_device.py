"""Every tensor is made on the device of the model: the meta device here, which has no values."""

import pytest
import torch
from nets import RATES, leaky
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from snn_homeostasis import (
    ClampBounds,
    LinearHomeostasis,
    PowerBounds,
    SharpBounds,
)


class ReadAsZero(TorchDispatchMode):
    """Answers 0 where a value has to be read: the meta device has none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype.is_floating_point and 0.0
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _parameters_are_moved_in_place():
    """As other devices move them: a new Parameter on the meta device would be refused."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize(
    ("param", "dtype", "rate", "bounds"),
    [
        ("weight", torch.float32, RATES[0], None),
        ("weight", torch.bfloat16, RATES[1], None),
        ("weight", torch.float32, RATES[2], ClampBounds(-1.0, 1.0)),
        ("weight", torch.bfloat16, RATES[0], PowerBounds(-1.0, 1.0)),
        ("bias", torch.float32, RATES[1], SharpBounds(max=1.0)),
        ("bias", torch.bfloat16, RATES[2], None),
        ("bias", torch.float32, RATES[0], PowerBounds(-1.0, 1.0)),
    ],
)
def test_a_whole_step_stays_on_the_device(param, dtype, rate, bounds):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), leaky(), nn.Flatten(), nn.Linear(64, 3), leaky())
    rule = LinearHomeostasis(0.02, 0.2, param, rate=rate, bounds=bounds).attach(net)
    with ReadAsZero():
        net.to("meta", dtype)
        net[3].float()
        for batch in (4, 4, 2):
            with torch.no_grad():
                net(torch.empty(batch, 1, 6, 6, device="meta", dtype=dtype))
        rule.step()
        rule.step(0.3)
        rule()
    # counters and settings stay on the CPU
    state = [value for value in rule.state_dict().values() if value.ndim > 0]
    assert {value.device.type for value in state if value.dtype is torch.float32} == {"meta"}
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
    assert {rate.device.type for rate in rule.rates().values()} == {"meta"}


@pytest.mark.parametrize("rate", RATES)
def test_a_model_moved_after_attach_takes_its_estimates_along(rate):
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    rule = LinearHomeostasis(0.02, torch.full((8,), 0.2), rate=rate).attach(net)
    net(torch.rand(4, 6))
    rule()
    rule.to("meta")
    net.to("meta")
    with torch.no_grad(), ReadAsZero():
        net(torch.rand(4, 6, device="meta"))
        rule.step()
    assert rule.units["1"].rate.rate.is_meta
    assert rule.units["1"].state.target.is_meta
    assert rule.units["1"].rate.steps == 2
