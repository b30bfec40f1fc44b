"""A λ that falls, by its formula; the limit of the term; and the defaults, which need no number."""

import math

import numpy as np
import pytest
import snntorch as snn
import torch
from cases import CommandedCell
from nets import leaky, spikes
from snntorch import utils
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    ClampBounds,
    CumulativeRate,
    FallingPlasticity,
    LinearHomeostasis,
    PowerBounds,
)

BAD = [0, 0.0, -1.0, math.nan, True, "3", [3]]


def falling(step: int, start: float, half: float) -> float:
    """λ by the formula."""
    return start / (1 + step / half)


def default_limit(step: int) -> float:
    """The limit of the term by its formula, with a half of 3."""
    return max(1.0, 10 / (1 + step / 3))


def one_cell(size=1, *, sign=1, **settings):
    commanded = CommandedCell(size, sign=sign)
    homeostasis = LinearHomeostasis(**{"target": 0.5, "param": "bias"} | settings)
    homeostasis.register_cell("a", commanded.cell)
    return commanded, homeostasis


# --- the schedule ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "values"), [("half", BAD), ("limit", BAD), ("start", [*BAD, math.inf])])
def test_a_schedule_that_cannot_work_is_refused(name, values):
    for value in values:
        with pytest.raises(ArgumentError, match=f"`{name}` should be a"):
            FallingPlasticity(**{name: value})


