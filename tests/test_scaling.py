"""Synaptic scaling: the multiplicative rule, which keeps signs and zeros."""

import math

import pytest
import snntorch as snn
import torch
from cases import CommandedCell
from nets import leaky
from torch import nn
from torch.nn.utils import parametrizations, prune

from snn_homeostasis import (
    ArgumentError,
    Band,
    Cell,
    ClampBounds,
    FallingPlasticity,
    LinearHomeostasis,
    SynapticScaling,
)

MOST = 0.9


def a_layer(inputs=5, size=3):
    """Weights of both signs, and zeros."""
    layer = nn.Linear(inputs, size)
    with torch.no_grad():
        layer.weight[:, 0] = 0.0
    neuron = snn.Leaky(beta=0.0, threshold=0.5, init_hidden=True, reset_mechanism="none")
    return layer, neuron


def scaled(weight, plasticity, rate, target):
    """w + λ |w| (r* - r) / r*, in plain loops; no weight loses more than nine tenths."""
    after = weight.double().clone()
    for row, r in enumerate(rate.double().tolist()):
        share = plasticity * (target - r) / target
        for column in range(weight.shape[1]):
            after[row, column] += max(-MOST, min(MOST, share)) * abs(after[row, column].item())
    return after


@pytest.mark.parametrize("way", ["step", "forward, update"])
@pytest.mark.parametrize("plasticity", [0.01, 0.2, 2.0])
@pytest.mark.parametrize("bounds", [None, ClampBounds(-9.0, 9.0)], ids=["free", "bounds"])
def test_every_weight_changes_by_its_size(bounds, plasticity, way):
    layer, neuron = a_layer()
    homeostasis = SynapticScaling(plasticity, 0.25, bounds=bounds)
    homeostasis.register_cell("a", Cell(layer, neuron))
    expected = layer.weight.detach().clone()
    for fired in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]):
        with torch.no_grad():
            neuron(torch.tensor([fired, [1.0, 0.0, 0.0]]))
        rate = homeostasis.rates()["a"]
        if way == "step":
            homeostasis.step()
        else:
            homeostasis()
            homeostasis.update()
        expected = scaled(expected, plasticity, rate, 0.25)
        torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=0, atol=1e-5)


def test_signs_and_zeros_stay_however_often_the_rule_runs():
    layer, neuron = a_layer()
    before = layer.weight.detach().sign()
    homeostasis = SynapticScaling(5.0, 0.05)
    homeostasis.register_cell("a", Cell(layer, neuron))
    for fired in (1.0, 0.0, 1.0, 1.0):
        with torch.no_grad():
            neuron(torch.full((2, 3), fired))
        for _ in range(3):
            homeostasis()
        homeostasis.update()
        assert torch.equal(layer.weight.detach().sign(), before)
        assert layer.weight.isfinite().all()


def test_the_bias_does_not_change():
    layer, neuron = a_layer()
    before = layer.bias.detach().clone()
    homeostasis = SynapticScaling(0.1, 0.2)
    homeostasis.register_cell("a", Cell(layer, neuron))
    with torch.no_grad():
        neuron(torch.zeros(2, 3))
    homeostasis.step()
    assert torch.equal(layer.bias, before)


@pytest.mark.parametrize("param", ["bias", "threshold"])
def test_only_weights_are_scaled(param):
    homeostasis = SynapticScaling(0.1, 0.2)
    homeostasis.register_cell("a", CommandedCell().cell)
    for give in (
        lambda: homeostasis.register_cell("b", CommandedCell().cell, param=param),
        lambda: homeostasis.attach(nn.Sequential(nn.Linear(3, 2), leaky()), param=param),
        lambda: homeostasis.set(param=param),
    ):
        with pytest.raises(ArgumentError, match="`param` should be 'weight' for SynapticScaling"):
            give()


