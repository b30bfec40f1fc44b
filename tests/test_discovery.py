"""`attach` without an example: the cells of `nn.Sequential` and of `pairs`, or a clear error."""

import re

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    FoundCell,
    HomeostasisWarning,
    LinearHomeostasis,
    UnpairedNeuronError,
    UnsupportedNeuronError,
    find_cells,
)


def leaky(**kwargs):
    return snn.Leaky(beta=0.9, init_hidden=True, **kwargs)


class OwnCode(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc2, self.fc1 = nn.Linear(5, 3), nn.Linear(4, 5)
        self.lif1, self.lif2 = leaky(), leaky()

    def forward(self, x):
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


FOUND = {
    "plain": (
        lambda: nn.Sequential(nn.Linear(4, 5), leaky(), nn.Linear(5, 3), leaky()),
        [("1", "0", "1", None), ("3", "2", "3", None)],
    ),
    "nested": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(4, 5), nn.Sequential(leaky())), nn.Linear(5, 3), leaky()
        ),
        [("0.1.0", "0.0", "0.1.0", None), ("2", "1", "2", None)],
    ),
    "norm, pooling, dropout, flatten between": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Dropout2d(0.1), nn.Flatten(), leaky(),
            nn.Dropout(0.5), nn.Linear(36, 3), nn.BatchNorm1d(3), leaky(),
        ),
        [("5", "0", "5", "1"), ("9", "7", "9", "8")],
    ),
    "layer norm over channels": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), leaky()), [("2", "0", "2", "1")],
    ),
    "layer norm over positions too": (
        lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.LayerNorm((4, 6)), leaky()), [("2", "1", "2", None)],
    ),
    "norm in front of the layer is not its norm": (
        lambda: nn.Sequential(
            nn.BatchNorm1d(4), nn.Linear(4, 5), leaky(), nn.BatchNorm1d(5), nn.Linear(5, 3), leaky()
        ),
        [("2", "1", "2", None), ("5", "4", "5", None)],
    ),
    "the last of several layers drives": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), leaky()),
        [("2", "1", "2", None)],
    ),
    "layers inside neurons": (
        lambda: nn.Sequential(
            nn.Linear(4, 5), snn.SLSTM(5, 5, init_hidden=True),
            nn.Linear(5, 3), snn.RLeaky(0.9, linear_features=3, init_hidden=True),
        ),
        [
            ("1", "1.lstm_cell", "1", None),
            ("3:2", "2", "3", None), ("3:3.recurrent", "3.recurrent", "3", None),
        ],
    ),
    "sequence neurons": (
        lambda: nn.Sequential(snn.LeakyParallel(4, 5), nn.Linear(5, 3), snn.LeakyParallel(3, 2)),
        [("0", "0.rnn", "0", None), ("2", "2.rnn", "2", None)],
    ),
    "a neuron as the model": (lambda: snn.LeakyParallel(4, 5), [("neuron", "rnn", "", None)]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_finds_the_cells_of_a_sequential(name):
    build, expected = FOUND[name]
    assert find_cells(build()) == [FoundCell(*each) for each in expected]


@pytest.mark.parametrize("example", [None, torch.rand(3, 2, 4)])
def test_a_neuron_may_be_the_model(example):
    assert find_cells(snn.LeakyParallel(4, 5), example) == [FoundCell("neuron", "rnn", "")]
    assert find_cells(snn.LinearLeaky(0.9, 4, 5), example) == [FoundCell("neuron", "linear", "")]


UNKNOWN = {
    "own code": (OwnCode, ["`lif1` (Leaky): the model's own code calls it", "`lif2` (Leaky)"]),
    "nothing in front": (lambda: nn.Sequential(leaky()), ["`0` (Leaky): no layer precedes it"]),
    "neuron on neuron": (lambda: nn.Sequential(nn.Linear(4, 5), leaky(), leaky()), ["`2` (Leaky): no layer"]),
    "softmax": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Softmax(1), leaky()),
        ["`2` (Leaky): `1` (Softmax) precedes it and may mix channels"],
    ),
    "flatten of the batch": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Flatten(0), leaky()), ["`1` (Flatten) precedes it"],
    ),
    "one neuron twice": (
        lambda: (lambda lif: nn.Sequential(nn.Linear(4, 4), lif, nn.Linear(4, 4), lif))(leaky()),
        ["`1` (Leaky): one neuron object is used in several places: `1`, `3`"],
    ),
    "own module in a chain": (
        lambda: nn.Sequential(OwnCode(), nn.Linear(3, 2), leaky()), ["`0.lif1` (Leaky)", "`0.lif2` (Leaky)"],
    ),
    "no neuron": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU()), ["the model has no spiking neuron"]),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_error_names_all_unknown_neurons_at_once(name):
    build, phrases = UNKNOWN[name]
    model = build()
    with pytest.raises(UnpairedNeuronError) as error:
        LinearHomeostasis(0.1, 0.1).attach(model)
    for phrase in (*phrases, "attach(model, pairs={'neuron': 'layer'})"):
        assert phrase in str(error.value)
    assert not any(module._forward_hooks for module in model.modules())


