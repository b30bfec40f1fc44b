"""Parameters as users keep them: their memory, class and attributes, and whether they can change."""

import re

import numpy as np
import pytest
import torch
from nets import leaky
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from snn_homeostasis import Cell, LinearHomeostasis, UnsupportedLayerError, WaitingGraphError, find_cells
from snn_homeostasis.updates import is_needed_by


def net():
    return nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 3), leaky())


# --- parameters in one memory ------------------------------------------------------------------


def from_a_vector(model):
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.parameters())


def from_the_end_of_a_vector(model):
    """The last parameter first."""
    parameters = list(model.parameters())[::-1]
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters).detach(), parameters)


def from_one_matrix(model):
    """Weight and bias of a layer are rows of one matrix."""
    for layer in (model[0], model[2]):
        joint = torch.cat([layer.weight.detach().T, layer.bias.detach()[None]])
        layer.weight.data, layer.bias.data = joint[:-1].T, joint[-1]


@pytest.mark.parametrize("flatten", [from_a_vector, from_the_end_of_a_vector, from_one_matrix])
def test_a_bias_in_one_memory_with_weights_is_not_waited_for(flatten):
    model = net()
    flatten(model)
    assert model[2].bias.untyped_storage().data_ptr() == model[2].weight.untyped_storage().data_ptr()
    biases, weights = (LinearHomeostasis(0.1, 0.2, param).attach(model) for param in ("bias", "weight"))
    loss = model(torch.rand(4, 6)).sum()
    before = model[2].bias.detach().clone()
    with pytest.raises(WaitingGraphError, match=r"cell '3'"):
        weights.step()
    biases.step()
    loss.backward()
    weights.step()
    assert not torch.equal(model[2].bias, before)


def test_a_second_storage_over_the_memory_of_a_weight_is_waited_for():
    model, array = net(), np.zeros((3, 8), dtype=np.float32)
    model[2].weight = nn.Parameter(torch.from_numpy(array))
    saved = torch.from_numpy(array)
    loss = model[3](nn.functional.linear(model[:2](torch.rand(4, 6)), saved)).sum()
    assert is_needed_by(model[2].weight, loss.grad_fn)
    assert not is_needed_by(model[2].bias, loss.grad_fn)


# --- the run on an example keeps what tensors carry ---------------------------------------------


class Scaled(nn.Parameter):
    """A user's class of parameters."""


class Marked(torch.Tensor):
    """A user's class of tensors."""


class Carrying(nn.Module):
    """Its forward needs the classes, attributes and gradients of its tensors, and changes them."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 8), leaky()
        self.fc.weight = Scaled(torch.rand(8, 6))
        self.fc.weight.gain, self.fc.weight.seen = 0.5, []
        self.fc.bias._forward_counter = 0
        self.fc.bias.owner = self.fc.bias
        self.fc.bias.grad = torch.ones(8)
        self.register_buffer("mask", torch.ones(6).as_subclass(Marked))
        self.mask.kind = "inputs"
        self.table = {"offset": torch.zeros(6)}
        self.table["offset"].unit = "mV"
        self.error = None

    def forward(self, x):
        weight, bias = self.fc.weight, self.fc.bias
        assert type(weight) is Scaled
        assert isinstance(self.mask, Marked)
        assert bias.owner is bias
        assert self.mask.kind == "inputs"
        assert self.table["offset"].unit == "mV"
        bias.grad.zero_()
        bias._forward_counter += 1
        weight.seen.append(x)
        self.mask.kind = self.table["offset"].unit = "changed"
        weight.late = "an attribute of the run alone"
        spikes = self.lif(self.fc(x * self.mask.as_subclass(torch.Tensor)) * weight.gain)
        if self.error is not None:
            raise self.error
        return spikes


@pytest.mark.parametrize("error", [None, KeyError("in the middle")], ids=str)
def test_the_run_keeps_classes_and_attributes_of_tensors(error):
    model = Carrying()
    model.error = error
    if error is None:
        assert [each.layer for each in find_cells(model, torch.rand(4, 6))] == ["fc"]
    else:
        with pytest.raises(KeyError, match="in the middle"):
            find_cells(model, torch.rand(4, 6))
    weight, bias = model.fc.weight, model.fc.bias
    assert vars(weight) == {"gain": 0.5, "seen": []}
    assert bias._forward_counter == 0
    assert bias.owner is bias
    assert bias.grad.eq(1).all()
    assert (model.mask.kind, model.table["offset"].unit) == ("inputs", "mV")


def test_parameters_of_one_object_are_one_object_in_the_run():
    model = Carrying()
    model.fc.weight.twin = model.fc.bias
    seen = []
    model.fc.register_forward_hook(lambda fc, *_: seen.append(fc.weight.twin is fc.bias))
    find_cells(model, torch.rand(4, 6))
    assert seen == [True]


# --- parameters that cannot change --------------------------------------------------------------


class Quantised(torch.Tensor):
    """A weight of eight bits that looks like one of floats, in the way of torchao."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    @classmethod
    def of(cls, value):
        scale = value.detach().abs().amax() / 127
        return cls((value.detach() / scale).round().to(torch.int8), scale)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        first = args[0]
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(func(first.codes), func(first.scale))
        if func is torch.ops.aten.slice.Tensor:
            return cls(func(first.codes, *args[1:]), first.scale)
        plain = [each.codes * each.scale if isinstance(each, cls) else each for each in args]
        return func(*plain, **(kwargs or {}))  # a change in place is lost


