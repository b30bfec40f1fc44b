"""An error of `attach` says the true reason, and its remedy works."""

import re

import pytest
import snntorch as snn
import torch
from models import Loop, leaky
from models.registry import steps
from torch import nn
from torch.distributed import destroy_process_group, init_process_group

from snn_homeostasis import (
    ArgumentError,
    HomeostasisError,
    HomeostasisWarning,
    LinearHomeostasis,
    UnpairedNeuronError,
    WaitingGraphError,
    find_cells,
)

PARAMS = ("bias", "weight")


def reason(model, example=None, **choice):
    """The lines of the error about neurons."""
    with pytest.raises(UnpairedNeuronError) as error:
        find_cells(model, example, **choice)
    return "\n".join(line for line in str(error.value).splitlines() if line.startswith("  "))


# ---- no batch


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 5), (4,)),
        (nn.Conv1d(1, 5, 3), (1, 8)),
        (nn.Conv2d(1, 5, 3), (1, 8, 8)),
        (nn.Conv3d(1, 5, 3), (1, 4, 4, 4)),
        (nn.ConvTranspose2d(1, 5, 3), (1, 4, 4)),
    ],
)
def test_an_example_without_a_batch_is_the_reason(layer, shape):
    model = nn.Sequential(layer, leaky())
    assert "without a batch dimension (give the example one)" in reason(model, torch.rand(shape))
    assert len(find_cells(model, torch.rand(1, *shape))) == 1


class OwnRecurrence(Loop):
    """Starts from spikes without a batch dimension."""

    def __init__(self, layer, recurrent, start):
        super().__init__()
        self.fc, self.rec, self.lif, self.zeros = layer, recurrent, leaky(), start

    def start(self, x):
        self.spikes = torch.zeros(self.zeros)

    def step(self, x):
        self.spikes = self.lif(self.fc(x) + self.rec(self.spikes))
        return self.spikes


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (OwnRecurrence(nn.Linear(6, 8), nn.Linear(8, 8), (8,)), (4, 5, 6)),
        (OwnRecurrence(nn.Linear(6, 8), nn.Linear(8, 8), (1, 8)), (4, 5, 6)),
        (OwnRecurrence(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, padding=1), (6, 6, 6)), (4, 5, 1, 8, 8)),
    ],
)
def test_a_state_may_start_without_a_batch(model, shape):
    assert [each.layer for each in find_cells(model, torch.rand(shape))] == ["fc", "rec"]


# ---- what reaches a neuron


def test_input_and_spikes_are_named_where_no_layer_is():
    x = torch.rand(3, 4)
    said = reason(nn.Sequential(leaky(), nn.Linear(4, 4), leaky(), leaky(), nn.ReLU(), leaky()), x)
    assert "`0` (Leaky): no layer reaches it, only the input of the model" in said
    assert "`3` (Leaky): no layer reaches it, only the spikes of `2`" in said
    assert "`5` (Leaky): no layer reaches it, only the spikes of `3`" in said
    model = nn.Sequential(leaky(), nn.Linear(4, 4), leaky())
    assert [each.name for each in find_cells(model, x, exclude=["0"])] == ["2"]


@pytest.mark.parametrize("module", [nn.Softmax(1), nn.LogSoftmax(1), nn.RMSNorm(5)])
def test_modules_that_mix_channels_are_named(module):
    model = nn.Sequential(nn.Linear(4, 5), module, leaky())
    assert "reaches it through `1` with its channels reordered or mixed" in reason(model, torch.rand(3, 4))


class InTurn(nn.Module):
    """Another layer at each step."""

    def __init__(self, count, how):
        super().__init__()
        self.fcs, self.lif, self.how = nn.ModuleList(nn.Linear(6, 4) for _ in range(count)), leaky(), how

    def forward(self, x):
        currents = self.how([fc(x) for fc in self.fcs])
        return sum(self.lif(current) for current in currents)


class InTurnWithAMembrane(InTurn):
    """Another layer at each step, for one membrane or for one each."""

    def __init__(self, count, is_shared):
        super().__init__(count, list)
        self.lif, self.is_shared = snn.Leaky(beta=0.9), is_shared

    def forward(self, x):
        membrane, total = self.lif.init_leaky(), 0
        for fc in self.fcs:
            spikes, new = self.lif(fc(x), membrane)
            membrane, total = new if self.is_shared else self.lif.init_leaky(), total + spikes
        return total


def written(currents):
    memory = torch.zeros(len(currents), *currents[0].shape)
    for index, current in enumerate(currents):
        memory[index] = current
    return memory


