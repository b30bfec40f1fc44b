"""The face: registration, bad input, freezing, state, and a model left as it was."""

import copy
import functools
import gc
import io
import math
import pickle
import re
import weakref
from contextlib import nullcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from nets import hooks_of, leaky, snapshot, unchanged
from snntorch import utils
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ClampBounds,
    CumulativeRate,
    ExponentialRate,
    HomeostasisError,
    HomeostasisWarning,
    LinearHomeostasis,
    NonFiniteError,
    NoSpikesError,
    RemovedCellError,
    WindowedRate,
    find_cells,
)


def a_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 3), leaky())


def run(net: nn.Module, batch: int = 4, steps: int = 5, grad: bool = False) -> torch.Tensor:
    utils.reset(net)
    with torch.set_grad_enabled(grad):
        return sum(net(3 * torch.rand(batch, 6)) for _ in range(steps))


def attached(**kwargs) -> tuple[nn.Sequential, LinearHomeostasis]:
    net = a_net()
    return net, LinearHomeostasis(0.1, 0.2, **kwargs).attach(net)


# --- bad input -------------------------------------------------------------------------------


NO_NUMBERS = ["10%", [0.1, 0.2], {"1": 0.1}, True, int, 1j]


@pytest.mark.parametrize("target", [0.0, 0, -0.1, math.nan, math.inf, *NO_NUMBERS], ids=repr)
def test_a_bad_target_is_refused_wherever_it_is_given(target):
    expected = "be a number or a tensor" if target in NO_NUMBERS else "be > 0"
    message = re.escape(f"`target` should {expected}. Found `target = {target!r}`.")
    net, homeostasis = attached()
    run(net)
    before = snapshot(net)
    for give in (
        lambda: LinearHomeostasis(0.1, target),
        lambda: homeostasis.register_cell("again", Cell(net[0], net[1]), target=target, param="bias"),
        lambda: homeostasis(target),
        lambda: homeostasis.step(target=target),
        lambda: setattr(homeostasis.units["1"].state, "target", target),
    ):
        with pytest.raises(ArgumentError, match=message):
            give()
    assert unchanged(net, before)
    assert list(homeostasis.cells) == ["1", "3"]


@pytest.mark.parametrize("number", [np.float32(0.25), np.float64(0.25), np.int64(1), Fraction(1, 4)])
def test_any_real_number_is_a_target_and_a_plasticity(number):
    torch.manual_seed(0)
    net, homeostasis = attached()
    run(net)
    twin = copy.deepcopy(net)
    same = LinearHomeostasis(float(number), float(number)).attach(twin)
    same.load_state_dict(homeostasis.state_dict())
    other = LinearHomeostasis(number, number).attach(net)
    other.load_state_dict(homeostasis.state_dict())
    same.step()
    other.step()
    assert all(map(torch.equal, twin.parameters(), net.parameters()))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ([nn.Linear(6, 8), leaky()], "[Linear"),
        (nn.Sequential, "<class"),
        ("net", "'net'"),
        (nn.Linear(6, 8).forward, "<bound"),
    ],
    ids=["list", "class", "name", "function"],
)
@pytest.mark.parametrize(
    "find", [LinearHomeostasis(0.1, 0.2).attach, find_cells], ids=["attach", "find_cells"]
)
def test_what_is_no_model_is_refused_by_name(find, model, found):
    with pytest.raises(
        ArgumentError, match=re.escape(f"`model` should be an nn.Module. Found `model = {found}")
    ):
        find(model)


def test_a_model_in_the_place_of_the_plasticity_is_refused():
    with pytest.raises(
        ArgumentError, match=re.escape("LinearHomeostasis(target=0.1, param='bias').attach(model)")
    ):
        LinearHomeostasis(a_net(), 0.1)


@pytest.mark.parametrize("call", ["step", "forward"])
@pytest.mark.parametrize("removed", [False, True])
def test_a_step_without_cells_is_refused(call, removed):
    homeostasis = attached()[1] if removed else LinearHomeostasis(0.1, 0.2)
    homeostasis.remove()
    with pytest.raises(ArgumentError, match=r"Found no cell. Call `attach\(model\)` first."):
        getattr(homeostasis, call)()


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_element_of_a_target_is_refused(bad):
    with pytest.raises(ArgumentError, match=r"`target` should be > 0 and finite everywhere. Found a tensor"):
        LinearHomeostasis(0.1, torch.tensor([0.1, bad]))


