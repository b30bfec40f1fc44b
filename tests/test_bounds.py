"""Bounds: their formulas, their limits, and parameters that are outside already."""

import math

import pytest
import snntorch as snn
import torch
from cases import CommandedCell, pairwise
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ClampBounds,
    LinearHomeostasis,
    NonFiniteError,
    PowerBounds,
    SharpBounds,
)

BOUNDS = {
    "scaled multiplicative": PowerBounds(-1.0, 2.0, scaled=True),
    "power": PowerBounds(-1.0, 2.0),
    "power pair": PowerBounds(-1.0, 2.0, power=(0.5, 2.0)),
    "scaled": PowerBounds(-1.0, 2.0, power=1.5, scaled=True),
    "upper only": PowerBounds(max=2.0),
    "lower only": PowerBounds(min=-1.0),
    "sharp": SharpBounds(-1.0, 2.0),
    "clamp": ClampBounds(-1.0, 2.0),
}
OUTSIDE = torch.tensor([-1e6, -5.0, -1.0 - 1e-6, 2.0 + 1e-6, 7.0, 1e6])

every = pytest.mark.parametrize("name", BOUNDS)


def by_hand(name: str, p: float, pos: float, neg: float) -> float:
    """The contract's table, for one number."""
    up, down = max(2.0 - p, 0.0), max(p + 1.0, 0.0)
    return {
        "scaled multiplicative": (up * pos - down * neg) / 3,
        "power": up * pos - down * neg,
        "power pair": up**0.5 * pos - down**2 * neg,
        "scaled": (up / 3) ** 1.5 * pos - (down / 3) ** 1.5 * neg,
        "upper only": up * pos - neg,
        "lower only": pos - down * neg,
        "sharp": (p <= 2.0) * pos - (p >= -1.0) * neg,
        "clamp": min(max(p + pos - neg, -1.0), 2.0) - p,
    }[name]


@every
def test_a_bound_is_its_formula(name):
    param = torch.linspace(-2.0, 3.0, 41, dtype=torch.float64)
    pos, neg = torch.rand(41, dtype=torch.float64), torch.rand(41, dtype=torch.float64)
    expected = [by_hand(name, *each) for each in zip(*(x.tolist() for x in (param, pos, neg)), strict=True)]
    torch.testing.assert_close(BOUNDS[name](param, pos, neg).tolist(), expected, rtol=1e-12, atol=1e-12)


@every
def test_small_parts_broadcast_and_arguments_are_left_alone(name):
    param, pos, neg = torch.rand(3, 4), torch.rand(3, 1), torch.rand(3, 1)
    copies = [x.clone() for x in (param, pos, neg)]
    delta = BOUNDS[name](param, pos, neg)
    assert delta.shape == (3, 4)
    for x, copy in zip((param, pos, neg), copies, strict=True):
        assert torch.equal(x, copy)


@every
def test_outside_a_step_never_leads_further_out_or_to_nan(name):
    below = OUTSIDE < 0
    bound = BOUNDS[name]
    inward = bound(OUTSIDE, below.float(), (~below).float())
    outward = bound(OUTSIDE, (~below).float(), below.float())
    for delta in (inward, outward):
        assert delta.isfinite().all()
    limited = torch.tensor([bound.min is not None] * 3 + [bound.max is not None] * 3)
    assert ((outward * (OUTSIDE.sign()))[limited] <= 0).all()
    assert ((inward * (OUTSIDE.sign())) <= 0).all()


def test_sharp_counts_the_limit_as_inside():
    one = torch.tensor(1.0)
    assert SharpBounds(0.0, 1.0)(one, one, 0 * one) == 1.0
    assert SharpBounds(0.0, 1.0)(0 * one, 0 * one, one) == -1.0


def test_clamp_ends_inside_although_its_delta_is_rounded():
    layer = nn.Linear(1000, 100)
    nn.init.uniform_(layer.weight, -5, 5)
    cell, bounds = Cell(layer, snn.Leaky(beta=0.9)), ClampBounds(-0.1, 0.1)
    added = layer.weight + bounds(layer.weight, torch.tensor(0.0), torch.tensor(9.0))
    assert (added < -0.1).any()
    cell.updater.weight.bounds = bounds
    cell.updater.weight = None, torch.tensor(9.0)
    cell.updater()
    assert (layer.weight >= -0.1).all()


@pytest.mark.parametrize("kind", [PowerBounds, SharpBounds, ClampBounds])
@pytest.mark.parametrize(
    "limits",
    [
        *((None, None), (1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.nan)),
        *((0.0, math.inf), (-math.inf, 1.0), (None, math.inf), ("0", 1.0), (torch.tensor(0.0), 1.0)),
    ],
    ids=str,
)
def test_bad_limits_are_refused(kind, limits):
    with pytest.raises(ArgumentError, match=r"`min.*` should .*Found `min = "):
        kind(*limits)