@pytest.mark.parametrize("how", [torch.stack, written, list], ids=["stacked", "written", "one by one"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_all_layers_of_all_steps_are_found(how, count):
    cells = find_cells(InTurn(count, how), torch.rand(3, 6))
    assert [each.layer for each in cells] == [f"fcs.{index}" for index in range(count)]


def test_one_membrane_is_one_population():
    cells = find_cells(InTurnWithAMembrane(5, is_shared=True), torch.rand(3, 6))
    assert [each.layer for each in cells] == [f"fcs.{index}" for index in range(5)]
    said = reason(InTurnWithAMembrane(2, is_shared=False), torch.rand(3, 6))
    assert "different layers drive this one object in different calls: `fcs.0` or `fcs.1`" in said


# ---- parameters that are not there


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(5, affine=False), nn.GroupNorm(1, 5, affine=False), nn.LayerNorm(5, bias=False)]
)
def test_a_norm_without_a_bias_can_be_given_one(norm):
    model = nn.Sequential(nn.Linear(4, 5), norm, leaky())
    with pytest.raises(ArgumentError, match=r"Give one to `1` before you attach.*torch\.zeros\(5\)"):
        LinearHomeostasis(0.1, 0.1, "bias").attach(model)
    with pytest.warns(HomeostasisWarning, match=r"param='bias', after `norm\.bias = nn\.Parameter"):
        LinearHomeostasis(0.1, 0.1, "weight").attach(model)
    norm.bias = nn.Parameter(torch.zeros(5))
    homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(model, torch.rand(3, 4))
    with torch.no_grad():
        model(torch.rand(3, 4))
    homeostasis.step()
    assert (norm.bias != 0).all()


def test_batch_norm_through_time_can_be_given_biases():
    class Model(Loop):
        def __init__(self):
            super().__init__()
            self.fc, self.bn, self.lif = nn.Linear(6, 5), snn.BatchNormTT1d(5, 4), leaky()

        def forward(self, x):
            return sum(self.lif(bn(self.fc(step))) for bn, step in zip(self.bn, x, strict=True))

    model = Model()
    with pytest.raises(ArgumentError, match=re.escape("Give one to `bn.0`, `bn.1`, `bn.2`, `bn.3`")):
        LinearHomeostasis(0.1, 0.1, "bias").attach(model, steps())
    for norm in model.bn:
        norm.bias = nn.Parameter(torch.zeros(5))
    assert len(LinearHomeostasis(0.1, 0.1, "bias").attach(model, steps()).cells) == 4


@pytest.mark.parametrize("norm", [nn.LayerNorm(5), nn.LayerNorm((5, 6))])
def test_the_bias_of_a_layer_norm_brings_the_target(norm):
    front = nn.Linear(4, 5) if norm.normalized_shape == (5,) else nn.Conv1d(1, 5, 3)
    model = nn.Sequential(front, norm, leaky())
    shape = (16, 4) if norm.normalized_shape == (5,) else (16, 1, 8)
    homeostasis = LinearHomeostasis(0.02, 0.2, "bias").attach(model, torch.rand(shape))
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(200):
            homeostasis.clear()
            model[2].reset_mem()
            for _ in range(20):
                model(torch.rand(shape))
            homeostasis.step()
    assert homeostasis.rates()["2"].mean().item() == pytest.approx(0.2, rel=0.1)


# ---- where the model is


@pytest.mark.parametrize("example", [None, torch.rand(3, 4), torch.rand(3, 4, device="meta")])
def test_tensors_on_meta_are_the_reason(example):
    model = nn.Sequential(nn.Linear(4, 5), leaky()).to("meta")
    with pytest.raises(HomeostasisError, match=r"(?is)`0.*no values.*call `model.to_empty\("):
        LinearHomeostasis(0.1, 0.1).attach(model, example)
    model = model.to_empty(device="cpu")
    model.load_state_dict(nn.Sequential(nn.Linear(4, 5), leaky()).state_dict())
    assert len(find_cells(model, torch.rand(3, 4))) == 1


class WithHead(nn.Module):
    """One regulated layer, and a head on the meta device that the model may use."""

    def __init__(self, uses_head: bool) -> None:
        super().__init__()
        self.fc, self.lif, self.head = nn.Linear(4, 5), leaky(), nn.Linear(5, 2, device="meta")
        self.uses_head = uses_head

    def forward(self, x):
        spikes = self.lif(self.fc(x))
        return self.head(spikes) if self.uses_head else spikes


def test_tensors_on_meta_elsewhere_are_no_reason():
    chain = nn.Sequential(nn.Linear(4, 5), leaky(), nn.Linear(5, 2, device="meta"), leaky())
    assert [each.name for each in find_cells(WithHead(False), torch.rand(3, 4))] == ["lif"]
    assert [each.name for each in find_cells(WithHead(True), pairs={"lif": "fc"})] == ["lif"]
    assert list(LinearHomeostasis(0.1, 0.1).attach(chain, include="0").cells) == ["1"]
    assert "`head` (Linear): its tensors have no values" in reason(WithHead(True), torch.rand(3, 4))


