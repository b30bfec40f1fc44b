"""A kept kernel is never stale, by whatever route a parameter changes and in every mode."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import snntorch as snn
import torch
from operations import Operations
from torch import nn
from torch.nn.utils import parametrizations, prune

from snn_homeostasis import Cell, DelayedLinear

from test_delays import LAYERS, LONGEST, inputs, looped, pairwise  # isort: skip


def by_optimizer(layer, changed):
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for name, parameter in layer.named_parameters():
        parameter.grad = parameter.detach() - changed[name]
    optimizer.step()


def in_place(layer, changed):
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(changed[name])


def by_state_dict(layer, changed):
    layer.load_state_dict(changed)


def by_assigned_state_dict(layer, changed):
    layer.load_state_dict(changed, assign=True)


def by_new_parameters(layer, changed):
    layer.weight, layer.delay = nn.Parameter(changed["weight"]), nn.Parameter(changed["delay"])
    layer.bias = nn.Parameter(changed["bias"])


def in_place_on_data(layer, changed):
    for name, parameter in layer.named_parameters():
        parameter.data.copy_(changed[name])


def by_new_data(layer, changed):
    for name, parameter in layer.named_parameters():
        parameter.data = changed[name].clone()


def by_slots(layer, changed):
    updater = Cell(layer, snn.Leaky(beta=0.9)).updater
    for name, parameter in layer.named_parameters():
        delta = changed[name] - parameter
        setattr(updater, name, (delta.clamp_min(0), delta.clamp_max(0)))
    updater()


ROUTES = {
    route.__name__: route
    for route in (
        by_optimizer,
        in_place,
        by_state_dict,
        by_assigned_state_dict,
        by_new_parameters,
        in_place_on_data,
        by_new_data,
        by_slots,
    )
}


@pytest.mark.parametrize(
    ("route", "names", "build", "grad"),
    pairwise(ROUTES, ["weight", "delay", "weight delay bias"], LAYERS, [True, False]),
)
def test_every_change_is_noticed(route, names, build, grad):
    layer = LAYERS[build]()
    x = inputs(layer)
    changed = {name: value.clone() for name, value in layer.state_dict().items()}
    for name in names.split():
        changed[name] = LONGEST - changed[name] if name == "delay" else changed[name] + 1
    with torch.set_grad_enabled(grad):
        for each in x[:5]:
            layer(each)
        ROUTES[route](layer, changed)
        torch.testing.assert_close(layer(x[5]), looped(layer, x)[5])
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(value, changed[name])


def kernels_built(layer, x):
    """How many kernels a layer builds for these steps; each one needs the lags, an `arange`."""
    with Operations() as operations:
        for each in x:
            layer(each)
    return operations.count("arange", layer.max_delay + 1)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_one_kernel_serves_all_steps_until_a_change(grad):
    layer = LAYERS["linear"]()
    x = inputs(layer)
    with torch.set_grad_enabled(grad):
        assert kernels_built(layer, x) == 1
        assert kernels_built(layer, x) == 0
        with torch.no_grad():
            layer.delay.mul_(0.5)
        assert kernels_built(layer, x) == 1


@pytest.mark.parametrize("forget", ["reset", "detach"])
def test_reset_and_detach_forget_the_kernel(forget):
    layer = LAYERS["linear"]()
    x = inputs(layer)
    kernels_built(layer, x)
    getattr(layer, forget)()
    assert kernels_built(layer, x) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_build_their_own_kernel(copied):
    layer = LAYERS["linear"]()
    x = inputs(layer)
    kernels_built(layer, x)
    assert kernels_built(copied(layer), x) == 1
    assert kernels_built(layer, x) == 0


@pytest.mark.parametrize("retain", [True, False])
def test_a_backward_forgets_the_kernel(retain):
    layer = LAYERS["linear"]()
    x = inputs(layer)
    for _ in range(2):
        layer.history = None
        layer.zero_grad()
        sum(layer(each).square().sum() for each in x).backward(retain_graph=retain)
        found = layer.delay.grad.clone()
        layer.zero_grad()
        layer.sequence(x).square().sum().backward()
        torch.testing.assert_close(found, layer.delay.grad)
    assert kernels_built(layer, x) == 1


def test_gradients_of_a_single_parameter_are_right():
    layer = LAYERS["linear"]()
    x = inputs(layer)
    for parameter in (layer.bias, layer.weight, layer.delay):
        both = torch.stack([layer(each) for each in x]), layer.sequence(x)
        found, expected = (torch.autograd.grad(each.square().sum(), parameter) for each in both)
        torch.testing.assert_close(found, expected)
        layer.history = None


@pytest.mark.parametrize("name", ["weight", "delay"])
def test_thawing_and_freezing_are_noticed(name):
    layer = LAYERS["linear"]().requires_grad_(False)
    x, parameter = inputs(layer)[0], getattr(layer, name)
    assert not layer(x).requires_grad
    parameter.requires_grad_(True)
    assert layer(x).requires_grad
    parameter.requires_grad_(False)
    assert not layer(x).requires_grad


@pytest.mark.parametrize("name", ["weight", "delay"])
def test_a_new_parameter_of_the_same_values_gets_the_gradients(name):
    layer = LAYERS["linear"]()
    x = inputs(layer)
    old, new = (nn.Parameter(getattr(layer, name).detach().clone()) for _ in range(2))
    for each in (old, new):
        setattr(layer, name, each)
        layer(x[0])
    layer(x[1]).square().sum().backward()
    assert new.grad is not None
    assert old.grad is None


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_each_mode_of_autograd_gets_its_own_kernel(quiet):
    layer = LAYERS["linear"]()
    x = inputs(layer)
    with quiet():
        layer(x[0])
    outputs = layer(x[1])
    torch.testing.assert_close(outputs, looped(layer, x)[1])
    outputs.square().sum().backward()
    assert layer.delay.grad is not None
    with quiet():
        assert not layer(x[2]).requires_grad


def test_a_layer_built_in_inference_mode_notices_changes():
    with torch.inference_mode():
        layer = LAYERS["linear"]()
        x = inputs(layer)
        layer(x[0])
        layer.delay.mul_(0.5)
        torch.testing.assert_close(layer(x[1]), looped(layer, x)[1])


def test_autocast_gets_its_own_kernel(device):
    layer = LAYERS["linear"]().float()
    x = inputs(layer).float()
    with torch.no_grad():
        for enabled in (True, False, True):
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                outputs = torch.stack([layer(each) for each in x[:2]])
            layer.history = None
            assert outputs.dtype == (torch.bfloat16 if enabled else torch.float32)
            exact = looped(layer, x[:2])
            torch.testing.assert_close(outputs.float(), exact, rtol=0, atol=0.1 if enabled else 1e-5)


def test_autocast_casts_a_kernel_once(device):
    layer = LAYERS["linear"]().float()
    size = layer.delay.numel() * (LONGEST + 1)
    with torch.autocast(device.type, torch.bfloat16), Operations() as operations:
        for each in inputs(layer).float():
            layer(each)
    assert operations.count("_to_copy", size) == 1


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, "prune"])
def test_computed_weights_are_never_kept(wrap):
    layer = LAYERS["linear"]()
    layer = prune.l1_unstructured(layer, "weight", amount=0.4) if wrap == "prune" else wrap(layer)
    x = inputs(layer)
    with torch.no_grad():
        layer(x[0])
        next(parameter for name, parameter in layer.named_parameters() if "orig" in name).mul_(2)
        torch.testing.assert_close(layer(x[1]), looped(layer, x)[1])


def test_a_graph_outlives_its_layer():
    layer = DelayedLinear(3, 5, LONGEST)
    outputs, delay = layer(torch.rand(2, 3)), layer.delay
    del layer
    outputs.sum().backward()
    assert delay.grad.any()


def test_a_layer_without_backward_can_be_freed():
    layer = DelayedLinear(3, 5, LONGEST)
    outputs, delay = layer(torch.rand(2, 3)), weakref.ref(layer.delay)
    del layer, outputs
    gc.collect()
    assert delay() is None
