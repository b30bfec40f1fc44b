"""Targets: bands, Hz, dicts, drawn ones and populations; and settings that change."""

import math

import numpy as np
import pytest
import snntorch as snn
import torch
from cases import CommandedCell
from nets import leaky, snapshot, spikes, unchanged
from snntorch import utils
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    Band,
    ClampBounds,
    FallingPlasticity,
    Homeostasis,
    HomeostasisWarning,
    LinearHomeostasis,
    Settings,
)


def one_cell(size=1, *, sign=1, **settings):
    commanded = CommandedCell(size, sign=sign)
    homeostasis = LinearHomeostasis(**{"plasticity": 0.5, "param": "bias"} | settings)
    homeostasis.register_cell("a", commanded.cell)
    return commanded, homeostasis


# --- bands -----------------------------------------------------------------------------------

BANDS = {"both": (0.2, 0.6), "floor": (0.2, None), "ceiling": (None, 0.6)}


def term_of_band(rate, low, high):
    """The plain rule toward the nearer edge; nothing inside."""
    if low is not None and rate < low:
        return (low - rate) / low
    if high is not None and rate > high:
        return (high - rate) / high
    return 0.0


@pytest.mark.parametrize(
    ("low", "high"),
    [(None, None), (0.0, 0.5), (0.5, 0.5), (0.6, 0.2), (math.nan, 0.5), (0.1, math.inf), ("1", 2)],
)
def test_a_band_that_cannot_work_is_refused(low, high):
    with pytest.raises(ArgumentError, match=r"`(low|high)"):
        Band(low, high)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bounds", [None, ClampBounds(-9.0, 9.0)], ids=["free", "bounds"])
@pytest.mark.parametrize(
    "fires", [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (1, 1, 0, 0, 0), (1, 1, 1, 0, 0), (1,) * 5]
)
@pytest.mark.parametrize("band", BANDS)
def test_a_band_is_the_plain_rule_toward_its_nearer_edge(band, fires, bounds, sign):
    commanded, homeostasis = one_cell(sign=sign, target=Band(*BANDS[band]), bounds=bounds)
    commanded.fire(*fires)
    homeostasis.step()
    expected = 0.5 * term_of_band(np.mean(fires), *BANDS[band])
    assert commanded.bias == pytest.approx([sign * expected], abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("plasticity", [0.5, FallingPlasticity()], ids=["number", "falling"])
@pytest.mark.parametrize("param", ["weight", "bias"])
def test_a_band_never_moves_a_cell_inside_it(param, plasticity):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), leaky(), nn.Flatten(), nn.Linear(64, 8), leaky())
    homeostasis = LinearHomeostasis(plasticity, Band(1e-9, 1.5), param).attach(net)
    net[0].bias.fill_(2.0)
    net[3].bias.fill_(2.0)
    before = snapshot(net)
    for _ in range(3):
        utils.reset(net)
        for _ in range(8):
            net(spikes(5, 1, 6, 6).to(net[0].weight.dtype))
        assert all((rate > 0).all() for rate in homeostasis.rates().values())
        homeostasis.step()
    assert unchanged(net, before)


def test_a_band_looks_at_the_mean_of_positions_and_samples():
    commanded, homeostasis = one_cell(target=Band(0.4, 0.6))
    commanded.neuron(torch.tensor([[[0.0], [1.0]], [[1.0], [0.0]]]))
    homeostasis.step()
    assert commanded.bias == [0.0]


@pytest.mark.parametrize("limit", [0.5, math.inf])
def test_a_limit_holds_outside_a_band(limit):
    commanded, homeostasis = one_cell(plasticity=FallingPlasticity(0.5, limit=limit), target=Band(0.1, 0.25))
    commanded.fire(1)
    homeostasis.step()
    assert commanded.bias == pytest.approx([-0.5 * min(limit, 3.0)])


class Sign(Homeostasis):
    def drive(self, rate, target):
        return torch.sign(torch.as_tensor(target - rate))


@pytest.mark.parametrize(("fires", "moved"), [((0, 0), 0.5), ((1, 0), 0.0), ((1, 1), -0.5)])
def test_every_rule_takes_a_band(fires, moved):
    commanded = CommandedCell()
    homeostasis = Sign(Settings(0.5, Band(0.4, 0.6), "bias"))
    homeostasis.register_cell("a", commanded.cell)
    commanded.fire(*fires)
    homeostasis.step()
    assert commanded.bias == [moved]


def test_a_sum_over_the_batch_counts_each_sample_of_a_band():
    commanded, homeostasis = one_cell(target=Band(0.5, None), batch_reduction=torch.sum)
    commanded.fire(0, 0, 0)
    homeostasis.step()
    assert commanded.bias == [3 * 0.5]


def test_a_band_with_another_reduction_is_refused():
    commanded, homeostasis = one_cell(target=Band(0.5, None), batch_reduction=torch.amax)
    commanded.fire(0)
    with pytest.raises(ArgumentError, match="`batch_reduction` should be the mean or the sum with a Band"):
        homeostasis.step()