@pytest.mark.parametrize("kind", [PowerBounds, SharpBounds, ClampBounds])
@pytest.mark.parametrize("side", ["min", "max"])
def test_a_limit_of_none_leaves_its_side_free(kind, side):
    bounds = kind(**{"min": None, "max": None, side: 0.5})
    free = torch.full((3,), -1e3 if side == "max" else 1e3)
    outward, none = torch.ones(3), torch.zeros(3)
    pos, neg = (none, outward) if side == "max" else (outward, none)
    assert torch.equal(bounds(free, pos, neg), pos - neg)


@pytest.mark.parametrize("power", [0.0, -1.0, math.nan, math.inf, (1.0, 0.0), (1.0, 1.0, 1.0)])
def test_a_bad_power_is_refused(power):
    with pytest.raises(ArgumentError, match="`power` should be > 0"):
        PowerBounds(0.0, 1.0, power=power)


@pytest.mark.parametrize("power", [(2.0, 2.0), 2, (2, 2.0)])
def test_a_pair_of_equal_powers_is_that_power(power):
    bounds = PowerBounds(0.0, 1.0, power=power)
    assert bounds == PowerBounds(0.0, 1.0, power=2.0) != PowerBounds(0.0, 1.0, power=(2.0, 1.0))


def test_scaled_needs_both_limits():
    with pytest.raises(ArgumentError, match="`scaled` should be False unless both limits"):
        PowerBounds(max=1.0, scaled=True)


def changed(bounds, param, pos, neg):
    """The parameter after one update of a cell."""
    layer = nn.Conv1d(param.shape[1], param.shape[0], param.shape[2])
    with torch.no_grad():
        layer.weight.copy_(param)
    cell = Cell(layer, snn.Leaky(beta=0.9))
    cell.updater.weight.bounds = bounds
    cell.updater.weight = pos, neg
    cell.updater()
    return layer.weight.detach()


SPREADS = {"inside": 0.9, "partly outside": 3.0}


@pytest.mark.parametrize(
    ("name", "spread", "small"), pairwise(BOUNDS, SPREADS, [(150, 1, 1), (30, 90), (1,), ()]), ids=str
)
def test_an_update_in_place_is_the_formula(name, spread, small):
    param = 0.5 + 1.5 * SPREADS[spread] * (2 * torch.rand(150, 30, 90) - 1)  # more than one block
    pos, neg = 0.1 * torch.rand(small), 0.1 * torch.rand(small)
    delta = BOUNDS[name](param.double(), pos.double(), neg.double())
    expected = param.double() + delta
    if name == "clamp":
        expected = expected.clamp(-1.0, 2.0)
    after = changed(BOUNDS[name], param, pos, neg)
    torch.testing.assert_close(after.double(), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("part", [3e-8, 1.43e-7, 1e-3])
@pytest.mark.parametrize("bounds", [PowerBounds(max=0.7), PowerBounds(-1.0, 0.7)], ids=str)
def test_small_steps_do_not_lead_past_a_limit(bounds, part):
    layer = nn.Linear(1000, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.6, 0.7, 1000))
    cell = Cell(layer, snn.Leaky(beta=0.9))
    cell.updater.weight.bounds = bounds
    for _ in range(1000):
        cell.updater.weight = torch.tensor(part), None
        cell.updater()
    assert (layer.weight <= 0.7 * (1 + 1e-6)).all()


class Halved(PowerBounds):
    def __call__(self, param, pos, neg):
        return super().__call__(param, pos, neg) / 2


class Unclamped(ClampBounds):
    def __call__(self, param, pos, neg):
        return pos - neg


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        (Halved(0.0, 1.0), 0.625),
        (Unclamped(0.0, 0.75), 1.0),
    ],
    ids=str,
)
def test_the_formula_of_a_subclass_is_used(bounds, expected):
    commanded = CommandedCell(value=0.5)
    commanded.cell.updater.weight.bounds = bounds
    commanded.cell.updater.weight = torch.tensor(0.5), None
    commanded.cell.updater()
    assert commanded.weight == [expected]


@pytest.mark.parametrize(
    "bounds", [PowerBounds(0.0, 1.0), PowerBounds(max=1.0), PowerBounds(min=0.0)], ids=str
)
@pytest.mark.parametrize("part", [2e-8, 1e-6])
def test_small_steps_add_up(bounds, part):
    commanded = CommandedCell(value=1e-3)
    commanded.cell.updater.weight.bounds = bounds
    for _ in range(1000):
        commanded.cell.updater.weight = torch.tensor(part), None
        commanded.cell.updater()
    gained = 1 - (1 - 1e-3) * (1 - part) ** 1000 - 1e-3 if bounds.max is not None else 1000 * part
    assert commanded.weight[0] - 1e-3 == pytest.approx(gained, rel=5e-3)