def test_pairs_give_the_cells_of_own_code():
    net = OwnCode()
    homeostasis = LinearHomeostasis(0.1, 0.1).attach(net, pairs={"lif1": "fc1", "lif2": ["fc2"]})
    with torch.no_grad():
        net(torch.rand(2, 4))
    homeostasis.step()
    assert {name: cell.connection.layer for name, cell in homeostasis.cells.items()} == {
        "lif1": net.fc1,
        "lif2": net.fc2,
    }


def test_pairs_register_exactly_what_they_name():
    assert list(LinearHomeostasis(0.1, 0.1).attach(OwnCode(), pairs={"lif2": "fc2"}).cells) == ["lif2"]


def test_several_layers_of_one_neuron_are_cells_of_their_own():
    net = OwnCode()
    net.side = nn.Linear(4, 5)
    homeostasis = LinearHomeostasis(0.1, 0.1).attach(net, pairs={"lif1": ["fc1", "side"]})
    assert list(homeostasis.cells) == ["lif1:fc1", "lif1:side"]


def test_wrong_pair_raises_at_the_first_spikes():
    net = OwnCode()
    homeostasis = LinearHomeostasis(0.1, 0.1).attach(net, pairs={"lif1": "fc2"})
    with pytest.raises(ArgumentError, match=re.escape("should have the 3 features of Linear")):
        net(torch.rand(2, 4))
    assert not homeostasis.units["lif1"].rate.steps


@pytest.mark.parametrize("pairs", [{"lif9": "fc1"}, {"lif1": "fc9"}, {"fc1": "lif1"}, {}])
def test_wrong_paths_are_named(pairs):
    with pytest.raises(UnpairedNeuronError, match=r"no neuron of|no module of|no spiking"):
        LinearHomeostasis(0.1, 0.1).attach(OwnCode(), pairs=pairs)


def test_all_refused_neurons_are_named_and_get_no_hook():
    model = nn.Sequential(
        snn.LinearLeaky(0.9, 4, 5, output=False), nn.Linear(5, 3), snn.StateLeaky(0.9, 3, output=False)
    )
    with pytest.raises(UnsupportedNeuronError, match=r"(?s)LinearLeaky.*StateLeaky"):
        LinearHomeostasis(0.1, 0.1).attach(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_attach_reports_all_layers_without_the_param():
    model = nn.Sequential(nn.Linear(4, 5, bias=False), leaky(), nn.Linear(5, 3, bias=False), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.1, "bias")
    with pytest.raises(ArgumentError, match=re.escape("None is there for `1`, `3`")):
        homeostasis.attach(model)
    assert not homeostasis.cells


def test_a_recurrent_layer_without_the_param_is_left_out():
    model = nn.Sequential(
        nn.Linear(4, 5), snn.RLeaky(0.9, all_to_all=False, V=torch.rand(5), init_hidden=True)
    )
    assert list(LinearHomeostasis(0.1, 0.1, "weight").attach(model).cells) == ["1:0", "1:1.recurrent"]
    assert list(LinearHomeostasis(0.1, 0.1, "bias").attach(model).cells) == ["1:0"]


def test_frozen_layers_are_regulated_only_when_named():
    model = nn.Sequential(nn.Linear(4, 5).requires_grad_(False), leaky())
    with pytest.raises(ArgumentError, match="name a frozen layer in `pairs=`"):
        LinearHomeostasis(0.1, 0.1).attach(model)
    assert list(LinearHomeostasis(0.1, 0.1).attach(model, pairs={"1": "0"}).cells) == ["1"]


def test_batch_norm_takes_the_role_of_the_bias():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(model)
    (cell,) = homeostasis.cells.values()
    assert cell.connection.bias is model[1].bias
    assert cell.connection.weight is model[0].weight
    model(torch.rand(6, 4))
    before = model[0].bias.clone()
    homeostasis.step()
    assert torch.equal(model[0].bias, before)
    assert (model[1].bias != 0).all()


@torch.no_grad()
def test_batch_norm_bias_reaches_the_target():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AvgPool2d(2), leaky())
    homeostasis = LinearHomeostasis(0.02, 0.1, "bias").attach(model)
    for plasticity, rounds in ((0.02, 150), (0.004, 80)):
        for unit in homeostasis.units.values():
            unit.state.plasticity = plasticity
        for _ in range(rounds):
            homeostasis.clear()
            model[-1].reset_mem()
            for _ in range(20):
                model(torch.rand(8, 1, 8, 8))
            homeostasis.step()
    assert homeostasis.rates()["3"].mean((1, 2)).tolist() == pytest.approx([0.1] * 4, rel=0.05)


def test_weight_rule_behind_batch_norm_warns():
    with pytest.warns(HomeostasisWarning, match="BatchNorm1d cancels most of what the weight rule does"):
        LinearHomeostasis(0.1, 0.1).attach(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), leaky()))


def test_batch_norm_without_affine_has_no_bias():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), leaky())
    with pytest.raises(ArgumentError, match="None is there for `2`"):
        LinearHomeostasis(0.1, 0.1, "bias").attach(model)


def test_long_sequential_needs_no_recursion():
    model = nn.Sequential(*(module for _ in range(3000) for module in (nn.Linear(1, 1), leaky())))
    assert len(find_cells(model)) == 3000
