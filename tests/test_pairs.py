"""`pairs=` is held against what a run or an `nn.Sequential` shows."""

import pytest
import snntorch as snn
import torch
from models import Loop, leaky
from models.normalised import BatchNormThroughTime, LayerNorms, NormPerStep
from models.refused import OneNeuronForTwoLayers
from models.registry import BATCH, STEPS, images, steps
from torch import nn

from snn_homeostasis import HomeostasisWarning, LinearHomeostasis, UnpairedNeuronError, find_cells


def ends(cells):
    return [(each.layer, each.neuron, each.norm) for each in cells]


class NormBetween(nn.Module):
    """A norm and pooling between layer and neuron, in a forward of its own."""

    def __init__(self, norm=None):
        super().__init__()
        self.conv1, self.bn1, self.pool = nn.Conv2d(1, 4, 3), norm or nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.lif1, self.fc, self.lif2 = leaky(), nn.Linear(36, 3), leaky()

    def forward(self, x):
        return self.lif2(self.fc(self.lif1(self.pool(self.bn1(self.conv1(x)))).flatten(1)))


def image():
    return torch.rand(BATCH, 1, 8, 8)


def test_the_norm_of_a_pair_is_seen():
    cells = find_cells(NormBetween(), image(), pairs={"lif1": "conv1"})
    assert ends(cells) == [("conv1", "lif1", "bn1"), ("fc", "lif2", None)]


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm((4, 6, 6))],
)
def test_without_a_run_a_norm_that_may_lie_between_is_refused(norm):
    with pytest.raises(UnpairedNeuronError, match=r"`bn1` may lie between `conv1` and it.*pass `example=`"):
        find_cells(NormBetween(norm), pairs={"lif1": "conv1"})
    assert ends(find_cells(NormBetween(norm), pairs={"lif2": "fc"})) == [("fc", "lif2", None)]


def test_every_norm_of_a_pair_is_seen():
    cells = find_cells(NormPerStep(), steps(), pairs={"lif1": "fc1"})
    assert [each.norm for each in cells if each.neuron == "lif1"] == [f"bn1.{t}" for t in range(STEPS)]


def test_a_sequential_shows_the_norm_of_a_pair():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), leaky(), nn.Linear(5, 5), leaky())
    assert ends(find_cells(model, pairs={"2": "0"})) == [("0", "2", "1")]
    assert ends(find_cells(model, pairs={"4": "3"})) == [("3", "4", None)]


def test_a_layer_norm_of_a_pair_is_seen():
    assert ("fc", "lif", "norm") in ends(find_cells(LayerNorms(), images(), pairs={"lif": "fc"}))
    with pytest.raises(UnpairedNeuronError, match="`conv` does not reach it; what does is `norm2`"):
        find_cells(LayerNorms(), images(), pairs={"lif2": "conv"})
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), leaky())
    assert ends(find_cells(model, pairs={"2": "0"})) == [("0", "2", "1")]


def test_a_reused_neuron_needs_all_its_layers():
    with pytest.raises(UnpairedNeuronError, match="different layers drive this one object"):
        find_cells(OneNeuronForTwoLayers(), steps(), pairs={"lif": "fc1"})
    cells = find_cells(OneNeuronForTwoLayers(), steps(), pairs={"lif": ["fc1", "fc2"]})
    assert [each.layer for each in cells] == ["fc1", "fc2"]
    lif = leaky()
    model = nn.Sequential(nn.Linear(4, 4), lif, nn.Linear(4, 4), lif)
    with pytest.raises(UnpairedNeuronError, match="used in several places: `1`, `3`"):
        find_cells(model, pairs={"1": "0"})
    assert [each.layer for each in find_cells(model, pairs={"3": ["0", "2"]})] == ["0", "2"]


class Reordered(Loop):
    def __init__(self):
        super().__init__()
        self.fc, self.lif, self.out, self.lif2 = nn.Linear(6, 4), leaky(), nn.Linear(4, 4), leaky()

    def step(self, x):
        return self.lif2(self.out(self.lif(self.fc(x).flip(1))))


def test_what_a_run_contradicts_is_refused():
    with pytest.raises(UnpairedNeuronError, match=r"`fc`, of shape .* channels reordered or mixed"):
        find_cells(Reordered(), steps(), pairs={"lif": "fc"})
    with pytest.raises(UnpairedNeuronError, match=r"`lif2` .*: `fc` does not reach it; what does is `out`"):
        find_cells(Reordered(), steps(), pairs={"lif2": "fc"}, exclude="lif")
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), leaky())
    with pytest.raises(UnpairedNeuronError, match="`0` does not reach it; what does is `1`"):
        find_cells(model, pairs={"2": "0"})


class ThroughNumPy(Loop):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 4), leaky()

    def step(self, x):
        return self.lif(torch.from_numpy(self.fc(x).detach().numpy()))


def test_what_no_run_can_show_is_taken_on_trust():
    with pytest.warns(HomeostasisWarning, match="taken on trust"):
        assert ends(find_cells(ThroughNumPy(), steps(), pairs={"lif": "fc"})) == [("fc", "lif", None)]


def test_pairs_take_modules_in_place_of_paths():
    model = NormBetween()
    assert ends(find_cells(model, image(), pairs={model.lif1: model.conv1}))[0] == ("conv1", "lif1", "bn1")


class Fused(snn.Leaky):
    """Normalises what it receives."""

    def __init__(self):
        super().__init__(beta=0.9, init_hidden=True)
        self.bn = nn.BatchNorm1d(5)

    def forward(self, x):
        return super().forward(self.bn(x))


@pytest.mark.parametrize("example", [None, torch.rand(3, 4)])
def test_a_fused_norm_and_neuron_is_paired_with_the_norm(example):
    model = nn.Sequential(nn.Linear(4, 5), Fused())
    for pairs in (None, {"1": "0"}):
        with pytest.raises(UnpairedNeuronError, match=r"normalises its input inside.* that norm, `1\.bn`"):
            find_cells(model, example, pairs=pairs)
    homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(model, pairs={"1": "1.bn"})
    model(torch.zeros(3, 4))
    homeostasis.step()
    assert (model[1].bn.bias > 0).all()


@pytest.mark.parametrize("build", [NormPerStep, BatchNormThroughTime])
def test_norms_of_a_neuron_come_in_the_order_of_the_steps(build):
    cells = [each for each in find_cells(build(), steps()) if each.neuron in ("lif", "lif1")]
    assert [int(each.norm[-1]) for each in cells] == list(range(STEPS))


def test_cells_come_in_the_order_of_the_data():
    class Backwards(Reordered):
        def step(self, x):
            return self.lif(self.out(self.lif2(self.fc(x))))

    assert [each.neuron for each in find_cells(Backwards(), steps())] == ["lif2", "lif"]