def test_a_band_of_a_call_ends_with_the_call():
    commanded, homeostasis = one_cell(target=0.5)
    commanded.fire(1, 0)
    homeostasis.step(Band(0.8, None))
    first = commanded.bias
    homeostasis.step()
    assert first == commanded.bias == pytest.approx([0.5 * 0.3 / 0.8])


# --- Hz --------------------------------------------------------------------------------------

TARGETS = {
    "number": (0.25, 250.0),
    "tensor": (torch.tensor([0.25, 0.5]), torch.tensor([250.0, 500.0])),
    "band": (Band(0.6, 0.8), Band(600.0, 800.0)),
}


@pytest.mark.parametrize("call", [False, True], ids=["cell", "call"])
@pytest.mark.parametrize("kind", TARGETS)
def test_a_target_in_hz_is_the_same_rate_per_step(kind, call):
    steps, hertz = TARGETS[kind]
    biases = []
    for target, dt in ((steps, None), (hertz, 0.001)):
        commanded, homeostasis = one_cell(2, target=None if call else target, dt=dt)
        commanded.fire(1, 0)
        homeostasis.step(target if call else None)
        biases.append(commanded.bias)
    assert biases[0] == pytest.approx(biases[1])
    assert any(biases[0])


def test_rates_and_reports_are_in_hz():
    commanded, homeostasis = one_cell(target=100.0, dt=0.002)
    commanded.fire(1, 0)
    assert homeostasis.rates()["a"].tolist() == pytest.approx([250.0])
    assert homeostasis.metrics()["a/rate"] == pytest.approx(250.0)
    assert homeostasis.metrics()["a/error"] == pytest.approx(1.5)
    assert "250" in str(homeostasis.summary())
    commanded.fire(1, 1)
    homeostasis.step()
    commanded.fire(1, 1)
    assert homeostasis.metrics()["a/saturated"] == 1.0


def test_a_rate_above_one_spike_per_step_warns_in_either_unit():
    for target, dt in ((1.5, None), (600.0, 0.002), (Band(600.0, None), 0.002)):
        with pytest.warns(HomeostasisWarning, match="above 1 spike per step"):
            one_cell(target=target, dt=dt)
    one_cell(target=400.0, dt=0.002)


@pytest.mark.parametrize("dt", [0, -0.1, math.nan, math.inf, "1ms", True])
def test_a_duration_that_cannot_be_is_refused(dt):
    _, homeostasis = one_cell(target=0.5)
    for give in (
        lambda: LinearHomeostasis(target=0.1, dt=dt),
        lambda: homeostasis.set(dt=dt),
        lambda: setattr(homeostasis.units["a"].state, "dt", dt),
    ):
        with pytest.raises(ArgumentError, match="`dt` should be a finite number > 0"):
            give()


# --- dicts -----------------------------------------------------------------------------------


def conv_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), leaky(), nn.Flatten(), nn.Linear(64, 8), leaky(), nn.Linear(8, 3), leaky()
    )


def targets_of(homeostasis):
    return {name: unit.state.target for name, unit in homeostasis.units.items()}


def test_a_dict_names_cells_and_types_of_layers():
    homeostasis = LinearHomeostasis(param="bias").attach(
        conv_net(), target={nn.Conv2d: 0.05, nn.Linear: 0.1, "6": Band(0.1, 0.3)}
    )
    assert targets_of(homeostasis) == {"1": 0.05, "4": 0.1, "6": Band(0.1, 0.3)}


def test_the_nearer_type_goes_first():
    homeostasis = LinearHomeostasis().attach(conv_net(), target={nn.Module: 0.3, nn.Linear: 0.1})
    assert targets_of(homeostasis) == {"1": 0.3, "4": 0.1, "6": 0.1}


def test_other_cells_take_the_target_of_the_constructor():
    homeostasis = LinearHomeostasis(target=0.2).attach(conv_net(), target={"4": 0.1})
    assert targets_of(homeostasis) == {"1": 0.2, "4": 0.1, "6": 0.2}


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ({"5": 0.1, nn.Module: 0.2}, "'5'"),
        ({nn.Conv1d: 0.1, nn.Module: 0.2}, "Conv1d"),
        ({"1": 0.1}, "none for '4', '6'"),
        ({"1": 0.0, nn.Linear: 0.1}, "0.0"),
        ({}, "none for"),
    ],
    ids=["name", "type", "missing", "value", "empty"],
)
def test_a_dict_that_cannot_be_meant_is_refused(target, found):
    homeostasis = LinearHomeostasis()
    with pytest.raises(ArgumentError, match=found):
        homeostasis.attach(conv_net(), target=target)
    assert not homeostasis.cells


# --- drawn targets ---------------------------------------------------------------------------


def test_a_function_draws_one_target_for_each_neuron_once():
    shapes = []

    def draw(shape):
        shapes.append(tuple(shape))
        return torch.linspace(0.2, 0.8, shape.numel()).reshape(shape)

    commanded, homeostasis = one_cell(4, target=draw)
    for _ in range(3):
        commanded.fire(1)
        homeostasis.step()
    assert shapes == [(4,)]
    targets = torch.linspace(0.2, 0.8, 4)
    assert torch.equal(homeostasis.units["a"].state.target, targets)
    assert commanded.bias == pytest.approx((3 * 0.5 * (targets - 1) / targets).tolist())