def parameter(value):
    return nn.Parameter(value, requires_grad=value.requires_grad)


@torch.inference_mode()
def made_in_inference_mode(weight):
    return nn.Parameter(weight.clone(), requires_grad=False)


def overlapping(weight):
    return torch.zeros(weight.numel()).as_strided(weight.shape, (1, 1))


UNCHANGEABLE = {
    "int8": (lambda weight: weight.to(torch.int8), "its type is torch.int8"),
    "uint8": (lambda weight: weight.to(torch.uint8), "its type is torch.uint8"),
    "bool": (lambda weight: weight > 0, "its type is torch.bool"),
    "complex": (lambda weight: weight.to(torch.complex64), "its type is torch.complex64"),
    "float8": (lambda weight: weight.to(torch.float8_e4m3fn), "does not take additions"),
    "meta": (lambda weight: weight.to("meta"), "on the meta device"),
    "sparse": (lambda weight: weight.to_sparse(), "is sparse"),
    "csr": (lambda weight: weight.to_sparse_csr(), "is sparse"),
    "expanded": (lambda weight: weight[:1].expand(weight.shape), "share one memory"),
    "overlapping": (overlapping, "share one memory"),
    "inference": (made_in_inference_mode, "inference mode"),
    "subclass": (Quantised.of, "does not take additions (Quantised"),
}

# a model with tensors that have no values is refused before its cells are looked for
FOUND = [kind for kind in UNCHANGEABLE if kind != "meta"]

every = pytest.mark.parametrize("kind", UNCHANGEABLE)


def with_unchangeable(kind):
    """A net of which the last two layers cannot change."""
    make, reason = UNCHANGEABLE[kind]
    model = nn.Sequential(*net(), nn.Linear(3, 5), leaky())
    for layer in (model[2], model[4]):
        layer.weight = parameter(make(layer.weight.detach()))
    return model, reason


@pytest.mark.filterwarnings("ignore:.*is in beta state:UserWarning")
@pytest.mark.parametrize("kind", FOUND)
@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
def test_unchangeable_parameters_are_refused_at_attach_all_at_once(kind, named):
    model, reason = with_unchangeable(kind)
    homeostasis = LinearHomeostasis(0.1, 0.2)
    pairs = {"1": "0", "3": "2", "5": "4"} if named else None
    with pytest.raises(UnsupportedLayerError, match=re.escape(reason)) as caught:
        homeostasis.attach(model, pairs=pairs)
    assert "`2.weight`" in str(caught.value)
    assert "`4.weight`" in str(caught.value)
    assert "`0.weight`" not in str(caught.value)
    assert not homeostasis.cells


@pytest.mark.filterwarnings("ignore:.*is in beta state:UserWarning")
@every
def test_unchangeable_parameters_are_refused_cell_by_cell(kind):
    model, reason = with_unchangeable(kind)
    homeostasis, cell = LinearHomeostasis(0.1, 0.2), Cell(*model[2:4])
    with pytest.raises(UnsupportedLayerError, match=re.escape(reason)):
        homeostasis.register_cell("cell", cell)
    with pytest.raises(UnsupportedLayerError, match=re.escape(reason)):
        cell.updater.weight = torch.ones(()), None
    assert not homeostasis.cells