@pytest.mark.filterwarnings("ignore:DTensor random operators:UserWarning")  # torch 2.6, on a CPU
def test_a_layer_that_is_split_over_processes_is_the_reason():
    tensor = pytest.importorskip("torch.distributed.tensor")
    parallel = pytest.importorskip("torch.distributed.tensor.parallel")
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    init_process_group("fake", rank=0, world_size=2, store=fake.FakeStore())
    try:
        mesh = tensor.device_mesh.init_device_mesh("cpu", (2,)) if hasattr(tensor, "device_mesh") else None
        for plan in (parallel.ColwiseParallel(), parallel.ColwiseParallel(output_layouts=tensor.Replicate())):
            model = nn.Sequential(nn.Linear(4, 6), leaky())
            parallel.parallelize_module(model, mesh, {"0": plan})
            if plan.output_layouts != (tensor.Replicate(),):
                assert "with the channels of this process alone (gather" in reason(model, torch.rand(3, 4))
            else:
                assert len(find_cells(model, torch.rand(3, 4))) == 1
    finally:
        destroy_process_group()


def test_a_kept_graph_is_the_reason():
    model = nn.Sequential(nn.Linear(4, 5), leaky(), nn.Linear(5, 5), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.1).attach(model)
    loss = model(torch.rand(3, 4)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(WaitingGraphError, match="the last time without `retain_graph=True`"):
        homeostasis.step()
    loss.backward()
    homeostasis.step()


# ---- names


def test_compiled_models_have_plain_names():
    def build():
        return nn.Sequential(nn.Linear(4, 5), nn.Sequential(leaky(), nn.Linear(5, 5)), leaky())

    plain, inner = build(), build()
    inner[1] = torch.compile(inner[1], backend="eager")
    models = [plain, inner, torch.compile(build(), backend="eager"), nn.DataParallel(build())]
    for model in models:
        for example in (None, torch.rand(3, 4)):
            homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(model, example)
            assert list(homeostasis.cells) == ["1.0", "2"]
            homeostasis.remove()
        assert [each.name for each in find_cells(model, torch.rand(3, 4), include="1.0")] == ["1.0"]
        assert [each.name for each in find_cells(model, torch.rand(3, 4), pairs={"2": "1.1"})][-1] == "2"


def test_states_of_compiled_and_plain_models_load_into_each_other():
    def build():
        return nn.Sequential(nn.Linear(4, 5), leaky())

    plain, compiled = build(), torch.compile(build(), backend="eager")
    first = LinearHomeostasis(0.1, 0.1, "bias").attach(plain)
    second = LinearHomeostasis(0.1, 0.1, "bias").attach(compiled, torch.rand(3, 4))
    plain(torch.ones(3, 4))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.rates()["1"], first.rates()["1"])
    first.load_state_dict(second.state_dict())


# ---- choices


def test_modules_may_be_named_in_place_of_paths():
    model = nn.Sequential(nn.Linear(4, 5), leaky(), nn.Sequential(nn.Linear(5, 5), leaky()))
    for choice in (model[0], [model[0]], model[1], ["0", model[0]]):
        assert [each.name for each in find_cells(model, include=choice)] == ["1"]
    assert [each.name for each in find_cells(model, exclude=model[2])] == ["1"]
    with pytest.raises(ArgumentError, match="`include` should name paths or types of modules of the model"):
        find_cells(model, include=[nn.Linear(4, 5)])


NO_CHOICES = [3, 0.5, True, torch.ones(2), b"0", [3], [None], [["0"]], [{}]]


@pytest.mark.parametrize("name", ["include", "exclude"])
@pytest.mark.parametrize("choice", NO_CHOICES, ids=repr)
def test_a_choice_that_names_nothing_is_refused_by_name(name, choice):
    model = nn.Sequential(nn.Linear(4, 5), leaky())
    with pytest.raises(ArgumentError, match=f"`{name}` should be a path or a module"):
        LinearHomeostasis(0.1, 0.1).attach(model, **{name: choice})


NO_PAIRS = [3, "1", ["1", "0"], {"1": 3}, {"1": None}, {"1": [3]}, {"1": [["0"]]}, {3: "0"}, {None: "0"}]


@pytest.mark.parametrize("pairs", NO_PAIRS, ids=repr)
@pytest.mark.parametrize("example", [None, torch.ones(2, 4)], ids=["without a run", "with a run"])
def test_pairs_that_name_nothing_are_refused_by_name(pairs, example):
    model = nn.Sequential(nn.Linear(4, 5), leaky())
    with pytest.raises((ArgumentError, UnpairedNeuronError), match=r"`pairs` should be a|has this path"):
        LinearHomeostasis(0.1, 0.1).attach(model, example, pairs=pairs)


def test_a_frozen_layer_may_be_named_by_any_of_its_paths():
    model = nn.Sequential(nn.Linear(4, 5).requires_grad_(False), leaky())
    model.again = model[1]
    for neuron in ("1", "again", model[1]):
        assert list(LinearHomeostasis(0.1, 0.1).attach(model, pairs={neuron: "0"}).cells) == ["1"]
