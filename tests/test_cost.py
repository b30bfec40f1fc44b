"""What observing and updating cost, counted in operations and bytes; no clocks."""

import copy
from collections import Counter

import pytest
import torch
from cases import pairwise
from nets import bytes_of, hooks_of, leaky, spikes
from operations import cost_of
from torch import nn

from snn_homeostasis import (
    ClampBounds,
    CumulativeRate,
    ExponentialRate,
    LinearHomeostasis,
    PowerBounds,
    SharpBounds,
)

BYTES = 4
BLOCK = BYTES * 2**17  # on a CPU: what stays in its cache


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("rate", "name"), [(CumulativeRate, "add_"), (lambda: ExponentialRate(9.0), "lerp_")]
)
def test_a_recorded_step_is_one_operation_per_neuron(rate, name, grad):
    net = nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 3), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.2, rate=rate).attach(net)
    x = spikes(4, 6)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            net(x)
        observed = cost_of(lambda: net(x))
        homeostasis.remove()
        plain = cost_of(lambda: net(x))
    extra = Counter(observed.names) - Counter(plain.names)
    views = extra.pop("detach", 0)  # old versions of torch record each twice
    assert extra == {name: 2}
    assert views in ((2, 4) if grad else (0,))
    assert observed.bytes == plain.bytes


@torch.no_grad()
def test_a_frozen_neuron_costs_no_operation_and_a_paused_one_no_hook():
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    plain = copy.deepcopy(net)
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(net)
    x = spikes(4, 6)
    for each in (net, plain):
        each(x)
    homeostasis.eval()
    assert cost_of(lambda: net(x)).names == cost_of(lambda: plain(x)).names
    homeostasis.train()
    with homeostasis.pause():
        assert not hooks_of(net[1])
    assert hooks_of(net[1])


@torch.no_grad()
@pytest.mark.parametrize("steps", [3, 300])
def test_state_does_not_grow_with_time(steps):
    net = nn.Sequential(nn.Linear(6, 8), leaky()).float()  # half precision keeps a residue as well
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(net)
    for _ in range(steps):
        net(spikes(4, 6))
        homeostasis.step()
    assert bytes_of(homeostasis.state_dict()) == BYTES * 4 * 8


def observed(kind: str, features: int = 400, **settings) -> tuple[LinearHomeostasis, int]:
    """A rule that steps for the second time, and the bytes of its weight, which are most of the cell."""
    layer = nn.Linear(2000, features) if kind == "linear" else nn.Conv2d(500, 160, 3, padding=1)
    layer.float()  # whatever the default dtype of this run
    net = nn.Sequential(layer, leaky())
    homeostasis = LinearHomeostasis(**{"plasticity": 0.1, "target": 0.2} | settings).attach(net)
    x = spikes(4, 2000) if kind == "linear" else spikes(4, 500, 2, 2)
    net(x)
    homeostasis.step()
    net(x)
    return homeostasis, BYTES * layer.weight.numel()


def a_target(kind: str, size: str) -> float | torch.Tensor:
    """One target for all neurons, or one for each that has a row of its own in the weight."""
    if size == "number":
        return 0.2
    return torch.full((400,) if kind == "linear" else (160, 1, 1), 0.2)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "param", "target", "reduction"),
    pairwise(["linear", "conv"], ["weight", "bias"], ["number", "neurons"], [torch.mean, torch.sum]),
)
def test_a_step_without_bounds_makes_no_split(kind, param, target, reduction):
    target = a_target(kind, target)
    homeostasis, weight = observed(kind, param=param, target=target, batch_reduction=reduction)
    cost = cost_of(homeostasis.step)
    assert not [name for name in cost.computing if "clamp" in name or name == "abs"]
    # the sum of the rates, the rule, whether all is finite, the update; a tensor as target takes 10 more
    assert len(cost.computing) <= 9 + 10 * isinstance(target, torch.Tensor)
    assert cost.on(weight) == (["add_"] if param == "weight" else [])
    assert cost.largest < weight / 50
    assert cost.traffic <= (1.1 * 2 if param == "weight" else 0.1) * weight


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("param", ["weight", "bias"])
def test_clamp_bounds_are_one_look_and_two_operations(kind, param):
    homeostasis, weight = observed(kind, param=param, bounds=ClampBounds(-1.0, 1.0))
    cost = cost_of(homeostasis.step)
    passes = ["aminmax", "add_", "clamp_"]
    assert [name for name in cost.computing if name in passes] == passes
    assert cost.on(weight) == (passes if param == "weight" else [])
    assert len(cost.computing) <= 20
    assert cost.largest < weight / 50


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_an_update_is_one_pass_over_the_weight(kind):
    homeostasis, weight = observed(kind)
    homeostasis()
    cost = cost_of(homeostasis.update)
    assert len(cost.computing) <= 8
    assert cost.on(weight) == ["add_"]
    assert cost.largest < weight / 50


SOFT = {
    "multiplicative": PowerBounds(-1.0, 1.0),
    "quadratic": PowerBounds(-1.0, 1.0, power=2.0),
    "upper": PowerBounds(max=1.0, power=1.5),
    "sharp": SharpBounds(-1.0, 1.0),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", SOFT)
def test_soft_bounds_allocate_only_blocks(name, kind, device):
    homeostasis, weight = observed(kind, bounds=SOFT[name])
    cost = cost_of(homeostasis.step)
    assert cost.on(weight) == ["aminmax"]
    assert cost.largest <= (BLOCK if device.type == "cpu" else weight)


@torch.no_grad()
def test_multiplicative_bounds_look_at_each_block_and_pull_it(device):
    if device.type != "cpu":
        pytest.skip("only on a CPU is a look at each block free")
    homeostasis, weight = observed("linear", features=4000, bounds=SOFT["multiplicative"])
    homeostasis()
    cost = cost_of(homeostasis.update)
    blocks = cost.computing.count("addcmul_")
    assert weight / BLOCK <= blocks <= 1.1 * weight / BLOCK
    assert cost.computing.count("aminmax") == 1 + blocks
    assert cost.traffic <= 1.1 * (1 + 6) * weight  # all but 3 of it in the cache
    assert cost.largest <= BLOCK


@torch.no_grad()
def test_rates_of_a_half_precision_model_stay_exact():
    neuron = leaky()
    net = nn.Sequential(nn.Linear(1, 2), neuron).to(torch.bfloat16)
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(net)
    hook, fired = homeostasis.cells["1"].neuron, torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)
    for number in range(10_000):
        hook(neuron, (), {}, fired if number % 3 else fired.flip(1))
    expected = torch.tensor([0.6666, 0.3334], dtype=torch.float64)
    torch.testing.assert_close(homeostasis.rates()["1"].double(), expected, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
@torch.no_grad()
def test_a_compiled_step_is_two_operations_in_place():
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(net)
    graphs = []

    def noting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for _ in range(2):  # the first makes the counts
        torch.compile(net, backend=noting, fullgraph=True)(spikes(4, 6))
        torch.compiler.reset()
    homeostasis.remove()
    torch.compile(net, backend=noting, fullgraph=True)(spikes(4, 6))
    *_, observed, plain = (
        [node.target for node in graph.graph.nodes if node.op == "call_method"] for graph in graphs
    )
    assert [name for name in observed if name.endswith("_")] == ["add_", "add_"]  # spikes and steps
    assert not [name for name in plain if name.endswith("_")]