@pytest.mark.filterwarnings("ignore:.*is in beta state:UserWarning")
@every
def test_a_parameter_that_becomes_unchangeable_moves_nothing(kind):
    model, (make, reason) = net(), UNCHANGEABLE[kind]
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(model)
    with torch.no_grad():
        model(torch.rand(4, 6))
    model[2].weight = parameter(make(model[2].weight.detach()))
    before = model[0].weight.detach().clone()
    for _ in range(2):
        with pytest.raises(UnsupportedLayerError, match=re.escape(reason)):
            homeostasis.step()
    assert torch.equal(model[0].weight, before)


CHANGEABLE = {
    "transposed": lambda weight: nn.Parameter(weight.T.contiguous().T),
    "a row in between": lambda weight: nn.Parameter(weight.repeat(2, 1)[::2]),
    "subclass": Scaled,
    "half": lambda weight: nn.Parameter(weight.half()),
    "empty": lambda weight: nn.Parameter(weight[:, :0]),
}


@pytest.mark.parametrize("kind", CHANGEABLE)
def test_unusual_parameters_that_can_change_are_taken(kind):
    layer, neuron = nn.Linear(8, 3), leaky()
    layer.weight = CHANGEABLE[kind](layer.weight.detach())
    homeostasis = LinearHomeostasis(0.5, 0.2)
    homeostasis.register_cell("cell", Cell(layer, neuron))
    before = layer.weight.detach().clone()
    neuron(torch.zeros(4, 3))
    homeostasis.step()
    torch.testing.assert_close(layer.weight.detach(), before + 0.5)


# --- only the regulated parameter has to be changeable ------------------------------------------


def legacy_weight_norm(layer):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer)


def frozen_int8(layer):
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    return layer


def replaced(make):
    def change(layer):
        layer.weight = parameter(make(layer.weight.detach()))
        return layer

    return change


WEIGHTS = {
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "legacy spectral_norm": nn.utils.spectral_norm,
    "legacy weight_norm": legacy_weight_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "frozen": lambda layer: layer.weight.requires_grad_(False),
    **{kind: replaced(UNCHANGEABLE[kind][0]) for kind in FOUND},
}


@pytest.mark.filterwarnings("ignore:.*is in beta state:UserWarning")
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_bias_is_regulated_whatever_its_weight(name):
    layer, neuron = nn.Linear(6, 6), leaky()
    WEIGHTS[name](layer)
    before = {key: value.detach().clone() for key, value in layer.state_dict().items()}
    for make in ("attach", "register"):
        homeostasis = LinearHomeostasis(0.25, 0.5, "bias")
        if make == "attach":
            homeostasis.attach(nn.Sequential(layer, neuron))
        else:
            homeostasis.register_cell("1", Cell(layer, neuron))
        neuron(torch.zeros(4, 6))
        homeostasis.step()
        homeostasis.remove()
    torch.testing.assert_close(layer.bias.detach(), before.pop("bias") + 0.5)
    for key, value in before.items():
        assert torch.equal(layer.state_dict()[key].to_dense(), value.to_dense())


# --- parametrizations and pruning that come and go ----------------------------------------------


def watched(param="weight", prepare=lambda layer: None):
    """A regulated layer with spikes observed, all of them silent."""
    layer, neuron = nn.Linear(6, 6), leaky()
    prepare(layer)
    homeostasis = LinearHomeostasis(0.25, 0.5, param).attach(nn.Sequential(layer, neuron))
    with torch.no_grad():
        neuron(torch.zeros(4, 6))
    return layer, homeostasis


def keep(layer):
    """Gives a layer another Parameter of the same values."""
    layer.weight = nn.Parameter(layer.weight.detach().clone())


COME = {
    "weight_norm": parametrizations.weight_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "a second pruning": lambda layer: [prune.random_unstructured(layer, "weight", 0.3) for _ in range(2)],
    "another Parameter": keep,
    "nothing": lambda layer: None,
}
GO = {
    "weight_norm": lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    "pruning": lambda layer: prune.remove(layer, "weight"),
    "a second pruning": lambda layer: prune.remove(layer, "weight"),
}