def test_an_inhibiting_layer_is_scaled_the_other_way():
    commanded = CommandedCell(value=0.5, sign=-1)
    homeostasis = SynapticScaling(0.5, 0.5)
    homeostasis.register_cell("a", commanded.cell)
    commanded.fire(0)
    homeostasis.step()
    assert commanded.weight == [0.25]


def test_pruned_and_normed_weights_are_scaled():
    for layer in (
        prune.l1_unstructured(nn.Linear(5, 3), "weight", amount=0.4),
        parametrizations.weight_norm(nn.Linear(5, 3)),
    ):
        neuron = snn.Leaky(beta=0.0, threshold=0.5, init_hidden=True)
        homeostasis = SynapticScaling(0.5, 0.5)
        homeostasis.register_cell("a", Cell(layer, neuron))
        with torch.no_grad():
            layer(torch.zeros(2, 5))
            before = layer.weight.clone()
            neuron(torch.zeros(2, 3))
            homeostasis.step()
            layer(torch.zeros(2, 5))
        torch.testing.assert_close(layer.weight.detach(), before + 0.5 * before.abs())


def test_a_schedule_and_a_band_scale_alike():
    commanded = CommandedCell(value=1.0)
    homeostasis = SynapticScaling(FallingPlasticity(0.5, half=1), Band(0.5, None))
    homeostasis.register_cell("a", commanded.cell)
    for _ in range(2):
        commanded.fire(0)
        homeostasis.step()
    commanded.fire(1)
    homeostasis.step()
    assert commanded.weight == pytest.approx([1.5 * 1.25])


@pytest.mark.parametrize("give", ["constructor", "cell", "set"])
def test_the_default_share_does_not_depend_on_the_fan_in(give):
    commanded, plasticity = CommandedCell(value=1.0), FallingPlasticity(half=10)
    homeostasis = SynapticScaling(plasticity if give == "constructor" else 0.5, target=0.5)
    homeostasis.register_cell("a", commanded.cell, **{"plasticity": plasticity} if give == "cell" else {})
    if give == "set":
        homeostasis.set(plasticity=plasticity)
    commanded.fire(0)
    homeostasis.step()
    assert commanded.weight == pytest.approx([1.05])


def test_a_rule_that_scales_and_one_that_shifts_share_a_slot():
    commanded = CommandedCell(value=1.0)
    scaling, shifting = SynapticScaling(0.5, 0.5), LinearHomeostasis(0.25, 0.5)
    for homeostasis in (scaling, shifting):
        homeostasis.register_cell("a", commanded.cell)
    commanded.fire(0)
    scaling()
    shifting.step()
    assert commanded.weight == [1.0 + 0.5 + 0.25]


@torch.no_grad()
@pytest.mark.parametrize("start", [0.01, 0.25], ids=["silent", "busy"])
def test_carlsims_neuron_is_held_at_35_hz(start):
    """100 Poisson inputs of 0.2 to 20 Hz, steps of 1 ms, 35 ± 1.5 Hz, as in CARLsim's own test."""
    generator = torch.Generator().manual_seed(5)
    layer, neuron = nn.Linear(100, 1, bias=False), snn.Leaky(beta=math.exp(-1 / 20), init_hidden=True)
    nn.init.uniform_(layer.weight, 0, 2 * start, generator=generator)
    homeostasis = SynapticScaling(FallingPlasticity(0.1, half=40), 35.0, dt=0.001)
    homeostasis.register_cell("neuron", Cell(layer, neuron))
    rates = torch.linspace(0.2, 20.0, 100) / 1000
    judged = 0.0
    for second in range(40):
        spikes = (torch.rand(1000, 100, generator=generator) < rates).to(layer.weight.dtype)
        for part in spikes.split(100):
            for current in layer(part):
                judged += float(neuron(current[None])) * (second >= 20)
            homeostasis.step()
    assert judged / 20 == pytest.approx(35.0, abs=1.5)
