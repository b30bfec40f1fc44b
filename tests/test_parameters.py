"""Parameters as users keep them: their memory, class and attributes, and whether they can change."""

import numpy as np
import pytest
import torch
from nets import leaky
from torch import nn

from snn_homeostasis import LinearHomeostasis, WaitingGraphError, find_cells
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