@pytest.mark.parametrize("name", COME)
def test_what_comes_after_attach_is_regulated(name):
    layer, homeostasis = watched()
    COME[name](layer)
    before = layer.weight.detach().clone()
    homeostasis.step()
    layer(torch.zeros(1, 6))  # a pruned layer computes its weight
    mask = getattr(layer, "weight_mask", torch.ones(6, 6))
    torch.testing.assert_close(layer.weight.detach(), before + 0.25 * mask)


@pytest.mark.filterwarnings("ignore:`step` should be called once")
@pytest.mark.parametrize("name", GO)
@pytest.mark.parametrize("stepped", [False, True], ids=["at once", "after a step"])
def test_what_goes_after_attach_leaves_a_regulated_parameter(name, stepped):
    layer, homeostasis = watched(prepare=COME[name])
    if stepped:
        homeostasis.step()
        layer(torch.zeros(1, 6))
    GO[name](layer)
    before = layer.weight.detach().clone()
    homeostasis.step()
    assert type(layer.weight) is nn.Parameter
    torch.testing.assert_close(layer.weight.detach(), before + 0.25)


LOSING = {
    "spectral_norm": (parametrizations.spectral_norm, r"does not keep a value .*_SpectralNorm"),
    "a second parametrization": (
        lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
        r"does not keep a value .*_WeightNorm, _SpectralNorm",
    ),
    "legacy spectral_norm": (nn.utils.spectral_norm, "recomputed at each forward"),
    "legacy weight_norm": (legacy_weight_norm, "recomputed at each forward"),
    "a tensor": (
        lambda layer: layer._parameters.pop("weight") is vars(layer).update(weight=torch.ones(6, 6)),
        "is no Parameter any more",
    ),
}


@pytest.mark.parametrize("name", LOSING)
def test_what_would_lose_the_changes_is_refused_at_the_next_step(name):
    layer, homeostasis = watched()
    add, words = LOSING[name]
    add(layer)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    for _ in range(2):
        with pytest.raises(UnsupportedLayerError, match=words):
            homeostasis.step()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_a_parametrization_that_loses_changes_may_go_before_the_step():
    layer, homeostasis = watched()
    parametrizations.spectral_norm(layer)
    with pytest.raises(UnsupportedLayerError):
        homeostasis.step()
    parametrize.remove_parametrizations(layer, "weight")
    before = layer.weight.detach().clone()
    homeostasis.step()
    torch.testing.assert_close(layer.weight.detach(), before + 0.25)


def test_a_bias_that_goes_is_refused_at_the_next_step():
    layer, homeostasis = watched("bias")
    layer.bias = None
    with pytest.raises(UnsupportedLayerError, match="is no Parameter any more"):
        homeostasis.step()


def test_another_param_that_cannot_change_is_refused_when_it_is_set():
    layer, homeostasis = watched("bias", parametrizations.spectral_norm)
    state = homeostasis.units["1"].state
    with pytest.raises(UnsupportedLayerError, match="does not keep a value"):
        state.param = "weight"
    assert state.param == "bias"
    parametrize.remove_parametrizations(layer, "weight")
    state.param = "weight"
    before = layer.weight.detach().clone()
    homeostasis.step()
    torch.testing.assert_close(layer.weight.detach(), before + 0.25)


def test_parameters_may_be_swapped_when_a_model_is_moved():
    layer, homeostasis = watched()
    weight = layer.weight
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    before = layer.weight.detach().clone()
    homeostasis.step()
    assert layer.weight is weight
    assert layer.weight.dtype is torch.float64
    torch.testing.assert_close(layer.weight.detach(), before + 0.25)


def test_the_run_keeps_weights_of_a_wrapping_class():
    model = net()
    model[2].weight = parameter(Quantised.of(model[2].weight))
    model[2].weight.note = "eight bits"
    seen = []

    def note(layer, *_):
        seen.append((type(layer.weight), layer.weight.note, layer.weight is weight, layer.weight.codes.dtype))

    weight, codes = model[2].weight, model[2].weight.codes.clone()
    model[2].register_forward_hook(note)
    homeostasis = LinearHomeostasis(0.25, 0.5, "bias").attach(model, torch.rand(4, 6))
    assert seen == [(Quantised, "eight bits", False, torch.int8)]
    assert list(homeostasis.cells) == ["1", "3"]
    assert model[2].weight is weight
    assert torch.equal(weight.codes, codes)
    model(torch.rand(4, 6))
    before = model[2].bias.detach().clone()
    homeostasis.step()
    assert not torch.equal(model[2].bias, before)