@pytest.mark.parametrize("param", ["weight", "bias"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("half", [1, 3, math.inf])
def test_each_step_is_smaller_by_the_formula(half, sign, param):
    plasticity = FallingPlasticity(0.25, half=half)
    commanded, homeostasis = one_cell(sign=sign, plasticity=plasticity, param=param)
    expected = 0.0
    for step in range(6):
        commanded.fire(0)
        homeostasis.step()
        expected += sign * falling(step, 0.25, half)
        assert getattr(commanded, param) == pytest.approx([expected], rel=1e-6)


def test_a_number_as_plasticity_neither_falls_nor_limits():
    commanded, homeostasis = one_cell(plasticity=0.5, target=0.1)
    for _ in range(3):
        commanded.fire(1)
        homeostasis.step()
    assert commanded.bias == pytest.approx([3 * 0.5 * -9.0])


@pytest.mark.parametrize("calls", [1, 3])
def test_a_step_is_an_update_however_often_the_rule_has_run(calls):
    commanded, homeostasis = one_cell(plasticity=FallingPlasticity(0.25, half=1))
    for step in range(3):
        before = commanded.bias
        for _ in range(calls):
            commanded.fire(0)
            homeostasis()
        homeostasis.update()
        moved = commanded.bias[0] - before[0]
        assert moved == pytest.approx(calls * falling(step, 0.25, 1))


@pytest.mark.filterwarnings("ignore:`step` should be called once")
def test_each_cell_counts_its_own_steps():
    a, b = CommandedCell(), CommandedCell()
    homeostasis = LinearHomeostasis(FallingPlasticity(0.25, half=1), 0.5, "bias")
    for name, each in {"a": a, "b": b}.items():
        homeostasis.register_cell(name, each.cell)
        each.fire(0)
    for _ in range(3):
        homeostasis.step(cells=["a"])
    homeostasis.update()
    homeostasis.step(cells=["b"])
    assert a.bias == pytest.approx([sum(falling(step, 0.25, 1) for step in range(3))])
    assert b.bias == pytest.approx([0.25])


@pytest.mark.filterwarnings("ignore:`step` should be called while the model")
@pytest.mark.parametrize("frozen", ["model", "homeostasis"])
def test_a_frozen_step_does_not_count(frozen):
    commanded, homeostasis = one_cell(plasticity=FallingPlasticity(0.25, half=1))
    commanded.fire(0)
    thing = commanded.neuron if frozen == "model" else homeostasis
    thing.eval()
    homeostasis.step()
    thing.train()
    homeostasis.step()
    assert commanded.bias == [0.25]


def test_a_step_that_fails_does_not_count():
    commanded, homeostasis = one_cell(plasticity=FallingPlasticity(0.25, half=1))
    commanded.fire(0)
    homeostasis.units["a"].slot.bounds = lambda param, pos, neg: pos / 0.0
    with pytest.raises(Exception, match="should be finite"):
        homeostasis.step()
    homeostasis.units["a"].slot.bounds = None
    homeostasis.step()
    assert commanded.bias == [0.25]


def test_clear_starts_the_schedule_again():
    commanded, homeostasis = one_cell(plasticity=FallingPlasticity(0.25, half=1))
    for _ in range(4):
        homeostasis.clear()
        commanded.fire(0)
        homeostasis.step()
    assert commanded.bias == [4 * 0.25]


@pytest.mark.parametrize("used", [False, True])
def test_a_schedule_is_resumed_where_it_was(used):
    commanded, homeostasis = one_cell(plasticity=FallingPlasticity(0.25, half=1))
    other, resumed = one_cell(plasticity=0.1)
    for _ in range(3):
        commanded.fire(0)
        homeostasis.step()
    if used:
        other.fire(1)
        resumed.step()
    resumed.load_state_dict(homeostasis.state_dict(), strict=True)
    before = other.bias[0]
    resumed.step()
    assert other.bias[0] - before == pytest.approx(falling(3, 0.25, 1))


def test_what_waits_in_a_checkpoint_counts_once():
    commanded, homeostasis = one_cell(plasticity=FallingPlasticity(0.25, half=1))
    other, resumed = one_cell(plasticity=FallingPlasticity(0.25, half=1))
    commanded.fire(0)
    homeostasis()
    resumed.load_state_dict(homeostasis.state_dict(), strict=True)
    resumed.update()
    resumed.update()
    other.fire(0)
    resumed.step()
    assert other.bias == pytest.approx([0.25 + 0.125])


@pytest.mark.filterwarnings("ignore:`step` should be called once")
def test_a_new_plasticity_goes_on_with_the_count():
    commanded, homeostasis = one_cell(plasticity=0.5)
    commanded.fire(0)
    homeostasis.step()
    homeostasis.units["a"].state.plasticity = FallingPlasticity(0.25, half=1)
    homeostasis.step()
    assert commanded.bias == pytest.approx([0.5 + 0.125])


# --- the limit -------------------------------------------------------------------------------

FIRES = {"silent": [0, 0, 0, 0], "one of four": [1, 0, 0, 0], "busy": [1, 1, 1, 1]}
REDUCTIONS = {"mean": (torch.mean, np.mean), "sum": (torch.sum, np.sum)}


@pytest.mark.parametrize("way", ["step", "forward, update"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("limit", [0.25, 1.0, 2.0, math.inf])
@pytest.mark.parametrize("fires", FIRES)
def test_the_term_is_limited_after_the_batch(fires, limit, reduction, way):
    reduction, reduce = REDUCTIONS[reduction]
    plasticity = FallingPlasticity(0.25, limit=limit)
    commanded, homeostasis = one_cell(plasticity=plasticity, target=0.2, batch_reduction=reduction)
    commanded.fire(*FIRES[fires])
    if way == "step":
        homeostasis.step()
    else:
        homeostasis()
        homeostasis.update()
    term = reduce([(0.2 - fired) / 0.2 for fired in FIRES[fires]])
    assert commanded.bias == pytest.approx([0.25 * max(-limit, min(limit, term))], abs=1e-6)


def test_the_limit_falls_by_the_formula_until_it_is_1():
    commanded, homeostasis = one_cell(target=0.05, bounds=ClampBounds(-99.0, 99.0))  # nothing is held
    for step in range(40):
        before = commanded.bias[0]
        commanded.fire(1)
        homeostasis.step()
        moved = falling(step, 0.05, 3) * min(19.0, default_limit(step))
        assert before - commanded.bias[0] == pytest.approx(moved, abs=1e-6)
    assert default_limit(step) == 1


def test_a_limit_does_not_move_the_rate_of_rest():
    commanded, homeostasis = one_cell(target=0.125)
    commanded.fire(1, 0, 0, 0, 0, 0, 0, 0)
    homeostasis.step()
    assert commanded.bias == pytest.approx([0.0], abs=1e-8)


@pytest.mark.parametrize("limit", [0.25, 1.0])
def test_bounds_weigh_both_parts_of_a_limited_term(limit):
    commanded, homeostasis = one_cell(
        plasticity=FallingPlasticity(0.5, limit=limit), target=0.125, bounds=PowerBounds(-1.0, 1.0)
    )
    with torch.no_grad():
        commanded.layer.bias.fill_(0.5)
    commanded.fire(1, 1, 0, 0)
    homeostasis.step()
    pos, neg = 0.5 * 0.5, 0.5 * 7 / 2
    factor = min(1.0, limit * 0.5 / abs(pos - neg))
    assert commanded.bias == pytest.approx([0.5 + factor * (0.5 * pos - 1.5 * neg)])


def test_parts_that_wait_read_as_they_will_be_applied():
    commanded, homeostasis = one_cell(plasticity=FallingPlasticity(0.5, limit=1), target=0.125)
    commanded.fire(1)
    homeostasis()
    slot = homeostasis.units["a"].slot
    assert (slot.pos.tolist(), slot.neg.tolist()) == ([0.0], [0.5])


def test_each_call_of_the_rule_has_its_own_limit():
    commanded, homeostasis = one_cell(plasticity=FallingPlasticity(0.5, limit=1), target=0.125)
    commanded.fire(1)
    homeostasis()
    homeostasis()
    commanded.cell.updater.bias = (torch.full((1,), 9.0), None)
    homeostasis.update()
    assert commanded.bias == [9.0 - 2 * 0.5]


# --- several layers of one neuron ------------------------------------------------------------


class TwoLayers(nn.Module):
    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.lif = nn.Linear(6, 8), second, leaky()

    def forward(self, x):
        return self.lif(self.first(x) + self.second(x))


def biases_of(net: nn.Module) -> list[torch.Tensor]:
    return [param for name, param in net.named_parameters() if name.endswith("bias")]


@torch.no_grad()
def silent_step(net, homeostasis, x):
    for bias in biases_of(net):
        bias.zero_()
    utils.reset(net)
    net(x)
    homeostasis.step()


@pytest.mark.filterwarnings("ignore:Several layers drive:snn_homeostasis.HomeostasisWarning")
@pytest.mark.parametrize("plasticity", [0.05, FallingPlasticity()], ids=["number", "falling"])
def test_layers_of_one_neuron_share_a_falling_step(plasticity):
    net, x = TwoLayers(nn.Linear(6, 8)), torch.zeros(4, 6)
    homeostasis = LinearHomeostasis(plasticity, 0.1, "bias").attach(net, x)
    silent_step(net, homeostasis, x)
    share = 0.05 if plasticity == 0.05 else 0.025
    for bias in biases_of(net):
        torch.testing.assert_close(bias, torch.full_like(bias, share))


def test_a_recurrent_neuron_makes_one_step():
    neuron = snn.RLeaky(beta=0.9, linear_features=8, init_hidden=True)
    net, x = nn.Sequential(nn.Linear(6, 8), neuron), torch.zeros(4, 6)
    homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
    silent_step(net, homeostasis, x)
    torch.testing.assert_close(sum(biases_of(net)), torch.full((8,), 0.05).to(net[0].bias.dtype))


@pytest.mark.filterwarnings("ignore:Several layers drive:snn_homeostasis.HomeostasisWarning")
def test_a_layer_that_is_removed_leaves_its_share():
    net, x = TwoLayers(nn.Linear(6, 8, bias=False)), torch.zeros(4, 6)
    homeostasis = LinearHomeostasis(FallingPlasticity(0.25), 0.1, "weight").attach(net, x)
    homeostasis.remove_cell("lif:second")
    assert homeostasis.units["lif:first"].state.strength == 0.25


# --- the defaults ----------------------------------------------------------------------------


@torch.no_grad()
def test_the_two_lines_follow_the_formula_without_a_number():
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
    fired, steps, expected = 0.0, 0, net[0].bias.double().clone()

    def recount(neuron, args, output):
        nonlocal fired, steps
        fired, steps = fired + output.double().mean(0), steps + 1

    net[1].register_forward_hook(recount)
    for step in range(5):
        fired, steps = 0.0, 0
        utils.reset(net)
        for _ in range(7):
            net(3 * spikes(4, 6).to(net[0].weight.dtype))
        homeostasis.step()
        limit = default_limit(step)
        expected += falling(step, 0.05, 3) * ((0.1 - fired / steps) / 0.1).clamp(-limit, limit)
        torch.testing.assert_close(net[0].bias.double(), expected, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("bias", [0.0, 1.0], ids=["silent", "firing without input"])
def test_the_defaults_settle_from_both_ends(bias):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 48), leaky(), nn.Linear(48, 48), leaky())
    for layer in net[::2]:
        layer.bias.fill_(bias)
        layer.weight.mul_(0.1 + 0.9 * bias)
    homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
    x = torch.rand(32, 32)
    for _ in range(100):
        utils.reset(net)
        for _ in range(20):
            net(x)
        homeostasis.step()
    for rate in homeostasis.rates().values():
        assert rate.mean().item() == pytest.approx(0.1, rel=0.1)


@torch.no_grad()
def test_a_weight_moves_a_neuron_as_far_as_a_bias():
    for inputs, build in ((200, lambda: nn.Linear(200, 8)), (36, lambda: nn.Conv2d(4, 8, 3))):
        net = nn.Sequential(build(), leaky())
        homeostasis = LinearHomeostasis(target=0.1).attach(net)
        net[0].weight.zero_()
        net[0].bias.zero_()
        net(torch.full((2, 200) if inputs == 200 else (2, 4, 5, 5), 0.1))
        homeostasis.step()
        assert (net[0].weight * 0.1).flatten(1).sum(1).tolist() == pytest.approx([0.05] * 8)


@torch.no_grad()
def test_bounds_hold_with_the_defaults():
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    homeostasis = LinearHomeostasis(target=0.1, param="bias", bounds=ClampBounds(-0.01, 0.01)).attach(net)
    for _ in range(3):
        net(spikes(4, 6).to(net[0].weight.dtype))
        homeostasis.step()
    assert net[0].bias.abs().max() <= 0.01


# --- the rate since the last step ------------------------------------------------------------


def test_each_step_sees_only_what_came_since_the_last():
    commanded, homeostasis = one_cell(2)
    for fires in ([1, 1, 0, 1], [0, 0], [1]):
        for fired in fires:
            commanded.fire(fired, 0)
        mean = sum(fires) / len(fires) / 2
        assert homeostasis.rates()["a"].tolist() == pytest.approx([mean] * 2)
        homeostasis.step()
        assert homeostasis.rates()["a"].tolist() == pytest.approx([mean] * 2)


def test_a_step_of_another_cell_does_not_end_the_observation():
    a, b = CommandedCell(), CommandedCell()
    homeostasis = LinearHomeostasis(0.5, 0.5)
    homeostasis.register_cell("a", a.cell)
    homeostasis.register_cell("b", b.cell)
    for fired in (1, 0):
        a.fire(fired)
        b.fire(fired)
        homeostasis.step(cells=["a"])
    assert homeostasis.rates()["a"].item() == 0.0
    assert homeostasis.rates()["b"].item() == 0.5


@pytest.mark.parametrize("batch", [1, 3])
def test_another_batch_size_starts_with_the_next_spikes(batch):
    commanded, homeostasis = one_cell()
    commanded.fire(1, 1)
    homeostasis.step()
    commanded.fire(*[0] * batch)
    assert homeostasis.rates()["a"].item() == 0.0
    assert len(homeostasis.units["a"].rate.rate) == batch


@pytest.mark.parametrize("stepped", [False, True])
def test_a_recent_rate_is_resumed_open_or_closed(stepped):
    commanded, homeostasis = one_cell()
    other, resumed = one_cell()
    commanded.fire(1)
    if stepped:
        homeostasis.step()
    resumed.load_state_dict(homeostasis.state_dict(), strict=True)
    assert resumed.rates()["a"].item() == 1.0
    for each in (commanded, other):
        each.fire(0)
    assert homeostasis.rates()["a"].item() == resumed.rates()["a"].item() == (0.0 if stepped else 0.5)


def test_a_mean_over_everything_is_still_there():
    commanded, homeostasis = one_cell(rate=CumulativeRate)
    for fired in (1, 0, 0, 0):
        commanded.fire(fired)
        homeostasis.step()
    assert homeostasis.rates()["a"].item() == 0.25


def test_a_sequence_starts_another_observation_as_a_step_does():
    net = nn.Sequential(nn.Linear(6, 8), snn.StateLeaky(beta=0.9, channels=8))
    homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
    for x in (torch.full((5, 2, 6), 9.0), torch.zeros(3, 2, 6)):
        with torch.no_grad():
            net(x.to(net[0].weight.dtype))
        homeostasis.step()
    assert homeostasis.units["1"].rate.steps == 3
