"""Waits for the device: none per time step, one per step of the rule. Here reads of the CPU are counted."""

import functools

import pytest
import torch
from nets import RATES, leaky
from operations import cost_of
from torch import nn

from snn_homeostasis import (
    ClampBounds,
    LinearHomeostasis,
    PowerBounds,
    SharpBounds,
)

BOUNDS = [None, ClampBounds(-1.0, 1.0), PowerBounds(-1.0, 1.0, 2.0), SharpBounds(max=1.0)]


def reads_of(call):
    return cost_of(call).reads


def warm(**settings):
    """A net of three cells and its rule, after a first step, with inputs to run it on."""
    net = nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 8), leaky(), nn.Linear(8, 3), leaky())
    homeostasis = LinearHomeostasis(**{"plasticity": 0.02, "target": 0.2, "param": "bias"} | settings).attach(
        net
    )
    run = functools.partial(present, net, torch.rand(20, 4, 6))
    run()
    homeostasis.step()
    run()
    return homeostasis, run


@torch.no_grad()
def present(net, inputs):
    for x in inputs:
        net(x)


def test_the_counter_counts():
    assert reads_of(lambda: (torch.ones(1).item(), bool(torch.ones(1) > 0))) == 2


@pytest.mark.parametrize("rate", RATES)
def test_no_time_step_waits(rate):
    _, run = warm(rate=rate)
    assert reads_of(run) == 0


@pytest.mark.parametrize("bounds", BOUNDS, ids=lambda bounds: type(bounds).__name__)
@pytest.mark.parametrize("param", ["weight", "bias"])
def test_a_step_waits_once(param, bounds):
    homeostasis, _ = warm(param=param, bounds=bounds)
    assert reads_of(homeostasis.step) == 1


def test_a_step_waits_once_with_a_target_of_its_own():
    homeostasis, _ = warm(target=torch.full((4, 1), 0.2))
    assert reads_of(lambda: homeostasis.step(0.3)) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_itself_sees_no_wait_in_a_time_step():
    _, run = warm()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