def test_a_drawn_target_is_saved():
    commanded, homeostasis = one_cell(4, target=lambda shape: torch.rand(shape) + 0.1)
    commanded.fire(1)
    homeostasis.step()
    _, resumed = one_cell(4, target=lambda shape: torch.rand(shape) + 0.1)
    resumed.load_state_dict(homeostasis.state_dict(), strict=True)
    assert torch.equal(resumed.units["a"].state.target, homeostasis.units["a"].state.target)


@pytest.mark.parametrize(
    "draw", [lambda shape: 0.1, lambda shape: torch.rand(3), lambda shape: -torch.rand(shape)], ids=range(3)
)
def test_a_function_that_draws_no_target_is_refused(draw):
    commanded, homeostasis = one_cell(4, target=draw)
    commanded.fire(1)
    with pytest.raises(ArgumentError, match="`target` should"):
        homeostasis.step()
    assert commanded.bias == [0.0] * 4


# --- populations -----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("target", [0.3, Band(0.2, 0.3), torch.tensor([0.1, 0.2, 0.3, 0.6])], ids=str)
@pytest.mark.parametrize("bounds", [None, ClampBounds(-9.0, 9.0)], ids=["free", "bounds"])
def test_a_population_holds_its_mean_rate(bounds, target):
    commanded, homeostasis = one_cell(4, target=target, population=True, bounds=bounds)
    commanded.neuron(torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
    homeostasis.step()
    edge = target.mean().item() if isinstance(target, torch.Tensor) else 0.3
    assert commanded.bias == pytest.approx([0.5 * (edge - 3 / 8) / edge] * 4)
    assert homeostasis.rates()["a"].tolist() == [1.0, 0.5, 0.0, 0.0]


@torch.no_grad()
def test_a_population_of_a_convolution_is_all_its_channels():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), leaky())
    homeostasis = LinearHomeostasis(0.5, 0.1, population=True).attach(net)
    before = net[0].weight.clone()
    for _ in range(4):
        net(9 * spikes(3, 1, 6, 6).to(net[0].weight.dtype))
    mean = homeostasis.rates()["1"].double().mean()
    homeostasis.step()
    torch.testing.assert_close(
        (net[0].weight - before).double(), ((0.1 - mean) / 0.1 * 0.5).expand_as(before), rtol=0, atol=1e-5
    )


# --- set -------------------------------------------------------------------------------------


def two_cells(**settings):
    net = nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 3), leaky())
    return LinearHomeostasis(**{"plasticity": 0.1, "target": 0.2} | settings).attach(net)


def test_set_changes_the_named_cells():
    homeostasis = two_cells()
    homeostasis.set(plasticity=FallingPlasticity(0.5), target=Band(0.1, 0.3), cells=["3"])
    first, second = (unit.state for unit in homeostasis.units.values())
    assert (first.plasticity, first.target) == (0.1, 0.2)
    assert (second.plasticity, second.target) == (FallingPlasticity(0.5), Band(0.1, 0.3))


def test_set_without_cells_holds_for_later_ones():
    homeostasis = two_cells()
    homeostasis.set(plasticity=0.7, param="BIAS", batch_reduction=torch.sum, dt=0.5, population=True)
    later = homeostasis.register_cell("later", CommandedCell().cell)
    for unit in homeostasis.units.values():
        state = unit.state
        assert (state.plasticity, state.param, state.batch_reduction) == (0.7, "bias", torch.sum)
        assert (state.dt, state.population, later.state.target) == (0.5, True, 0.2)


def test_set_takes_a_dict_of_targets():
    homeostasis = two_cells()
    homeostasis.set(target={nn.Linear: 0.4, "3": 0.3})
    assert targets_of(homeostasis) == {"1": 0.4, "3": 0.3}


@pytest.mark.parametrize(
    "settings",
    [
        {"plasticity": 0.0},
        {"target": 0.0},
        {"target": {"7": 0.1}},
        {"param": "delay"},
        {"rate": snn.Leaky},
        {"bounds": ClampBounds(0.0, 1.0)},
        {"speed": 1.0},
        {"cells": ["7"]},
    ],
    ids=str,
)
def test_set_changes_all_or_nothing(settings):
    homeostasis = two_cells()
    before = {key: value.clone() for key, value in homeostasis.state_dict().items()}
    with pytest.raises(ArgumentError):
        homeostasis.set(**{"plasticity": 0.5} | settings)
    assert all(torch.equal(value, before[key]) for key, value in homeostasis.state_dict().items())
    assert homeostasis.defaults.plasticity == 0.1


SAVED = {"target": Band(None, 0.3), "dt": 0.001, "population": True}


@pytest.mark.parametrize("name", SAVED)
def test_what_was_set_is_resumed(name):
    homeostasis, resumed = two_cells(), two_cells(target=0.4)
    homeostasis.set(**{name: SAVED[name]})
    resumed.load_state_dict(homeostasis.state_dict(), strict=True)
    for unit in resumed.units.values():
        assert getattr(unit.state, name) == SAVED[name]
