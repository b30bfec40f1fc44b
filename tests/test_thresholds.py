"""The threshold as a parameter: of any shape and neuron, learnable or not, never at zero."""

import copy
import math

import pytest
import snntorch as snn
import torch
from cases import CommandedCell
from nets import leaky, spikes
from neurons import CLOSED_LOOPS
from snntorch import utils
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    Band,
    Cell,
    FallingPlasticity,
    HomeostasisWarning,
    LinearHomeostasis,
    UnsupportedLayerError,
)

LOWEST = 1e-3
SHAPES = {
    "shared": (),
    "one": (1,),
    "channels": (4, 1, 1),
    "neurons": (4, 3, 2),
    "columns": (2,),
    "batch of one": (1, 4, 3, 2),
}

pytestmark = pytest.mark.filterwarnings("ignore:`step` should be called once")


def a_conv(threshold, learn=False, target=0.4, **settings):
    """Neurons ``[4, 3, 2]`` that receive what a test gives them."""
    neuron = snn.Leaky(
        beta=0.0, threshold=threshold, learn_threshold=learn, init_hidden=True, reset_mechanism="none"
    )
    homeostasis = LinearHomeostasis(**{"plasticity": 0.25, "target": target, "param": "threshold"} | settings)
    homeostasis.register_cell("a", Cell(nn.Conv2d(1, 4, 2), neuron))
    return neuron, homeostasis


def expected_step(before, rate, target, plasticity):
    """θ - λ (r* - r) / r*, averaged over the neurons that share a threshold, in plain loops."""
    after = before.clone().double()
    shape = (1,) * (rate.ndim - before.ndim) + tuple(
        before.shape[before.ndim - min(before.ndim, rate.ndim) :]
    )
    flat = after.reshape(shape)
    for index in torch.cartesian_prod(*(torch.arange(size) for size in shape)).reshape(-1, len(shape)):
        place = tuple(index.tolist())
        shared = rate[tuple(slice(None) if size == 1 else i for size, i in zip(shape, place, strict=True))]
        terms = [(target - r) / target for r in shared.flatten().tolist()]
        flat[place] -= plasticity * sum(terms) / len(terms)
    return after