@pytest.mark.parametrize("shape", [(3,), (2, 8), (1, 1, 8), (4, 8, 1)])
def test_a_target_of_a_wrong_shape_is_refused(shape):
    net, homeostasis = attached()
    run(net)
    before = snapshot(net)
    with pytest.raises(ArgumentError, match=re.escape(f"Found shape {list(shape)}")):
        homeostasis.step(torch.full(shape, 0.1))
    assert unchanged(net, before)
    assert not homeostasis.units["1"].slot.pending


def test_channel_target_is_not_broadcast_along_the_width():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), leaky())
    homeostasis = LinearHomeostasis(0.1).attach(net)
    with torch.no_grad():
        net(torch.rand(2, 1, 6, 6))
    with pytest.raises(ArgumentError, match="Use size 1 where a dimension shares its target"):
        homeostasis.step(torch.full((4,), 0.1))
    homeostasis.step(torch.full((4, 1, 1), 0.1))


def test_target_above_one_warns():
    with pytest.warns(HomeostasisWarning, match="above 1"):
        LinearHomeostasis(0.1, 1.5).attach(a_net())


def test_a_missing_target_is_named_at_the_step():
    net = a_net()
    homeostasis = LinearHomeostasis(0.1).attach(net)
    run(net)
    with pytest.raises(ArgumentError, match="`target` should be set for cell '1'"):
        homeostasis.step()


@pytest.mark.parametrize("param", ["speed", "", None, 3])
def test_a_bad_param_is_refused(param):
    with pytest.raises(ArgumentError, match="`param` should be one of 'weight', 'bias', 'delay'"):
        LinearHomeostasis(0.1, 0.1, param)


def test_param_may_be_in_any_case():
    assert attached(param="BIAS")[1].units["1"].state.param == "bias"


@pytest.mark.parametrize("param", ["bias", "delay"])
def test_a_param_that_the_layer_lacks_is_refused(param):
    homeostasis = LinearHomeostasis(0.1, 0.1)
    cell = Cell(nn.Linear(6, 3, bias=False), leaky())
    with pytest.raises(ArgumentError, match=f"Found `param = '{param}'`, and Linear has no such Parameter"):
        homeostasis.register_cell("cell", cell, param=param)
    assert not homeostasis.cells


@pytest.mark.parametrize(
    ("name", "value"),
    [("rate", CumulativeRate()), ("rate", 3), ("batch_reduction", "mean"), ("bounds", 1.0), ("speed", 1.0)],
)
def test_bad_overrides_are_refused(name, value):
    homeostasis = LinearHomeostasis(0.1, 0.1)
    with pytest.raises(ArgumentError, match="should be"):
        homeostasis.register_cell("cell", Cell(nn.Linear(6, 3), leaky()), **{name: value})
    assert not homeostasis.cells


def test_the_same_name_twice_is_refused():
    net, homeostasis = attached()
    for name in ("1", ""):
        with pytest.raises(ArgumentError, match="`name` should be new and not empty"):
            homeostasis.register_cell(name, Cell(nn.Linear(6, 3), leaky()))
    with pytest.raises(ArgumentError, match="`name` should be new"):
        homeostasis.attach(net)


def test_the_same_cell_twice_is_refused():
    net, homeostasis = attached()
    for cell in (homeostasis.cells["1"], Cell(net[0], net[1])):
        with pytest.raises(ArgumentError, match=r"regulated once by its weight. Found the same"):
            homeostasis.register_cell("again", cell)
    homeostasis.register_cell("its bias", homeostasis.cells["1"], param="bias")
    run(net)
    before = snapshot(net)
    homeostasis.step()
    assert not torch.equal(net[0].weight, before["0.weight"])
    assert not torch.equal(net[0].bias, before["0.bias"])


def test_no_rate_is_given_before_any_spike():
    _, homeostasis = attached()
    for ask in (homeostasis.rates, homeostasis, homeostasis.step):
        with pytest.raises(NoSpikesError, match="cell '1' should have been observed"):
            ask()


def test_a_frozen_run_is_explained():
    net, homeostasis = attached()
    run(net.eval())
    net.train()
    with pytest.raises(NoSpikesError, match="it ran in eval mode"):
        homeostasis.step()
    homeostasis.eval()
    run(net)
    homeostasis.train()
    with pytest.raises(NoSpikesError, match="the homeostasis was in eval mode"):
        homeostasis.step()


