"""What observing and updating cost, counted in operations and bytes; no clocks."""

import pytest
import torch
from nets import leaky, spikes
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from snn_homeostasis import (
    ClampBounds,
    CumulativeRate,
    ExponentialRate,
    LinearHomeostasis,
    PowerBounds,
    SharpBounds,
)

VIEWS = (
    "detach",
    "view",
    "unsqueeze",
    "expand",
    "select",
    "alias",
    "squeeze",
    "t",
    "_unsafe_view",
    "split",
    "permute",
)
BYTES = 4


class Operations(TorchDispatchMode):
    """Notes operations, the bytes they newly allocate, and in `sizes` those they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.bytes = 0
        self.largest = 0
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        self.names.append(name)
        is_new = name not in VIEWS and not name.endswith("_")
        new = [size_of(each) for each in tree_leaves(output) if is_new]
        self.bytes += sum(new)
        self.largest = max([self.largest, *new])
        self.sizes.append(0 if name in VIEWS else sum(map(size_of, tree_leaves((args, kwargs, output)))))
        return output

    @property
    def traffic(self) -> int:
        """The bytes of all that is read and written."""
        return sum(self.sizes)

    @property
    def computing(self) -> list[str]:
        """The operations that are no views."""
        return [name for name in self.names if name not in VIEWS]


def size_of(value: object) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def cost_of(call) -> Operations:
    with Operations() as operations:
        call()
    return operations


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("rate", "name"), [(CumulativeRate, "add_"), (lambda: ExponentialRate(9.0), "lerp_")]
)
def test_a_recorded_step_is_one_operation_in_place_for_each_neuron(rate, name, grad):
    net = nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 3), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.2, rate=rate).attach(net)
    x = spikes(4, 6)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            net(x)
        observed = cost_of(lambda: net(x))
        homeostasis.remove()
        plain = cost_of(lambda: net(x))
    extra = list(observed.names)
    for each in plain.names:
        extra.remove(each)
    views = ["detach"] * 2 if grad else []
    assert sorted(extra) == sorted([name, name, *views])
    assert observed.bytes == plain.bytes


@torch.no_grad()
def test_nothing_is_left_of_an_observer_that_is_frozen_or_paused():
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(net)
    net(spikes(4, 6))
    homeostasis.eval()
    assert not net[1]._forward_hooks
    homeostasis.train()
    with homeostasis.pause():
        assert not net[1]._forward_hooks
    assert net[1]._forward_hooks


@torch.no_grad()
@pytest.mark.parametrize("steps", [3, 300])
def test_state_does_not_grow_with_time(steps):
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(net)
    for _ in range(steps):
        net(spikes(4, 6))
    assert sum(buffer.numel() * buffer.element_size() for buffer in homeostasis.buffers()) == 4 * 4 * 8


def wide(kind: str, features: int = 400) -> nn.Sequential:
    """One cell whose weight is much larger than all else."""
    layer = nn.Linear(2000, features) if kind == "linear" else nn.Conv2d(500, 160, 3, padding=1)
    return nn.Sequential(layer, leaky())


def observed(kind: str, features: int = 400, **settings):
    """A rule whose cell has seen two steps of four samples."""
    net = wide(kind, features)
    homeostasis = LinearHomeostasis(0.1, 0.2, **settings).attach(net)
    x = spikes(4, 2000) if kind == "linear" else spikes(4, 500, 2, 2)
    for _ in range(2):
        net(x)
    return homeostasis, BYTES * net[0].weight.numel()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("param", ["weight", "bias"])
def test_a_step_without_bounds_makes_no_split(kind, param):
    homeostasis, weight = observed(kind, param=param)
    homeostasis.step()  # prepares
    homeostasis.cells["1"].neuron.module(torch.rand(homeostasis.units["1"].rate.rate.shape))
    cost = cost_of(homeostasis.step)
    of_the_cell = ["sum", "sum", "add_"]  # of the rates, of the membrane, the update
    over_positions = ["sum"] if kind == "conv" else []
    of_all_cells = ["addcmul", "sum", "_local_scalar_dense"]  # the rule, a look whether it is finite
    assert sorted(cost.computing) == sorted(of_the_cell + over_positions + of_all_cells)
    assert cost.largest < weight / 50
    assert cost.traffic <= (1.1 * 2 if param == "weight" else 0.1) * weight


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize(
    ("bounds", "passes"),
    [(SharpBounds(-9.0, 9.0), ["add_"]), (ClampBounds(-1.0, 1.0), ["add_", "clamp_"])],
    ids=str,
)
def test_a_step_with_bounds_looks_at_the_weight_and_changes_it_in_place(kind, bounds, passes):
    homeostasis, weight = observed(kind, bounds=bounds)
    homeostasis.step()  # prepares
    homeostasis.cells["1"].neuron.module(torch.rand(homeostasis.units["1"].rate.rate.shape))
    cost = cost_of(homeostasis.step)
    large = [name for name, size in zip(cost.names, cost.sizes, strict=True) if size >= weight]
    assert large == ["aminmax", *passes]
    assert len(cost.computing) <= 30
    assert cost.largest < weight / 50


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_an_update_is_one_pass_over_the_weight(kind):
    homeostasis, weight = observed(kind, batch_reduction=torch.sum)
    homeostasis()
    cost = cost_of(homeostasis.update)
    assert len(cost.computing) <= 8
    assert cost.largest < weight / 50
    assert cost.traffic <= 1.1 * 2 * weight


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize(
    "bounds",
    [
        PowerBounds(-1.0, 1.0),
        PowerBounds(-1.0, 1.0, power=2.0),
        SharpBounds(-1.0, 1.0),
        ClampBounds(-1.0, 1.0),
    ],
    ids=str,
)
def test_no_bound_allocates_anything_of_the_size_of_the_weight(kind, bounds):
    homeostasis, weight = observed(kind, bounds=bounds)
    cost = cost_of(homeostasis.step)
    assert cost.largest < weight / 5


@torch.no_grad()
def test_multiplicative_bounds_are_a_look_and_two_operations_on_each_block():
    homeostasis, weight = observed("linear", features=4000, bounds=PowerBounds(-1.0, 1.0))
    homeostasis()
    cost = cost_of(homeostasis.update)
    assert cost.traffic <= 1.1 * (1 + 5) * weight  # all but 3 of it in the cache
    assert cost.largest < weight / 50
    assert cost.computing.count("aminmax") == 1


@torch.no_grad()
def test_rates_of_a_half_precision_model_stay_exact():
    neuron = leaky()
    net = nn.Sequential(nn.Linear(1, 2), neuron).to(torch.bfloat16)
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(net)
    tap, fired = homeostasis.cells["1"].neuron, torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)
    for number in range(100_000):
        tap(neuron, (), {}, fired if number % 3 else fired.flip(1))
    expected = torch.tensor([66_666 / 100_000, 33_334 / 100_000], dtype=torch.float64)
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
