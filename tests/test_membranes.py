"""What is not finite is seen although a reset took it away, at no operation per time step."""

import re

import pytest
import snntorch as snn
import torch
from nets import leaky, spikes
from snntorch import utils
from test_cost import cost_of
from torch import Tensor, nn

from snn_homeostasis import Cell, LinearHomeostasis, NonFiniteError

WAYS = {  # a neuron, and how many membranes each call takes and returns
    "hidden": lambda: (leaky(), 0),
    "hidden, reset to zero": lambda: (leaky(reset_mechanism="zero"), 0),
    "hidden synaptic": lambda: (snn.Synaptic(0.9, 0.8, init_hidden=True), 0),
    "hidden recurrent": lambda: (snn.RLeaky(0.9, linear_features=3, init_hidden=True), 0),
    "explicit": lambda: (snn.Leaky(0.9), 1),
    "explicit synaptic": lambda: (snn.Synaptic(0.9, 0.8), 2),
    "explicit alpha": lambda: (snn.Alpha(0.9, 0.8), 3),
    "by name": lambda: (snn.Leaky(0.9), 1),
}


class Subject:
    """A regulated cell whose membranes go one of these ways."""

    def __init__(self, way: str) -> None:
        self.neuron, self.count = WAYS[way]()
        self.layer, self.is_named = nn.Linear(3, 3), way == "by name"
        self.homeostasis = LinearHomeostasis(0.1, 0.1, "bias")
        self.homeostasis.register_cell("cell", Cell(self.layer, self.neuron))

    def reset(self) -> None:
        utils.reset(nn.Sequential(self.neuron))
        self.membranes = [torch.zeros(2, 3)] * self.count

    def step(self, x: Tensor) -> None:
        if self.is_named:
            output = self.neuron(self.layer(x), mem=self.membranes[0])
        else:
            output = self.neuron(self.layer(x), *self.membranes)
        self.membranes = list(output[1:]) if self.count else []

    def sequence(self, x: Tensor, steps: int = 10) -> None:
        self.reset()
        for _ in range(steps):
            self.step(x)


GOOD, BAD = torch.ones(2, 3), torch.full((2, 3), torch.nan)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [1, 10])
@torch.no_grad()
def test_nan_in_an_earlier_sequence_raises(way, steps):
    subject = Subject(way)
    before = subject.layer.bias.clone()
    for x, length in ((GOOD, 10), (BAD, steps), (GOOD, 10), (GOOD, 10)):
        subject.sequence(x, length)
    with pytest.raises(NonFiniteError, match=re.escape("'cell' (membrane)")):
        subject.homeostasis.step()
    assert torch.equal(subject.layer.bias, before)
    subject.homeostasis.clear()
    for _ in range(2):
        subject.sequence(GOOD)
    subject.homeostasis.step()
    assert not torch.equal(subject.layer.bias, before)


@pytest.mark.parametrize("reset", ["reset_mem", "assigned", "of all"])
def test_every_way_to_reset_ends_a_sequence(reset):
    net = nn.Sequential(nn.Linear(3, 3), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(net)
    for x in (BAD, GOOD):
        for _ in range(3):
            net(x).sum().backward(retain_graph=True)
        if reset == "reset_mem":
            net[1].reset_mem()
        elif reset == "assigned":
            net[1].mem = torch.zeros(2, 3)
        else:
            snn.Leaky.reset_hidden()
    with pytest.raises(NonFiniteError, match="membrane"):
        homeostasis.step()


@pytest.mark.parametrize("name", ["StateLeaky", "LeakyParallel"])
def test_each_call_of_a_whole_sequence_is_one(name):
    neuron = snn.StateLeaky(0.9, 3) if name == "StateLeaky" else snn.LeakyParallel(3, 3)
    homeostasis = LinearHomeostasis(0.1, 0.1)
    layer = neuron.rnn if name == "LeakyParallel" else nn.Linear(3, 3)
    homeostasis.register_cell("cell", Cell(layer, neuron))
    for x in (torch.full((4, 2, 3), torch.nan), torch.zeros(4, 2, 3), torch.zeros(4, 2, 3)):
        neuron(x)
    with pytest.raises(NonFiniteError, match="membrane"):
        homeostasis.step()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_truncated", [False, True], ids=["one graph", "a graph per step"])
def test_within_a_sequence_a_step_is_the_count_alone(way, is_truncated):
    subject, x = Subject(way), spikes(2, 3)

    def go_on() -> None:
        for _ in range(10):
            if is_truncated:
                subject.membranes = [each.detach() for each in subject.membranes]
            subject.step(x)

    subject.sequence(x)
    seen = cost_of(go_on).computing
    subject.homeostasis.remove()
    assert len(seen) == len(cost_of(go_on).computing) + 10


@torch.no_grad()
def test_a_frozen_homeostasis_looks_once_at_most():
    subject = Subject("hidden")
    subject.sequence(GOOD)
    subject.homeostasis.eval()
    subject.sequence(GOOD)
    seen = cost_of(lambda: subject.sequence(GOOD)).computing
    subject.homeostasis.remove()
    assert seen == cost_of(lambda: subject.sequence(GOOD)).computing