@pytest.mark.parametrize("factory", [CumulativeRate, lambda: ExponentialRate(5.0), lambda: WindowedRate(7)])
def test_batch_size_may_change_at_any_time(factory):
    net, homeostasis = attached(rate=factory)
    for batch in (4, 2, 1, 4):
        before = homeostasis.rates() if homeostasis.units["1"].rate.steps else None
        utils.reset(net)
        with torch.no_grad():
            net(torch.zeros(batch, 6))
        if before is not None and factory is CumulativeRate:
            fired = homeostasis.cells["1"].neuron.spike.float().mean(0)
            steps = homeostasis.units["1"].rate.steps
            expected = before["1"] + (fired - before["1"]) / steps
            torch.testing.assert_close(homeostasis.rates()["1"], expected)
        homeostasis.step()
    assert homeostasis.units["1"].rate.steps == 4


def test_empty_batch_changes_nothing():
    net, homeostasis = attached()
    run(net)
    rates, steps = homeostasis.rates(), homeostasis.units["1"].rate.steps
    run(net, batch=0)
    assert homeostasis.units["1"].rate.steps == steps
    for name, rate in homeostasis.rates().items():
        assert torch.equal(rate, rates[name])
    homeostasis.step()


def test_per_sample_target_must_follow_the_batch():
    net, homeostasis = attached()
    run(net)
    homeostasis.step(torch.full((4, 8), 0.1), cells=["1"])
    run(net, batch=2)
    with pytest.raises(ArgumentError, match="`target` should have the shape"):
        homeostasis.step(torch.full((4, 8), 0.1), cells=["1"])


def test_one_poisoned_cell_stops_the_whole_step():
    net, homeostasis = attached()
    run(net)
    net[2].bias.data.fill_(math.nan)
    run(net)
    before = snapshot(net)
    with pytest.raises(NonFiniteError, match=re.escape("'3' (membrane)")):
        homeostasis.step()
    assert torch.equal(net[0].weight, before["0.weight"])


def test_non_finite_update_touches_no_parameter():
    net, homeostasis = attached()
    run(net)
    homeostasis()
    homeostasis.cells["3"].updater.weight.bounds = lambda param, pos, neg: (pos - neg) / 0.0
    before = snapshot(net)
    with pytest.raises(NonFiniteError, match=re.escape("'3' (update)")):
        homeostasis.update()
    assert unchanged(net, before)
    homeostasis.clear()
    homeostasis.cells["3"].updater.weight.bounds = None
    run(net)
    homeostasis.step()
    assert not unchanged(net, before)


def test_bounds_that_return_a_wrong_shape_are_refused():
    net, homeostasis = attached(bounds=lambda param, pos, neg: torch.zeros(7))
    run(net)
    with pytest.raises(ArgumentError, match="`bounds` should return a delta that broadcasts"):
        homeostasis.step()


def test_an_unknown_cell_name_is_refused():
    net, homeostasis = attached()
    run(net)
    before = snapshot(net)
    with pytest.raises(ArgumentError, match="`cells` should name registered cells"):
        homeostasis.step(cells=["1", "2"])
    assert unchanged(net, before)


