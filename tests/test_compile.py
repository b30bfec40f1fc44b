"""Inside torch.compile: no graph break, one compilation, the same counts as without."""

import functools
import shutil

import pytest
import snntorch as snn
import torch
from nets import Recount, leaky, spikes
from snntorch import utils
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from snn_homeostasis import (
    ArgumentError,
    Cell,
    CumulativeRate,
    ExponentialRate,
    LinearHomeostasis,
    NoSpikesError,
    WaitingGraphError,
    WindowedRate,
)

RATES = {
    "cumulative": CumulativeRate,
    "exponential": functools.partial(ExponentialRate, tau=5.0),
    "windowed": functools.partial(WindowedRate, 4),
}


class Explicit(nn.Module):
    """Carries its membranes through a loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 8), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(8, 3), snn.Synaptic(alpha=0.5, beta=0.9)

    def forward(self, x):
        mem1 = x.new_zeros(len(x), 8)
        syn2 = mem2 = x.new_zeros(len(x), 3)
        for _ in range(2):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
        return spk2


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lif1 = snn.LinearLeaky(beta=0.5, in_features=6, out_features=8)
        self.fc2, self.lif2 = nn.Linear(8, 3), snn.StateLeaky(beta=0.8, channels=3)

    def forward(self, x):
        return self.lif2(self.fc2(self.lif1(x.expand(4, -1, -1))[0]))[0]


NETS = {
    "hidden": (
        lambda: nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 3), leaky()),
        {"1": "0", "3": "2"},
    ),
    "graded": (
        lambda: nn.Sequential(nn.Linear(6, 8), leaky(graded_spikes_factor=2.5)),
        {"1": "0"},
    ),
    "one": (lambda: nn.Sequential(nn.Linear(6, 8), leaky()), {"1": "0"}),
    "explicit": (Explicit, {"lif1": "fc1", "lif2": "fc2"}),
    "sequence": (Sequence, {"lif1": "lif1.linear", "lif2": "fc2"}),
}


# the compiler warns about the membranes and surrogates of plain snntorch nets
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using .torch.compile.* when there are global hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def attached(name: str, rate=CumulativeRate) -> tuple[nn.Module, LinearHomeostasis]:
    torch.manual_seed(3)
    build, pairs = NETS[name]
    net = build()
    return net, LinearHomeostasis(0.02, 0.2, rate=rate).attach(net, pairs=pairs)


def compiled(net: nn.Module, how: str, backend) -> nn.Module:
    if how == "torch.compile(net)":
        return torch.compile(net, backend=backend, fullgraph=True)
    net.compile(backend=backend, fullgraph=True)
    return net


def train(net: nn.Module, owner: nn.Module, homeostasis: LinearHomeostasis, batches: list[int]) -> None:
    optimizer = torch.optim.SGD(owner.parameters(), 0.1)
    for batch in batches:
        utils.reset(owner)
        sum(net(2 * spikes(batch, 6)) for _ in range(3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        homeostasis.step()


@pytest.mark.parametrize(
    ("name", "how", "backend"),
    [
        ("hidden", "torch.compile(net)", "aot_eager"),
        ("hidden", "net.compile()", "eager"),
        ("graded", "net.compile()", "eager"),
        ("explicit", "torch.compile(net)", "aot_eager"),
        ("sequence", "net.compile()", "eager"),
    ],
)
def test_compiled_is_eager_and_is_compiled_once(name, how, backend):
    net, homeostasis = attached(name)
    twin, eager = attached(name)
    counter = CompileCounterWithBackend(backend)
    fast = compiled(net, how, counter)
    for iteration in range(3):
        for run, owner, rule in ((fast, net, homeostasis), (twin, twin, eager)):
            torch.manual_seed(iteration)
            train(run, owner, rule, [4])
        if iteration == 1:  # at the first step, hidden membranes need no gradient yet
            warm = counter.frame_count
        for name_, rate in eager.rates().items():
            torch.testing.assert_close(homeostasis.rates()[name_], rate)
            mine, yours = (rule.cells[name_].neuron.spike for rule in (homeostasis, eager))
            assert torch.equal(mine, yours)
            assert homeostasis.units[name_].rate.steps == eager.units[name_].rate.steps
        for mine, yours in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine, yours)
    assert counter.frame_count == warm


@pytest.mark.parametrize("rate", RATES)
def test_every_estimator_compiles_over_changes_of_batch_and_mode(rate):
    net, homeostasis = attached("one", RATES[rate])
    twin, eager = attached("one", RATES[rate])
    fast = torch.compile(net, backend="eager", fullgraph=True)
    for iteration, (batch, run) in enumerate([(4, fast), (3, net), (1, fast)]):
        for forward, owner, rule in ((run, net, homeostasis), (twin, twin, eager)):
            torch.manual_seed(iteration)
            train(forward, owner, rule, [batch])
        for name, expected in eager.rates().items():
            torch.testing.assert_close(homeostasis.rates()[name], expected)
            assert homeostasis.units[name].rate.steps == eager.units[name].rate.steps
    net.eval()
    fast(spikes(4, 6))
    assert homeostasis.units["1"].rate.steps == eager.units["1"].rate.steps


def test_a_compiled_step_can_be_cleared_paused_saved_and_loaded():
    net, homeostasis = attached("explicit")
    fast = torch.compile(net, backend="eager", fullgraph=True)
    x = spikes(4, 6)
    fast(x)
    homeostasis.clear()
    with pytest.raises(NoSpikesError, match="the estimate was cleared"):
        homeostasis.step()
    with torch.no_grad():
        fast(x)
        with homeostasis.pause():
            fast(x)
        homeostasis.eval()
        fast(x)
        homeostasis.train()
        assert homeostasis.units["lif1"].rate.steps == 2
        fast(x)
    assert homeostasis.units["lif1"].rate.steps == 4
    _, fresh = attached("explicit")
    fresh.load_state_dict(homeostasis.state_dict())
    assert fresh.units["lif1"].rate.steps == 4
    for name, rate in homeostasis.rates().items():
        assert torch.equal(fresh.rates()[name], rate)


def test_attaching_after_the_first_compiled_call_is_explained():
    net = NETS["hidden"][0]()
    fast = torch.compile(net, backend="eager")
    with torch.no_grad():
        for _ in range(2):  # at the first call the membranes have no shape yet
            fast(spikes(4, 6))
        homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
        fast(spikes(4, 6))
    with pytest.raises(NoSpikesError, match=r"compiled before `attach`.*torch\.compiler\.reset\(\)"):
        homeostasis.step()
    torch.compiler.reset()
    with torch.no_grad():
        fast(spikes(4, 6))
    homeostasis.step()


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
def test_an_export_is_not_observed():
    net = nn.Sequential(nn.Linear(6, 8), leaky(surrogate_disable=True))
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
    x = spikes(4, 6)
    with torch.no_grad():
        net(x)
        torch.export.export(net, (x,), strict=False)
    assert homeostasis.units["1"].rate.steps == 1
    homeostasis.clear()
    utils.reset(net)
    with torch.no_grad():
        net(x)
    homeostasis.step()


def test_layout_and_batch_are_checked_at_the_step():
    layer, neuron = nn.Linear(6, 5), leaky()
    homeostasis = LinearHomeostasis(0.02, 0.2)
    homeostasis.register_cell("cell", Cell(layer, neuron))
    torch.compile(neuron, backend="eager", fullgraph=True)(spikes(4, 7))
    with pytest.raises(ArgumentError, match="should have the 5 features of Linear"):
        homeostasis.step()


def test_a_compiled_graph_that_waits_is_noticed():
    net, homeostasis = attached("hidden")
    loss = torch.compile(net, backend="aot_eager", fullgraph=True)(spikes(4, 6)).sum()
    with pytest.raises(WaitingGraphError):
        homeostasis.step()
    loss.backward()
    homeostasis.step()


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang")), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles:UserWarning")  # torch 2.6 itself
@torch.no_grad()
def test_the_default_backend_counts_alike():
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
    recount = Recount(net[1])
    fast = torch.compile(net, fullgraph=True)
    x = spikes(4, 6)
    for _ in range(3):
        fast(x)
    utils.reset(net)
    assert homeostasis.units["1"].rate.steps == 3
    counted = homeostasis.rates()["1"]
    homeostasis.clear()
    for _ in range(3):
        net(x)
    torch.testing.assert_close(counted.double(), recount.rate)


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
def test_the_default_estimate_starts_again_inside_a_compiled_model():
    counter, rules = CompileCounterWithBackend("eager"), []
    for compiled in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), leaky())
        homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
        call = torch.compile(net, backend=counter, fullgraph=True) if compiled else net
        for _ in range(5):
            with torch.no_grad():
                for _ in range(4):
                    call(3 * spikes(4, 6))
            assert homeostasis.units["1"].rate.steps == 4
            homeostasis.step()
        rules.append((homeostasis.rates()["1"], net[0].bias))
    for compiled, eager in zip(*rules, strict=True):
        torch.testing.assert_close(compiled, eager)
    assert counter.frame_count <= 3  # without a membrane, with one, and after a step