@pytest.mark.parametrize("bounds", [PowerBounds(0.0, 1.0), PowerBounds(max=1.0)], ids=str)
def test_small_steps_of_a_row_are_not_rounded_alike(bounds):
    layer = nn.Linear(10_000, 1)
    nn.init.uniform_(layer.weight, 0.1, 0.9)
    cell = Cell(layer, snn.Leaky(beta=0.9))
    cell.updater.weight.bounds = bounds
    before = layer.weight.detach().double()
    for _ in range(500):
        cell.updater.weight = torch.tensor(1e-6), None
        cell.updater()
    moved = (layer.weight.double() - before).mean().item()
    expected = ((1 - before) * (1 - (1 - 1e-6) ** 500)).mean().item()
    assert moved == pytest.approx(expected, rel=2e-3)


def test_a_large_range_keeps_small_steps():
    commanded = CommandedCell(value=0.5)
    commanded.cell.updater.weight.bounds = PowerBounds(0.0, 1e6, scaled=True)
    for _ in range(10):
        commanded.cell.updater.weight = torch.tensor(1e-2), None
        commanded.cell.updater()
    assert commanded.weight[0] == pytest.approx(0.6, rel=1e-4)


@pytest.mark.parametrize("value", [3.0, float("nan")])
def test_a_change_by_a_fused_optimizer_is_noticed(value):
    commanded = CommandedCell(value=0.5)
    commanded.cell.updater.weight.bounds = PowerBounds(-1.0, 1.0)
    optimizer = torch.optim.SGD([commanded.layer.weight], lr=1.0, fused=True)
    for _ in range(2):
        commanded.cell.updater.weight = torch.tensor(0.1), None
        commanded.cell.updater()
    before = commanded.weight[0]
    commanded.layer.weight.grad = torch.full_like(commanded.layer.weight, before - value)
    optimizer.step()
    commanded.cell.updater.weight = torch.tensor(0.1), None
    if math.isnan(value):
        with pytest.raises(NonFiniteError):
            commanded.cell.updater()
    else:
        commanded.cell.updater()
        assert commanded.weight == [pytest.approx(3.0)]


def test_parameters_that_share_a_version_are_all_changed():
    both = torch.full((2,), 0.5)
    commanded = CommandedCell(), CommandedCell()
    homeostasis = LinearHomeostasis(0.25, 0.5, "bias")
    for number, each in enumerate(commanded):
        each.layer.bias = nn.Parameter(both[number : number + 1])
        homeostasis.register_cell(str(number), each.cell)
        each.cell.updater.bias = torch.tensor([0.1]), None
    commanded[1].cell.updater.bias.bounds = PowerBounds(-2.0, 1.0)
    homeostasis.update()
    assert both.tolist() == pytest.approx([0.6, 0.55])


def test_a_value_set_outside_after_an_update_stays_there():
    commanded = CommandedCell(value=0.5)
    commanded.cell.updater.weight.bounds = PowerBounds(0.0, 1.0)
    for value, expected in ((0.5, 0.75), (3.0, 3.0), (0.5, 0.75)):
        with torch.no_grad():
            commanded.cell.connection.weight.fill_(value)
        commanded.cell.updater.weight = torch.tensor(0.5), None
        commanded.cell.updater()
        assert commanded.weight == [expected]


def test_a_part_that_is_missing_is_as_exact_as_the_other():
    commanded = CommandedCell(value=0.5)
    commanded.layer.half()
    seen = []

    def noting(param, pos, neg):
        seen.extend([pos.dtype, neg.dtype])
        return pos - neg

    commanded.cell.updater.weight.bounds = noting
    commanded.cell.updater.weight = torch.tensor(0.25), None
    commanded.cell.updater()
    assert seen == [torch.float32, torch.float32]


def test_sharp_bounds_take_what_broadcasts():
    delta = SharpBounds(max=1)(torch.tensor([0, 2]), torch.tensor([[0.5], [0.25]]), torch.tensor(0.0))
    assert delta.tolist() == [[0.5, 0.0], [0.25, 0.0]]


class Late(ClampBounds):
    """A formula that cannot work for one shape, which shows only when it sees the parameter."""

    def __call__(self, param, pos, neg):
        if param.shape == (3, 8):
            raise ValueError("not for this layer")
        return pos - neg


def test_a_formula_that_fails_for_one_layer_changes_none():
    leaky = [snn.Leaky(beta=0.9, init_hidden=True) for _ in range(2)]
    net = nn.Sequential(nn.Linear(6, 8), leaky[0], nn.Linear(8, 3), leaky[1])
    homeostasis = LinearHomeostasis(0.1, 0.2, bounds=Late(-1.0, 1.0)).attach(net)
    with torch.no_grad():
        net(torch.rand(4, 6))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with pytest.raises(ValueError, match="not for this layer"):
        homeostasis.step()
    assert all(map(torch.equal, net.parameters(), before))