def test_slot_refuses_parts_of_a_wrong_shape():
    cell = Cell(nn.Linear(6, 3), leaky())
    with pytest.raises(ArgumentError, match="`pos` should broadcast to `weight` of Linear"):
        cell.updater.weight = (torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(ArgumentError, match="`neg` should broadcast"):
        cell.updater.weight = (torch.zeros(3, 1), torch.zeros(2, 3, 6))
    assert not cell.updater.weight.pending


def test_updater_of_a_cell_refuses_what_is_not_finite():
    cell = Cell(nn.Linear(6, 3), leaky())
    cell.updater.weight = (torch.full((3, 1), math.nan), torch.zeros(3, 1))
    with pytest.raises(NonFiniteError, match="`weight` of Linear"):
        cell.updater()
    assert cell.connection.weight.isfinite().all()


def test_a_misspelt_slot_is_an_error():
    with pytest.raises(AttributeError):
        Cell(nn.Linear(6, 3), leaky()).updater.wieght = (None, None)


ATTRIBUTES = ["training", "forward", "_modules", "pop", "items", "__class__", "T_destination"]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_cell_may_be_called_like_an_attribute_of_a_module(name):
    net = nn.Sequential(nn.Linear(6, 3), leaky())
    homeostasis, twin = LinearHomeostasis(0.1, 0.1), LinearHomeostasis(0.1, 0.1)
    homeostasis.register_cell(name, Cell(*net))
    with pytest.raises(ArgumentError, match="`name` should be new"):
        homeostasis.register_cell(name, Cell(*net), param="bias")
    run(net)
    homeostasis.step(cells=[name])
    twin.register_cell(name, Cell(nn.Linear(6, 3), leaky()))
    twin.load_state_dict(homeostasis.state_dict())
    assert torch.equal(twin.rates()[name], homeostasis.rates()[name])
    homeostasis.remove_cell(name)
    assert not homeostasis.state_dict()
    assert not hooks_of(net)


def test_a_neuron_may_be_called_like_an_attribute_of_a_module():
    net = nn.Sequential()
    net.add_module("fc", nn.Linear(6, 3))
    net.add_module("values", leaky())
    assert list(LinearHomeostasis(0.1, 0.1).attach(net).cells) == ["values"]


@pytest.mark.parametrize("name", ["", None, 1])
def test_a_name_that_is_none_is_refused(name):
    homeostasis = LinearHomeostasis(0.1, 0.1)
    with pytest.raises(ArgumentError, match="`name` should be new and not empty, and a string"):
        homeostasis.register_cell(name, Cell(nn.Linear(6, 3), leaky()))
    assert not homeostasis.cells


def test_a_neuron_in_the_place_of_a_cell_is_refused():
    with pytest.raises(ArgumentError, match=r"Found `cell = Leaky\(\)`. Build one"):
        LinearHomeostasis(0.1, 0.1).register_cell("lif", leaky())


SHARED = CumulativeRate()


@pytest.mark.parametrize(
    ("rate", "message"),
    [(lambda: SHARED, "return a new estimator at each call"), (lambda: 0.1, "return a RateEstimator")],
)
def test_a_rate_that_makes_no_new_estimator_is_refused(rate, message):
    net = a_net()
    homeostasis = LinearHomeostasis(0.1, 0.2, rate=rate)
    with pytest.raises(ArgumentError, match=message):
        homeostasis.attach(net)
    assert not homeostasis.cells
    assert not hooks_of(net)


@pytest.mark.parametrize(
    "register",
    [lambda rule, net: rule.attach(net), lambda rule, net: rule.register_cell("cell", Cell(*net[:2]))],
)
def test_warnings_point_at_the_line_of_the_user(register):
    net = a_net()
    homeostasis = LinearHomeostasis(0.1, 1.5)
    with pytest.warns(HomeostasisWarning, match="above 1") as caught:
        register(homeostasis, net)
    assert {each.filename for each in caught} == {__file__}


def test_residue_of_a_value_that_was_overwritten_is_dropped():
    net = nn.Sequential(nn.Linear(6, 3), leaky()).to(torch.bfloat16)
    cell = Cell(net[0], net[1])
    nn.init.constant_(net[0].bias, 100.0)
    cell.updater.bias = (torch.full((3,), 0.1), None)
    cell.updater()
    nn.init.zeros_(net[0].bias)
    cell.updater.bias = (torch.zeros(3), None)
    cell.updater()
    assert net[0].bias.tolist() == [0.0, 0.0, 0.0]


def test_slots_of_a_removed_cell_are_closed():
    net, homeostasis = attached()
    cell = homeostasis.cells["1"]
    homeostasis.remove_cell("1")
    for use in (
        lambda: cell.updater.weight,
        cell.updater,
        lambda: setattr(cell.updater, "bias", (None, None)),
    ):
        with pytest.raises(RemovedCellError, match="Found a cell that was removed"):
            use()
    homeostasis.register_cell("again", cell)
    run(net)
    homeostasis.step()
    assert not cell.updater.weight.pending


# --- units -----------------------------------------------------------------------------------


class Block(nn.Module):
    """A part of a model, so that the paths of its neurons have dots."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(inputs, outputs), leaky()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lif(self.fc(x))


def nested(**settings) -> tuple[nn.Module, LinearHomeostasis]:
    net = nn.Sequential(Block(6, 8), nn.Sequential(Block(8, 3)))
    return net, LinearHomeostasis(0.1, 0.2, **settings).attach(net, torch.rand(4, 6))


def test_units_cells_and_rates_have_the_same_names():
    net, homeostasis = nested()
    run(net)
    assert list(homeostasis.units) == ["0.lif", "1.0.lif"]
    assert list(homeostasis.units) == list(homeostasis.cells) == list(homeostasis.rates())
    for name, unit in homeostasis.units.items():
        assert unit.name == name
        assert unit.cell is homeostasis.cells[name]
        assert homeostasis.units[name] is unit


@pytest.mark.parametrize("again", [False, True])
def test_what_waits_for_a_removed_cell_is_dropped(again):
    net, homeostasis = attached()
    cell = homeostasis.cells["1"]
    homeostasis.register_cell("1.bias", cell, param="bias")
    run(net)
    homeostasis()
    homeostasis.remove_cell("1")
    if again:
        homeostasis.register_cell("1", cell)
    weight, bias = net[0].weight.clone(), net[0].bias.clone()
    homeostasis.update()
    assert torch.equal(net[0].weight, weight)
    assert not torch.equal(net[0].bias, bias)  # the other rule on the cell keeps what it has


def test_units_follow_registration_and_removal():
    net, homeostasis = nested()
    units = homeostasis.units
    new = homeostasis.register_cell("its.bias", homeostasis.cells["0.lif"], param="bias")
    assert homeostasis.units["its.bias"] is new
    homeostasis.remove_cell("0.lif")
    assert list(homeostasis.units) == list(units) == ["1.0.lif", "its.bias"]
    run(net)
    homeostasis.step(cells=["its.bias"])
    homeostasis.remove()
    assert not homeostasis.units


def test_units_cannot_be_set_from_outside():
    _, homeostasis = nested()
    with pytest.raises(TypeError):
        homeostasis.units["0.lif"] = None
    with pytest.raises(TypeError):
        homeostasis.cells["0.lif"] = None


def test_a_unit_gives_slots_rate_and_state():
    net, homeostasis = nested(rate=functools.partial(ExponentialRate, 5.0))
    unit = homeostasis.units["1.0.lif"]
    run(net)
    assert list(unit.slots) == ["weight", "bias", "threshold"]
    assert unit.slots["weight"] is unit.slot is unit.cell.updater.weight
    torch.testing.assert_close(unit.rate.rate.mean(0), homeostasis.rates()["1.0.lif"])
    assert (unit.rate.tau, unit.rate.steps) == (5.0, 5)
    assert (unit.state.plasticity, unit.state.target, unit.state.param) == (0.1, 0.2, "weight")
    homeostasis()
    assert unit.slots["weight"].pending
    assert not unit.slots["bias"].pending


def test_the_state_of_a_unit_changes_the_next_step():
    net, homeostasis = nested()
    run(net)
    unit, before = homeostasis.units["0.lif"], snapshot(net)
    unit.state.param, unit.state.plasticity, unit.state.target = "bias", 0.5, torch.full((8,), 0.4)
    unit.state.batch_reduction = torch.sum
    homeostasis.step(cells=["0.lif"])
    expected = before["0.fc.bias"] + (0.5 * (0.4 - unit.rate.rate) / 0.4).sum(0)
    torch.testing.assert_close(net[0].fc.bias, expected.to(net[0].fc.bias.dtype))
    assert torch.equal(net[0].fc.weight, before["0.fc.weight"])


def test_names_with_dots_survive_a_checkpoint():
    net, homeostasis = nested()
    run(net)
    homeostasis()
    _, loaded = nested()
    loaded.load_state_dict(homeostasis.state_dict(), strict=True)
    assert list(loaded.rates()) == ["0.lif", "1.0.lif"]
    for name, rate in homeostasis.rates().items():
        assert torch.equal(loaded.rates()[name], rate)


# --- sharing and leaving -------------------------------------------------------------------------


def two_rules(**settings) -> tuple[nn.Sequential, Cell, LinearHomeostasis, LinearHomeostasis]:
    """Two rules on one cell, with contributions of both in its slot."""
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    cell, first, second = Cell(*net), LinearHomeostasis(0.1, 0.2), LinearHomeostasis(0.1, 0.9)
    for rule, own in ((first, settings), (second, {})):
        rule.register_cell("cell", cell, **own)
    run(net)
    first()
    alone = cell.updater.weight.pos - cell.updater.weight.neg
    second()
    return net, cell, first, second, cell.updater.weight.pos - cell.updater.weight.neg - alone


LEAVES = {
    "clear": LinearHomeostasis.clear,
    "remove": LinearHomeostasis.remove,
    "remove_cell": lambda rule: rule.remove_cell("cell"),
}


@pytest.mark.parametrize("leave", LEAVES)
def test_a_rule_that_leaves_takes_only_its_own_parts_along(leave):
    net, _, first, second, part = two_rules()
    LEAVES[leave](first)
    before = net[0].weight.detach().clone()
    rate = second.rates()["cell"]
    second.update()
    torch.testing.assert_close(net[0].weight, before + part)
    assert torch.equal(second.rates()["cell"], rate)


def test_a_dropped_rule_takes_its_parts_and_bounds_along():
    net, cell, first, second, part = two_rules(bounds=ClampBounds(-1.0, 1.0))
    assert cell.updater.weight.bounds is not None
    del first
    assert cell.updater.weight.bounds is None
    before = net[0].weight.detach().clone()
    second.update()
    torch.testing.assert_close(net[0].weight, before + part)


@pytest.mark.parametrize("param", ["weight", "bias"])
def test_parts_of_another_param_of_the_cell_survive_a_clear(param):
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    first, second = LinearHomeostasis(0.1, 0.2, param), LinearHomeostasis(0.1, 0.9, "bias")
    cell = Cell(*net)
    first.register_cell("cell", cell)
    second.register_cell("cell", cell)
    run(net)
    second()
    first.clear()
    assert cell.updater.bias.pending


def test_bounds_leave_with_the_rule_that_brought_them():
    net = nn.Sequential(nn.Linear(6, 8), leaky())
    cell, bounds = Cell(*net), ClampBounds(-1.0, 1.0)
    first, second = LinearHomeostasis(0.1, 0.2, bounds=bounds), LinearHomeostasis(0.1, 0.9)
    first.register_cell("weight", cell)
    second.register_cell("weight", cell)
    first.register_cell("bias", cell, param="bias")
    first.remove_cell("weight")
    assert cell.updater.weight.bounds is None
    assert cell.updater.bias.bounds == bounds
    second.register_cell("bias", cell, param="bias", bounds=ClampBounds(-1.0, 1.0))
    first.remove()
    assert cell.updater.bias.bounds == bounds  # of the second
    second.remove()
    second.register_cell("again", cell, param="bias")
    assert cell.updater.bias.bounds is None


def test_bounds_set_by_hand_end_with_the_last_rule():
    _, homeostasis = attached()
    cell = homeostasis.cells["1"]
    cell.updater.weight.bounds = ClampBounds(-1.0, 1.0)
    homeostasis.register_cell("bias", cell, param="bias")
    homeostasis.remove_cell("1")
    assert cell.updater.weight.bounds is not None
    homeostasis.remove()
    LinearHomeostasis(0.1, 0.2).register_cell("again", cell)
    with pytest.raises(RemovedCellError):  # that rule is gone
        _ = cell.updater.weight
    again = LinearHomeostasis(0.1, 0.2)
    again.register_cell("again", cell)
    assert cell.updater.weight.bounds is None


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("by_hand", [False, True])
def test_bounds_of_a_shared_weight_hold_when_the_other_cell_steps(frozen, by_hand):
    layer, first, second = nn.Linear(6, 8), leaky(), leaky()
    homeostasis, bounds = LinearHomeostasis(50.0, 0.2), ClampBounds(-0.1, 0.1)
    cell = Cell(layer, first)
    homeostasis.register_cell("bounded", cell, bounds=None if by_hand else bounds)
    homeostasis.register_cell("free", Cell(layer, second))
    if by_hand:
        cell.updater.weight.bounds = bounds
    with torch.no_grad():
        for neuron in (first, second):
            neuron(layer(3 * torch.rand(4, 6)))
    first.train(not frozen)
    homeostasis.step(cells=["free"])
    assert layer.weight.abs().max() <= 0.1


def test_a_refused_registration_leaves_the_cell_as_it_was():
    net, homeostasis = attached()
    homeostasis.remove_cell("1")
    other = nn.Linear(6, 8)
    other.weight = net[0].weight
    homeostasis.register_cell("tied", Cell(other, net[3]), bounds=ClampBounds(-1.0, 1.0))
    cell = Cell(net[0], net[1])
    with pytest.raises(ArgumentError, match="be the same wherever one parameter is regulated"):
        homeostasis.register_cell("cell", cell, bounds=ClampBounds(-2.0, 2.0))
    assert cell.updater.weight.bounds is None
    assert list(homeostasis.cells) == ["3", "tied"]
    assert hooks_of(net[1])  # of the cell, which is there without a rule


# --- freezing --------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", ["model", "homeostasis"])
def test_eval_records_and_changes_nothing(freeze):
    net, homeostasis = attached()
    run(net)
    rates, before = homeostasis.rates(), snapshot(net)
    (net if freeze == "model" else homeostasis).eval()
    run(net)
    with nullcontext() if freeze == "homeostasis" else pytest.warns(HomeostasisWarning, match="eval mode"):
        homeostasis.step()
    assert unchanged(net, before)
    for name, rate in homeostasis.rates().items():
        assert torch.equal(rate, rates[name])
    net.train()
    homeostasis.train()
    run(net)
    homeostasis.step()
    assert not unchanged(net, before)


def test_pending_updates_wait_while_frozen():
    net, homeostasis = attached()
    run(net)
    homeostasis()
    before = snapshot(net)
    net.eval()
    homeostasis.update()
    assert unchanged(net, before)
    net.train()
    homeostasis.update()
    assert not unchanged(net, before)


# --- a model left as it was ------------------------------------------------------------------


def test_nothing_about_the_model_changes_but_values():
    net = a_net()
    keys, classes = list(net.state_dict()), [type(module) for module in net.modules()]
    params = list(net.parameters())
    optimizer = torch.optim.Adam(params)
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(net)
    run(net)
    homeostasis.step()
    assert list(net.state_dict()) == keys
    assert [type(module) for module in net.modules()] == classes
    assert all(mine is yours for mine, yours in zip(net.parameters(), params, strict=True))
    held = [param for group in optimizer.param_groups for param in group["params"]]
    assert all(mine is yours for mine, yours in zip(held, params, strict=True))
    assert not list(homeostasis.parameters())


def test_vanishing_plasticity_leaves_outputs_and_gradients_bit_equal():
    plain, regulated = a_net(), a_net()
    regulated.load_state_dict(plain.state_dict())
    homeostasis = LinearHomeostasis(1e-30, 0.2).attach(regulated)
    for _ in range(3):
        outputs = []
        for net in (plain, regulated):
            torch.manual_seed(1)
            net.zero_grad()
            outputs.append(run(net, grad=True))
            outputs[-1].sum().backward()
        assert torch.equal(*outputs)
        for mine, yours in zip(plain.parameters(), regulated.parameters(), strict=True):
            assert torch.equal(mine.grad, yours.grad)
        homeostasis.step()
    for mine, yours in zip(plain.parameters(), regulated.parameters(), strict=True):
        assert torch.equal(mine, yours)


@pytest.mark.parametrize("leave", ["remove", "drop", "drop while the cell is held"])
def test_no_hook_is_left(leave):
    net, homeostasis = attached()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    homeostasis.follow(optimizer)
    run(net)
    assert hooks_of(net)
    held = homeostasis.cells["1"] if leave == "drop while the cell is held" else None
    if leave == "remove":
        homeostasis.remove()
        assert not homeostasis.cells
        assert not optimizer._optimizer_step_post_hooks
    del homeostasis, optimizer
    gc.collect()
    assert hooks_of(net) == 0
    if held is not None:
        with pytest.raises(RemovedCellError):
            _ = held.updater.weight


def test_a_shared_cell_stays_open_for_the_other_rule():
    cell = Cell(nn.Linear(6, 3), leaky())
    first, second = LinearHomeostasis(0.1, 0.2), LinearHomeostasis(0.1, 0.3)
    for homeostasis in (first, second):
        homeostasis.register_cell("cell", cell)
    first.remove()
    cell.neuron.module(cell.connection.layer(torch.rand(2, 6)))
    second.step()
    with pytest.raises(ArgumentError):
        first.step(cells=["cell"])


def test_homeostasis_is_freed_without_the_garbage_collector():
    net, homeostasis = attached()
    run(net)
    reference = weakref.ref(homeostasis)
    gc.disable()
    try:
        del homeostasis
        assert reference() is None
    finally:
        gc.enable()
    assert hooks_of(net) == 0


def test_a_copied_model_is_not_observed():
    net, homeostasis = attached()
    with torch.no_grad():
        run(net)
    twin = copy.deepcopy(net)
    steps = homeostasis.units["1"].rate.steps
    run(twin)
    assert homeostasis.units["1"].rate.steps == steps


@pytest.mark.parametrize("copier", [copy.deepcopy, pickle.dumps])
def test_homeostasis_itself_refuses_to_be_copied(copier):
    _, homeostasis = attached()
    with pytest.raises(HomeostasisError, match="Attach a new one"):
        copier(homeostasis)


def test_a_pickled_model_leaves_its_observers_behind():
    net = nn.Sequential(nn.Linear(6, 3), leaky(surrogate_disable=True))
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(net)
    twin = pickle.loads(pickle.dumps(net))
    twin(torch.rand(2, 6))
    assert not homeostasis.units["1"].rate.steps


def test_hooks_give_no_graph_and_hold_none_after_a_step():
    net, homeostasis = attached()
    run(net, grad=True).sum().backward()
    hook = homeostasis.cells["1"].neuron
    assert not hook.spike.requires_grad
    assert not homeostasis.rates()["1"].requires_grad
    homeostasis.step()
    assert hook.membranes.graph is None


def test_the_training_loop_of_the_readme_follows_an_optimizer():
    net = a_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    homeostasis = LinearHomeostasis(0.05, 0.1, "bias", bounds=ClampBounds(-1.0, 1.0)).attach(net)
    homeostasis.follow(optimizer)
    for _ in range(5):
        loss = run(net, grad=True).square().mean()
        optimizer.zero_grad()
        loss.backward()
        before = net[0].bias.detach().clone()
        optimizer.step()
        assert not torch.equal(net[0].bias, before)
        assert net[0].bias.abs().max() <= 1.0
    assert not homeostasis.units["1"].slot.pending


# --- state -----------------------------------------------------------------------------------

FACTORIES = {
    "cumulative": CumulativeRate,
    "exponential": functools.partial(ExponentialRate, tau=5.0),
    "windowed": functools.partial(WindowedRate, 4),
}


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("used_before", [False, True])
def test_resuming_from_a_checkpoint_is_never_having_stopped(name, used_before):
    def build():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(6, 8), leaky()).to(torch.bfloat16)
        homeostasis = LinearHomeostasis(1e-3, rate=FACTORIES[name]).attach(net, target=torch.tensor([0.2]))
        return net, homeostasis

    net, homeostasis = build()
    for batch in (4, 3):
        run_half(net, batch)
        homeostasis.step()
    homeostasis()
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "homeostasis": homeostasis.state_dict()}, file)
    file.seek(0)

    twin, resumed = build()
    if used_before:
        run_half(twin, 2)
        resumed.step(0.5)
    saved = torch.load(file, weights_only=True)
    twin.load_state_dict(saved["net"], strict=True)
    resumed.load_state_dict(saved["homeostasis"], strict=True)
    for model, rule in ((net, homeostasis), (twin, resumed)):
        torch.manual_seed(5)
        rule.update()
        run_half(model, 5)
        rule.step()
    assert unchanged(twin, snapshot(net))
    for key, value in homeostasis.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def run_half(net: nn.Module, batch: int) -> None:
    utils.reset(net)
    with torch.no_grad():
        for _ in range(3):
            net(3 * torch.rand(batch, 6).bfloat16())


def test_state_dict_holds_rates_slots_and_tensor_targets():
    net = a_net()
    homeostasis = LinearHomeostasis(0.1).attach(net, target=torch.tensor([0.2]))
    run(net)
    homeostasis()
    keys = set(homeostasis.state_dict())
    for end in ("rate.total", "rate.steps", "slots.weight.pos", "slots.weight.neg", "state.target_tensor"):
        assert {f"registered.1.{end}", f"registered.3.{end}"} <= keys


def test_state_of_other_cells_does_not_load():
    net, homeostasis = attached()
    run(net)
    other = LinearHomeostasis(0.1, 0.2)
    other.register_cell("elsewhere", Cell(nn.Linear(6, 3), leaky()))
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*elsewhere.*Unexpected"):
        other.load_state_dict(homeostasis.state_dict())


def test_moved_homeostasis_keeps_its_precision():
    net, homeostasis = attached()
    run(net)
    rates = homeostasis.rates()
    homeostasis.half()
    for name, rate in homeostasis.rates().items():
        assert rate.dtype == torch.float32
        assert torch.equal(rate, rates[name])


def test_a_move_keeps_both_parts_that_wait():
    net, homeostasis = attached()
    run(net)
    homeostasis()
    slot = homeostasis.units["1"].slot
    pos, neg = slot.pos.clone(), slot.neg.clone()
    homeostasis.to("cpu").float()
    assert torch.equal(slot.pos, pos)
    assert torch.equal(slot.neg, neg)


def test_a_bound_named_by_a_frozen_tied_cell_holds():
    net = nn.Sequential(nn.Linear(6, 6), leaky(), nn.Linear(6, 6), leaky())
    net[2].weight = net[0].weight
    homeostasis = LinearHomeostasis(5.0, 0.2)
    with pytest.warns(HomeostasisWarning, match="One weight drives several neurons"):
        homeostasis.attach(net)
    homeostasis.cells["3"].updater.weight.bounds = ClampBounds(-0.5, 0.5)
    run(net)
    net[3].eval()
    homeostasis.step()
    assert net[0].weight.abs().max() <= 0.5
