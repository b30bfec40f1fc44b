"""Modules that are replaced, wrapped or moved after `attach`."""

import copy
import gc
import weakref

import pytest
import torch
from nets import leaky
from torch import nn

from snn_homeostasis import Cell, LinearHomeostasis, NoSpikesError, ReplacedModuleError


class Block(nn.Module):
    def __init__(self, inputs, size):
        super().__init__()
        self.fc, self.norm, self.lif = nn.Linear(inputs, size), nn.BatchNorm1d(size), leaky()

    def forward(self, x):
        return self.lif(self.norm(self.fc(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 8), leaky()
        self.blocks = nn.ModuleList([Block(8, 8)])
        self.chain = nn.Sequential(nn.Linear(8, 3), leaky())

    def forward(self, x):
        x = self.lif1(self.fc1(x))
        for block in self.blocks:
            x = block(x)
        return self.chain(x)


def attached(param="bias"):
    net = Net()
    homeostasis = LinearHomeostasis(0.1, 0.2, param).attach(net, torch.rand(4, 6))
    run(net)
    return net, homeostasis


def run(net):
    with torch.no_grad():
        net(torch.rand(4, 6))


def values(net):
    return [parameter.detach().clone() for parameter in net.parameters()]


REPLACED = {
    "layer": (lambda net: setattr(net, "fc1", nn.Linear(6, 8)), "`fc1` of cell 'lif1' replaced by Linear"),
    "layer of a chain": (
        lambda net: net.chain.__setitem__(0, nn.Linear(8, 3)),
        "`chain.0` of cell 'chain.1' replaced by Linear",
    ),
    "neuron": (lambda net: setattr(net, "lif1", leaky()), "`lif1` of cell 'lif1' replaced by Leaky"),
    "norm": (
        lambda net: setattr(net.blocks[0], "norm", nn.BatchNorm1d(8)),
        "`blocks.0.norm` of cell 'blocks.0.lif' replaced by BatchNorm1d",
    ),
    "block": (
        lambda net: net.blocks.__setitem__(0, Block(8, 8)),
        "`blocks.0.fc` of cell 'blocks.0.lif' replaced by Linear",
    ),
    "by none": (lambda net: setattr(net, "fc1", None), "`fc1` of cell 'lif1' replaced by nothing"),
    "deleted": (lambda net: delattr(net, "fc1"), "`fc1` of cell 'lif1' replaced by nothing"),
}


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.parametrize("stepped", [False, True], ids=["first step", "later step"])
def test_a_replaced_module_is_named_at_the_next_step(kind, stepped):
    net, homeostasis = attached()
    if stepped:
        homeostasis.step()
        run(net)
    replace, words = REPLACED[kind]
    replace(net)
    before = values(net)
    for _ in range(2):
        with pytest.raises(ReplacedModuleError, match=words) as caught:
            homeostasis.step()
    assert "`remove()`, then `attach`" in str(caught.value)
    assert all(map(torch.equal, net.parameters(), before))


def test_all_replaced_modules_are_named_at_once():
    net, homeostasis = attached()
    net.fc1, net.chain[1] = nn.Linear(6, 8), leaky()
    with pytest.raises(ReplacedModuleError, match=r"`fc1` of cell .*`chain.1` of cell"):
        homeostasis.step()


def test_a_neuron_that_never_ran_since_it_was_replaced_is_explained():
    net, homeostasis = attached()
    homeostasis.clear()
    net.lif1 = leaky()
    run(net)
    with pytest.raises(NoSpikesError, match="holds another module in its place"):
        homeostasis.step()


def test_what_is_named_works_as_a_remedy():
    net, homeostasis = attached()
    net.fc1 = nn.Linear(6, 8)
    homeostasis.remove()
    homeostasis.attach(net, torch.rand(4, 6))
    run(net)
    before = net.fc1.bias.detach().clone()
    homeostasis.step()
    assert not torch.equal(net.fc1.bias, before)


class Adapter(nn.Module):
    """Wraps a layer, as adapters do."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return self.base(x)


MOVED = {
    "wrapped": lambda net: setattr(net, "fc1", Adapter(net.fc1)),
    "wrapped twice": lambda net: setattr(net, "fc1", Adapter(nn.Sequential(net.fc1))),
    "moved in a chain": lambda net: net.chain.insert(0, nn.Dropout()),
    "block wrapped": lambda net: net.blocks.__setitem__(0, Adapter(net.blocks[0])),
    "another module replaced": lambda net: net.chain.append(nn.Identity()),
    "the same again": lambda net: setattr(net, "fc1", net.fc1),
}


@pytest.mark.parametrize("kind", MOVED)
def test_a_module_that_the_model_still_holds_is_regulated(kind):
    net, homeostasis = attached()
    MOVED[kind](net)
    biases = [cell.connection.bias for cell in homeostasis.cells.values()]
    for _ in range(2):
        run(net)
        before = [bias.detach().clone() for bias in biases]
        homeostasis.step()
        assert not any(map(torch.equal, biases, before))


def test_a_module_that_was_moved_and_then_replaced_is_named():
    net, homeostasis = attached()
    net.fc1 = Adapter(net.fc1)
    homeostasis.step()
    net.fc1.base = nn.Linear(6, 8)
    run(net)
    with pytest.raises(ReplacedModuleError, match="`fc1` of cell 'lif1' replaced by Adapter"):
        homeostasis.step()


def test_a_cell_by_hand_belongs_to_no_model():
    net = Net()
    homeostasis = LinearHomeostasis(0.1, 0.2, "bias")
    homeostasis.register_cell("cell", Cell(net.fc1, net.lif1))
    run(net)
    net.fc1 = nn.Linear(6, 8)
    homeostasis.step()


@pytest.mark.filterwarnings("ignore:`step` should be called once")
@pytest.mark.parametrize("first", ["net", "homeostasis"])
def test_a_copy_looks_into_the_copied_model(first):
    net, homeostasis = attached()
    both = nn.ModuleDict({first: {"net": net, "homeostasis": homeostasis}[first]})
    both.update({"net": net, "homeostasis": homeostasis})
    twin = copy.deepcopy(both)
    net.fc1 = nn.Linear(6, 8)
    twin["homeostasis"].step()
    twin["net"].lif1 = leaky()
    with pytest.raises(ReplacedModuleError, match="`lif1`"):
        twin["homeostasis"].step()
    with pytest.raises(ReplacedModuleError, match="`fc1`"):
        homeostasis.step()


def test_a_model_inside_which_a_homeostasis_lives_is_freed_at_once():
    net, homeostasis = attached()
    homeostasis.step()
    net.homeostasis = homeostasis
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(net)
        del net, homeostasis
        assert gone() is None
    finally:
        gc.enable()


def test_a_layer_whose_model_is_gone_is_still_regulated():
    net = Net()
    chain = nn.Sequential(net.fc1, net.lif1)
    homeostasis = LinearHomeostasis(0.1, 0.2, "bias").attach(chain)
    del chain
    for _ in range(2):
        run(net)
        homeostasis.step()