@pytest.mark.parametrize("way", ["step", "forward, update"])
@pytest.mark.parametrize("learn", [False, True], ids=["buffer", "Parameter"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_threshold_of_any_shape_follows_the_rule(shape, learn, way):
    threshold = torch.rand(SHAPES[shape]) + 1.0
    neuron, homeostasis = a_conv(threshold.clone(), learn)
    keys, before, held = list(neuron.state_dict()), neuron.threshold.detach().clone(), neuron.threshold
    with torch.no_grad():
        for _ in range(4):
            neuron(3 * torch.rand(5, 4, 3, 2))
    rate = homeostasis.rates()["a"].double()
    if way == "step":
        homeostasis.step()
    else:
        homeostasis()
        homeostasis.update()
    assert neuron.threshold is held
    assert list(neuron.state_dict()) == keys
    expected = expected_step(before, rate, 0.4, 0.25).clamp_min(LOWEST)
    assert neuron.threshold.shape == SHAPES[shape]
    torch.testing.assert_close(neuron.threshold.detach().double(), expected, rtol=0, atol=1e-5)


LOOPS = [
    (name, index)
    for name, loops in CLOSED_LOOPS.items()
    for index in range(len(loops))
    if name not in ("DeltaLeaky", "AssociativeLeaky")
]


@pytest.mark.parametrize(("name", "index"), LOOPS)
def test_each_neuron_comes_to_its_rate_by_its_threshold(name, index):
    loop = CLOSED_LOOPS[name][index]()
    if name == "Alpha":  # too weakly driven for any threshold
        nn.init.constant_(loop.layer.bias, 0.5)
    homeostasis = LinearHomeostasis(0.1, 0.1, "threshold")
    unit = homeostasis.register_cell("cell", Cell(loop.layer, loop.neuron))
    for plasticity, rounds in ((0.05, 60), (0.01, 60), (0.002, 60)):
        unit.state.plasticity = plasticity * float(loop.neuron.threshold.detach().mean().clamp(max=1.0))
        for _ in range(rounds):
            with torch.no_grad():
                loop.present()
            homeostasis.step()
    loop.present()
    assert homeostasis.rates()["cell"].mean().item() == pytest.approx(0.1, rel=0.25)


@pytest.mark.filterwarnings("ignore:The rate of DeltaLeaky:snn_homeostasis.HomeostasisWarning")
def test_a_neuron_without_a_threshold_that_can_change_is_refused():
    neuron = snn.DeltaLeaky(beta=0.9)
    with pytest.raises(ArgumentError, match="`param = 'threshold'`, and DeltaLeaky has no such"):
        LinearHomeostasis(0.1, 0.1, "threshold").register_cell("a", Cell(nn.Linear(3, 2), neuron))


@pytest.mark.parametrize(
    ("threshold", "found"), [(1, "whole numbers"), (0.0, "below 0.001"), (-1.0, "below 0.001")]
)
def test_a_threshold_that_cannot_change_is_refused(threshold, found):
    cell = Cell(nn.Linear(3, 2), snn.Leaky(beta=0.9, threshold=threshold))
    with pytest.raises(UnsupportedLayerError, match=found):
        LinearHomeostasis(0.1, 0.1, "threshold").register_cell("a", cell)
    LinearHomeostasis(0.1, 0.1, "bias").register_cell("a", cell)


def test_a_threshold_that_does_not_fit_the_neurons_is_refused():
    neuron, homeostasis = a_conv(torch.ones(4))
    with torch.no_grad(), pytest.raises(RuntimeError):
        neuron(torch.rand(5, 4, 3, 2))
    neuron, homeostasis = a_conv(torch.ones(4, 3))
    homeostasis.cells["a"].neuron(neuron, (), {}, torch.zeros(5, 4, 3, 2))
    with pytest.raises(ArgumentError, match="`threshold` should broadcast to the neurons"):
        homeostasis.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_threshold_never_comes_to_zero_and_says_so_once(dtype):
    neuron, homeostasis = a_conv(torch.ones(4, 1, 1, dtype=dtype), plasticity=0.3)
    with torch.no_grad():
        neuron(torch.full((2, 4, 3, 2), -1.0))
    for _ in range(4):
        homeostasis.step()
        assert neuron.threshold.min() > 0
    with pytest.warns(HomeostasisWarning, match="threshold of cell 'a' is at its lowest value"):
        homeostasis.step()
    homeostasis.step()
    assert neuron.threshold.flatten().tolist() == pytest.approx([LOWEST] * 4, rel=0.01)


def test_bounds_hold_for_thresholds():
    commanded = CommandedCell()
    homeostasis = LinearHomeostasis(9.0, 0.5, "threshold")
    homeostasis.register_cell("a", commanded.cell)
    commanded.cell.updater.threshold.bounds = lambda param, pos, neg: (pos - neg).clamp(-0.125, 0.125)
    commanded.fire(0)
    homeostasis.step()
    assert commanded.neuron.threshold.item() == 0.375
    assert commanded.cell.connection.threshold is commanded.neuron.threshold


def test_a_slot_of_a_threshold_takes_parts_of_the_user():
    commanded = CommandedCell()
    commanded.cell.updater.threshold = (torch.tensor(0.25), None)
    commanded.cell.updater()
    assert commanded.neuron.threshold.item() == 0.75


def test_a_layer_that_inhibits_does_not_turn_the_threshold():
    commanded = CommandedCell(sign=-1)
    homeostasis = LinearHomeostasis(0.125, 0.5, "threshold")
    homeostasis.register_cell("a", commanded.cell)
    commanded.fire(0)
    homeostasis.step()
    assert commanded.neuron.threshold.item() == 0.375


@pytest.mark.parametrize(("fires", "moved"), [((0, 0), -0.1), ((1, 0), 0.0), ((1, 1), 0.1)])
def test_a_band_moves_a_threshold_the_other_way(fires, moved):
    commanded = CommandedCell()
    homeostasis = LinearHomeostasis(0.1, Band(0.4, 0.5), "threshold")
    homeostasis.register_cell("a", commanded.cell)
    commanded.fire(*fires)
    homeostasis.step()
    assert commanded.neuron.threshold.item() == pytest.approx(0.5 + moved)


# --- whole models ----------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Two layers drive one neuron, and neither has a bias."""

    def __init__(self):
        super().__init__()
        self.fc, self.back = nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.lif = leaky(learn_threshold=True)

    def forward(self, x):
        out = torch.zeros(len(x), 8)
        for step in x.unbind(1):
            out = self.lif(self.fc(step) + self.back(out))
        return out


def test_a_neuron_with_several_layers_is_one_cell():
    net, x = Recurrent(), torch.rand(4, 3, 6)
    homeostasis = LinearHomeostasis(0.125, 0.5, "threshold").attach(net, x)
    assert list(homeostasis.cells) == ["lif"]
    utils.reset(net)
    with torch.no_grad():
        net(torch.zeros(4, 3, 6))
    homeostasis.step()
    assert net.lif.threshold.item() == pytest.approx(1.0 - 0.125)


def test_a_net_with_a_norm_for_each_step_is_one_cell():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(6, 8, bias=False), leaky()
            self.norms = nn.ModuleList(nn.BatchNorm1d(8, affine=False) for _ in range(3))

        def forward(self, x):
            return [self.lif(norm(self.fc(x))) for norm in self.norms]

    homeostasis = LinearHomeostasis(0.1, 0.1, "threshold").attach(Net(), torch.rand(4, 6))
    assert list(homeostasis.cells) == ["lif"]


@torch.no_grad()
def test_an_slstm_that_cannot_reach_its_threshold_comes_to_fire():
    net = nn.Sequential(nn.Linear(6, 8), leaky(), snn.SLSTM(8, 8, init_hidden=True))
    homeostasis = LinearHomeostasis(target=0.1, param="threshold").attach(net)
    for _ in range(80):
        utils.reset(net)
        for _ in range(10):
            net(2 * spikes(32, 6))
        homeostasis.step()
    assert homeostasis.rates()["2"].mean().item() == pytest.approx(0.1, rel=0.3)


def test_an_optimizer_keeps_a_learnable_threshold():
    net = nn.Sequential(
        nn.Linear(6, 8), leaky(learn_threshold=True), nn.Linear(8, 3), leaky(learn_threshold=True)
    )
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    held = net[1].threshold
    LinearHomeostasis(target=0.1, param="threshold").attach(net).follow(optimizer)
    for _ in range(3):
        utils.reset(net)
        loss = sum(net(2 * spikes(4, 6).to(net[0].weight.dtype)) for _ in range(5)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert net[1].threshold is held
    assert held.item() != 1.0


def test_a_frozen_threshold_is_left_alone():
    net = nn.Sequential(nn.Linear(6, 8), leaky(learn_threshold=True))
    net[1].threshold.requires_grad_(False)
    with pytest.raises(ArgumentError, match="`param` should be a trainable parameter"):
        LinearHomeostasis(target=0.1, param="threshold").attach(net)


def test_thresholds_are_resumed_with_the_model():
    def build():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, 8), leaky())
        return net, LinearHomeostasis(FallingPlasticity(0.1), 0.1, "threshold").attach(net)

    def run(net, homeostasis, seed):
        torch.manual_seed(seed)
        utils.reset(net)
        with torch.no_grad():
            for _ in range(5):
                net(2 * spikes(4, 6).to(net[0].weight.dtype))
        homeostasis.step()

    net, homeostasis = build()
    run(net, homeostasis, 2)
    other, resumed = build()
    other.load_state_dict(copy.deepcopy(net.state_dict()), strict=True)
    resumed.load_state_dict(homeostasis.state_dict(), strict=True)
    for each in ((net, homeostasis), (other, resumed)):
        run(*each, 3)
    assert torch.equal(other[1].threshold, net[1].threshold)
    assert math.isfinite(net[1].threshold.item())
