"""Neurons that are read by their membrane are left out and named, and taken in when the user names them."""

import warnings
from dataclasses import dataclass

import pytest
import snntorch as snn
import torch
from models import Loop, leaky
from torch import Tensor, nn

from snn_homeostasis import HomeostasisWarning, LinearHomeostasis, UnpairedNeuronError, find_cells

NO_RESET = {"reset_mechanism": "none"}


def found(model, example=None, **choice):
    """The names of the found cells, and the messages of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cells = find_cells(model, example, **choice)
    return [each.name for each in cells], [str(each.message) for each in caught]


def chain(**kwargs):
    return nn.Sequential(nn.Linear(4, 5), leaky(), nn.Linear(5, 2), leaky(**kwargs))


def x():
    return torch.rand(3, 4)


@pytest.mark.parametrize("has_example", [False, True])
@pytest.mark.parametrize("threshold", [20000, 1e9, float("inf"), torch.full((2,), 5000.0)])
def test_no_reset_and_a_threshold_out_of_reach(threshold, has_example):
    model = chain(threshold=threshold, **NO_RESET)
    names, (message,) = found(model, x() if has_example else None)
    assert names == ["1"]
    assert "the readout `3`, since it has no reset, and its threshold of" in message
    assert "`include=`" in message


@pytest.mark.parametrize(
    "neuron",
    [
        lambda: snn.Synaptic(alpha=0.5, beta=0.9, init_hidden=True, threshold=1e5, **NO_RESET),
        lambda: snn.Lapicque(beta=0.9, init_hidden=True, threshold=1e5, **NO_RESET),
        lambda: snn.RLeaky(beta=0.9, linear_features=2, init_hidden=True, threshold=1e5, **NO_RESET),
        lambda: snn.LeakyParallel(5, 2, threshold=1e5),
    ],
)
def test_every_class_may_be_a_readout(neuron):
    names, messages = found(nn.Sequential(nn.Linear(4, 5), leaky(), nn.Linear(5, 2), neuron()))
    assert (names, len(messages)) == (["1"], 1)


@pytest.mark.parametrize("scale", [1.0, 0.0])
@pytest.mark.parametrize("kwargs", [{}, NO_RESET, {"threshold": 8.0, **NO_RESET}, {"threshold": 300.0}])
@pytest.mark.parametrize("has_example", [False, True])
def test_an_ordinary_silent_layer_is_regulated(scale, kwargs, has_example):
    model = nn.Sequential(nn.Linear(4, 5), leaky(**kwargs), nn.Linear(5, 2), leaky())
    with torch.no_grad():
        model[0].weight.mul_(scale)
    assert found(model, x() if has_example else None) == (["1", "3"], [])


def test_the_example_tells_what_is_in_reach():
    model = nn.Sequential(nn.Linear(4, 5), leaky(threshold=20000, **NO_RESET))
    with torch.no_grad():
        model[0].weight.fill_(1e4)
    assert found(model, x()) == (["1"], [])
    model = nn.Sequential(nn.Linear(4, 5), leaky(threshold=100, **NO_RESET), nn.Linear(5, 2), leaky())
    assert found(model)[0] == ["1", "3"]  # without an example, inputs may be large
    assert found(model, x())[0] == ["3"]


class Returning(Loop):
    """Keeps each output of its last neuron, and returns what `result` picks."""

    def __init__(self, pick):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 5), leaky()
        self.fc2, self.lif2 = nn.Linear(5, 2), snn.Leaky(beta=0.9)
        self.pick = pick

    def forward(self, x):
        mem, spikes, membranes = self.lif2.init_leaky(), [], []
        self.lif1.reset_mem()
        for _ in range(3):
            spk, mem = self.lif2(self.fc2(self.lif1(self.fc1(x))), mem)
            spikes.append(spk)
            membranes.append(mem)
        return self.pick(torch.stack(spikes), torch.stack(membranes))


@dataclass
class Output:
    spikes: Tensor
    membrane: Tensor


class Seen:
    def __init__(self, **values):
        vars(self).update(values)


MEMBRANE_ALONE = [
    lambda spikes, mem: mem,
    lambda spikes, mem: mem.mean(0),
    lambda spikes, mem: {"logits": mem[-1], "spikes": None},
    lambda spikes, mem: (mem.sum(), torch.zeros_like(spikes)),
    lambda spikes, mem: (mem, spikes.shape, "membrane"),
]
WITH_SPIKES = [
    lambda spikes, mem: spikes,
    lambda spikes, mem: (mem, spikes.sum(0)),
    lambda spikes, mem: mem.square().mean() + 0.1 * spikes.mean(),
    lambda spikes, mem: Output(spikes, mem),
    lambda spikes, mem: Seen(inner=Seen(counts=[spikes.sum()]), mem=mem),
    lambda spikes, mem: mem * (1 if spikes.sum().item() > 3 else 2),
    lambda spikes, mem: (mem, spikes.detach().numpy()),
    lambda spikes, mem: spikes.sum(0).argmax(1).tolist(),
    lambda spikes, mem: None,  # what is used cannot be known
]


@pytest.mark.parametrize("pick", MEMBRANE_ALONE)
def test_neurons_whose_spikes_nobody_uses_are_left_out(pick):
    names, (message,) = found(Returning(pick), x())
    assert names == ["lif1"]
    assert "`lif2`, since its spikes reach neither a layer nor what the model returns" in message


@pytest.mark.parametrize("pick", WITH_SPIKES)
def test_neurons_whose_spikes_are_used_are_regulated(pick):
    assert found(Returning(pick), x()) == (["lif1", "lif2"], [])


def test_spikes_that_the_model_keeps_are_used():
    model = Returning(lambda spikes, mem: mem)
    model.pick = lambda spikes, mem: model.record.append(spikes) or mem
    model.record = []
    assert found(model, x()) == (["lif1", "lif2"], [])
    assert model.record == []


def test_a_readout_of_unknown_layers_is_no_problem():
    model = Returning(lambda spikes, mem: mem)
    model.fc2 = nn.Sequential(nn.Linear(5, 2), nn.Softmax(1))
    assert found(model, x())[0] == ["lif1"]


def test_include_and_pairs_take_a_readout_in():
    model = Returning(lambda spikes, mem: mem)
    assert found(model, x(), include=["lif1", "lif2"]) == (["lif1", "lif2"], [])
    assert found(model, x(), pairs={"lif2": "fc2"}) == (["lif1", "lif2"], [])
    model = chain(threshold=20000, **NO_RESET)
    assert found(model, include="3") == (["3"], [])
    assert found(model, pairs={"3": "2"}) == (["3"], [])


def test_exclude_says_the_same_without_a_word():
    assert found(chain(threshold=20000, **NO_RESET), exclude="3") == (["1"], [])


def test_a_model_of_readouts_alone_is_an_error():
    model = nn.Sequential(nn.Linear(4, 2), leaky(threshold=20000, **NO_RESET))
    with pytest.raises(UnpairedNeuronError, match=r"`1` \(Leaky\): a readout, since it has no reset"):
        LinearHomeostasis(0.1, 0.1).attach(model)


def test_a_readout_keeps_its_parameters():
    model = chain(threshold=20000, **NO_RESET)
    with pytest.warns(HomeostasisWarning, match="the readout `3`"):
        homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(model, x())
    before = model[2].bias.clone()
    model(x())
    homeostasis.step()
    assert torch.equal(model[2].bias, before)
