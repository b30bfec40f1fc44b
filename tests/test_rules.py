"""The linear rule against plain loops in float64, and what it promises around the formula."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from cases import MAX_DELAY, PARAMS, CommandedCell, case, pairwise
from oracle import BOUNDS, Oracle, SpikeCounter, as_array

from snn_homeostasis import (
    ArgumentError,
    ClampBounds,
    CumulativeRate,
    ExponentialRate,
    HomeostasisWarning,
    LinearHomeostasis,
    PowerBounds,
)

BATCH, UPDATES, PLASTICITY = 3, 10, 0.04
TARGETS = {
    "scalar": lambda shape: 0.25,
    "neurons": lambda shape: 0.05 + 0.5 * torch.rand(*shape, dtype=torch.float64),
    "samples": lambda shape: 0.05 + 0.5 * torch.rand(BATCH, *shape, dtype=torch.float64),
}
SETTINGS = list(itertools.product(BOUNDS, TARGETS))
# each parameter of each case once, with one setting after the other; and all settings on two cases
AGREEMENTS = [
    *((each.id, kind, *SETTINGS[number % len(SETTINGS)]) for number, (each, kind) in enumerate(PARAMS)),
    *((id, "weight", *setting) for id in ("linear-positions", "conv2d-groups") for setting in SETTINGS),
]


def registered(each, built, kind, **settings):
    """A rule with this one cell."""
    homeostasis = LinearHomeostasis(PLASTICITY, param=kind, rate=CumulativeRate)
    cancelled = kind == "weight" and built.norm is not None
    with pytest.warns(HomeostasisWarning, match="cancels") if cancelled else nullcontext():
        homeostasis.register_cell("cell", built.cell(), **settings)
    return homeostasis


def assert_follows(each, kind, bounds, target, *, reduction=None, **settings):
    """Checks every one of some updates against the oracle."""
    built = each.build()
    bounds, bound = BOUNDS[bounds]
    homeostasis = registered(each, built, kind, target=target, bounds=bounds, batch_reduction=reduction)
    counter = SpikeCounter(each, built.neuron)
    before = first = as_array(built.parameter(kind))
    plasticity = -PLASTICITY if kind == "delay" else PLASTICITY
    oracle = Oracle(each, kind, before.shape, plasticity=plasticity, **settings)
    rounding = torch.finfo(built.parameter(kind).dtype).eps
    for _ in range(UPDATES):
        with torch.no_grad():
            built.run(BATCH)
        homeostasis.step()
        pos, neg = oracle.parts(counter.rate, as_array(target))
        expected = bound(before, pos, neg)
        if kind == "delay":
            expected = np.clip(before + expected, 0, MAX_DELAY) - before
        after = as_array(built.parameter(kind))
        # the two sides may cancel; and the sum is rounded to the dtype of the parameter
        largest = max(np.abs(side).max() for side in (bound(before, pos, 0), bound(before, 0, neg)))
        allowed = 1e-6 * largest + rounding * np.abs(after).max()
        assert np.abs(after - before - expected).max() <= allowed
        before = after
    assert np.abs(before - first).max() > 1e-3


@pytest.mark.parametrize(("id", "kind", "bounds", "target"), dict.fromkeys(AGREEMENTS))
@pytest.mark.filterwarnings("ignore:All delays of a neuron:snn_homeostasis.HomeostasisWarning")
def test_rule_agrees_with_plain_loops(id, kind, bounds, target):
    assert_follows(case(id), kind, bounds, TARGETS[target](case(id).shape))


REDUCTIONS = {
    "sum": (torch.sum, np.sum),
    "amax": (torch.amax, np.max),
    "own": (lambda part, dim: part.abs().amax(dim), lambda ks: max(map(abs, ks))),
}


@pytest.mark.parametrize(
    ("id", "reduction", "bounds"),
    pairwise(["linear", "conv2d", "transposed1d-groups", "rleaky-v-scalar"], REDUCTIONS, BOUNDS),
)
def test_batch_reduction_takes_both_parts(id, reduction, bounds):
    reduction, reduce = REDUCTIONS[reduction]
    assert_follows(case(id), "weight", bounds, 0.25, reduction=reduction, reduce=reduce)


def regulated(*commanded, kind=LinearHomeostasis, **settings):
    """A rule with the cells "a", "b" and so on."""
    homeostasis = kind(**{"plasticity": 0.5, "target": 0.5} | settings)
    for name, each in zip("abc", commanded, strict=False):
        homeostasis.register_cell(name, each.cell)
    return homeostasis


@pytest.mark.parametrize("param", ["weight", "bias"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("fires", [0, 1])
def test_a_step_raises_silent_and_lowers_busy_cells(sign, fires, param):
    commanded = CommandedCell(sign=sign)
    homeostasis = regulated(commanded, plasticity=0.25, param=param)
    commanded.fire(fires)
    homeostasis.step()
    assert getattr(commanded, param) == [sign * (-0.25 if fires else 0.25)]
    assert getattr(commanded, "bias" if param == "weight" else "weight") == [0.0]


def test_parts_are_split_before_the_batch_is_reduced():
    commanded = CommandedCell(value=0.75)
    homeostasis = regulated(commanded, bounds=PowerBounds(0.0, 1.0))
    commanded.fire(0, 1)
    homeostasis()
    slot = commanded.cell.updater.weight
    assert (slot.pos.tolist(), slot.neg.tolist()) == ([[0.25]], [[0.25]])
    homeostasis.update()
    # the mean of k over the batch is 0: split after it, nothing would change
    assert commanded.weight == [0.75 + 0.25 * 0.25 - 0.75 * 0.25]


def test_positions_are_averaged_before_the_split():
    commanded = CommandedCell()
    homeostasis = regulated(commanded)
    commanded.neuron(torch.tensor([[[0.0], [1.0]]]))
    homeostasis()
    slot = commanded.cell.updater.weight
    assert (slot.pos.tolist(), slot.neg.tolist()) == ([[0.0]], [[0.0]])


def test_cells_selects_which_cells_change():
    a, b, c = CommandedCell(), CommandedCell(2), CommandedCell(3)
    homeostasis = regulated(a, b, c)
    for each in (a, b, c):
        each.fire(0)
    homeostasis(cells=["c", "a"])
    assert [each.cell.updater.weight.pending for each in (a, b, c)] == [True, False, True]
    homeostasis.update()
    homeostasis.step(cells="b")
    assert (a.weight, b.weight, c.weight) == ([0.5], [0.5] * 2, [0.5] * 3)


def test_each_cell_has_its_own_target():
    a, b = CommandedCell(), CommandedCell(2)
    homeostasis = LinearHomeostasis(plasticity=0.5)
    homeostasis.register_cell("a", a.cell, target=0.25)
    homeostasis.register_cell("b", b.cell, target=torch.tensor([0.5, 0.8]))
    a.fire(1)
    b.fire(1)
    homeostasis.step()
    assert a.weight == pytest.approx([-1.5])
    assert b.weight == pytest.approx([-0.5, -0.125])


@pytest.mark.parametrize("target", [0.8, torch.tensor([0.8])], ids=["number", "tensor"])
def test_target_of_a_call_ends_with_the_call(target):
    a, b = CommandedCell(), CommandedCell()
    homeostasis = LinearHomeostasis(plasticity=0.5, target=0.25)
    homeostasis.register_cell("a", a.cell)
    homeostasis.register_cell("b", b.cell, target=0.5)
    a.fire(1)
    b.fire(1)
    homeostasis.step(target=target)
    assert (a.weight, b.weight) == (pytest.approx([-0.125]), pytest.approx([-0.125]))
    homeostasis.step()
    assert (a.weight, b.weight) == (pytest.approx([-0.125 - 1.5]), pytest.approx([-0.125 - 0.5]))


def runs_of(ids, builts, settings):
    """Parameters after some updates of these cells by one rule."""
    homeostasis = LinearHomeostasis(plasticity=PLASTICITY, rate=CumulativeRate)
    for id, built, options in zip(ids, builts, settings, strict=True):
        homeostasis.register_cell(id, built.cell(), **options)
    for step in range(UPDATES):
        for seed, built in enumerate(builts):
            torch.manual_seed(100 * step + seed)
            with torch.no_grad():
                built.run(BATCH)
        homeostasis.step()
    return [[value.clone() for value in built.layer.parameters()] for built in builts]


def test_cells_never_touch_each_other():
    ids = ["linear", "conv2d"]
    settings = [
        {"target": torch.full((5,), 0.1), "rate": partial(ExponentialRate, tau=5.0), "param": "bias"},
        {"target": 0.4, "bounds": ClampBounds(-0.3, 0.3)},
    ]

    def fresh():
        torch.manual_seed(1)
        return [case(id).build() for id in ids]

    def same(some, others):
        # a step without bounds rounds differently from one with bounds
        return all(
            torch.allclose(one, other, rtol=0, atol=1e-6) for one, other in zip(some, others, strict=True)
        )

    together = runs_of(ids, fresh(), settings)
    first, second = fresh(), fresh()
    idle = [{"target": 0.3, "plasticity": 1e-30}] * 2
    assert same(together[0], runs_of(ids, first, [settings[0], idle[1]])[0])
    assert same(together[1], runs_of(ids, second, [idle[0], settings[1]])[1])
    assert not same(together[0], runs_of(ids, fresh(), idle)[0])


def test_every_argument_can_be_overridden_for_a_cell():
    a, b = CommandedCell(), CommandedCell()
    homeostasis = regulated(a, plasticity=0.5, target=0.5)
    unit = homeostasis.register_cell(
        "b",
        b.cell,
        plasticity=0.25,
        target=0.8,
        param="BIAS",
        batch_reduction=torch.sum,
        rate=partial(ExponentialRate, tau=3.0),
        bounds=ClampBounds(max=0.375),
    )
    for each in (a, b):
        each.fire(0, 0)
    homeostasis.step()
    assert (a.weight, a.bias) == ([0.5], [0.0])
    assert (b.weight, b.bias) == ([0.0], [0.375])  # two samples of 0.25 each, clamped
    assert isinstance(unit.rate, ExponentialRate)
    assert unit.rate.tau == 3.0
    assert isinstance(homeostasis.units["a"].rate, CumulativeRate)
    assert (unit.cell, unit.state.plasticity, unit.state.target) == (b.cell, 0.25, 0.8)
    assert (unit.state.param, unit.state.batch_reduction) == ("bias", torch.sum)


def test_forward_writes_slots_only():
    commanded = CommandedCell(2)
    homeostasis = regulated(commanded)
    commanded.fire(0)
    versions = [value._version for value in commanded.layer.parameters()]
    homeostasis()
    assert commanded.cell.updater.weight.pending
    assert [value._version for value in commanded.layer.parameters()] == versions


@pytest.mark.parametrize("apply", ["homeostasis", "updater"])
def test_update_applies_what_is_pending_once(apply):
    commanded = CommandedCell()
    homeostasis = regulated(commanded)
    commanded.fire(0)
    homeostasis()
    homeostasis()
    update = homeostasis.update if apply == "homeostasis" else commanded.cell.updater
    update()
    assert commanded.weight == [1.0]  # both calls of the rule are in
    slot = commanded.cell.updater.weight
    assert (slot.pos, slot.neg, slot.pending) == (None, None, False)
    update()
    assert commanded.weight == [1.0]


def test_step_leaves_nothing_pending():
    commanded = CommandedCell()
    homeostasis = regulated(commanded)
    commanded.fire(0)
    homeostasis.step()
    homeostasis.update()
    assert commanded.weight == [0.5]


def test_cleared_slot_changes_nothing():
    commanded = CommandedCell()
    homeostasis = regulated(commanded)
    commanded.fire(0)
    homeostasis()
    commanded.cell.updater.clear()
    homeostasis.update()
    assert commanded.weight == [0.0]


def test_several_rules_add_to_one_slot():
    commanded = CommandedCell(value=0.5)
    bounds = PowerBounds(0.0, 1.0)
    first = regulated(commanded, bounds=bounds)
    second = regulated(commanded, plasticity=0.25, target=0.8, bounds=bounds)
    commanded.fire(0, 1)
    first()
    second()
    commanded.cell.updater.weight = (torch.tensor(0.125), torch.tensor(-0.0625))
    slot = commanded.cell.updater.weight
    assert slot.pos.item() == pytest.approx(0.25 + 0.125 + 0.125)
    assert slot.neg.item() == pytest.approx(0.25 + 0.03125 + 0.0625)
    first.update()
    second.update()
    assert commanded.weight == pytest.approx([0.5 + 0.5 * (0.5 - 0.34375)])


def test_slot_ignores_the_sign_of_the_negative_part():
    a, b = CommandedCell(), CommandedCell()
    a.cell.updater.weight = (None, torch.tensor(0.25))
    b.cell.updater.weight = (None, torch.tensor(-0.25))
    a.cell.updater()
    b.cell.updater()
    assert a.weight == b.weight == [-0.25]


def test_tied_layers_get_one_update():
    a, b = CommandedCell(), CommandedCell()
    b.layer.weight = a.layer.weight
    homeostasis = regulated(a, b, bounds=PowerBounds(-1.0, 1.0))
    a.fire(0)
    b.fire(1, 0)
    homeostasis()
    homeostasis.update()
    assert a.weight == b.weight == [0.5 + 0.25 - 0.25]
    homeostasis.update()
    assert a.weight == [0.5]


def test_pending_parts_survive_the_removal_of_a_tied_layer():
    a, b = CommandedCell(), CommandedCell()
    b.layer.weight = a.layer.weight
    homeostasis = regulated(a, b)
    b.fire(0)
    homeostasis(cells="b")
    homeostasis.remove_cell("a")
    homeostasis.update()
    assert b.weight == [0.5]


def test_delay_of_a_layer_without_one_is_refused():
    with pytest.raises(ArgumentError, match="`param = 'delay'`, and Linear has no such Parameter") as caught:
        LinearHomeostasis(0.01, target=0.1, param="delay").register_cell("a", CommandedCell().cell)
    assert "'a'" in str(caught.value)


def test_pruned_weights_stay_zero():
    built = case("linear-pruned").build()
    homeostasis = registered(case("linear-pruned"), built, "weight", target=0.25)
    zeros = built.layer.weight == 0
    with torch.no_grad():
        built.run(BATCH)
        homeostasis.step()
        built.run(BATCH)
    assert zeros.any()
    assert torch.equal(built.layer.weight == 0, zeros)


@pytest.mark.filterwarnings("ignore:`step` should be called once")
@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_loses_no_update(dtype, start):
    commanded = CommandedCell(dtype=dtype, value=start)
    homeostasis = regulated(commanded, plasticity=1e-4)
    commanded.fire(0)
    for _ in range(1000):
        homeostasis.step()
    weight, residue = commanded.layer.weight.float(), commanded.cell.updater.weight.residue
    assert commanded.layer.weight.dtype == dtype
    assert residue.dtype == torch.float32
    assert (weight + residue).item() == pytest.approx(start + 0.1, abs=1e-4)
    # numbers of the dtype below 1 are at most half an eps apart
    assert weight.item() == pytest.approx(start + 0.1, abs=max(1e-3, torch.finfo(dtype).eps / 4))


@pytest.mark.filterwarnings("ignore:`step` should be called once")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_to_its_bounds(dtype):
    commanded = CommandedCell(dtype=dtype, value=0.5)
    homeostasis = regulated(commanded, plasticity=1e-3, bounds=ClampBounds(max=0.625))
    commanded.fire(0)
    for _ in range(200):
        homeostasis.step()
    assert commanded.weight == [0.625]
    assert commanded.cell.updater.weight.residue.tolist() == [[0.0]]


class Upward(LinearHomeostasis):
    """A user's rule, which only raises the parameter."""

    def parts(self, cell, state, rate, target):
        pos, neg = super().parts(cell, state, rate, target)
        return pos, torch.zeros_like(neg)


class Watched(LinearHomeostasis):
    """A user's rule, which counts its calls."""

    calls = 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        super().forward(*args, **kwargs)


def test_a_step_uses_the_parts_that_a_subclass_defines():
    commanded = CommandedCell()
    homeostasis = regulated(commanded, kind=Upward, plasticity=0.25)
    commanded.fire(1)
    homeostasis.step()
    assert commanded.weight == [0.0]


def test_a_step_calls_the_forward_that_a_subclass_defines():
    commanded = CommandedCell()
    homeostasis = regulated(commanded, kind=Watched, plasticity=0.25)
    commanded.fire(1)
    homeostasis.step()
    assert (homeostasis.calls, commanded.weight) == (1, [-0.25])


class Selective(LinearHomeostasis):
    """A user's rule, which freezes itself once it has looked at the rates."""

    def forward(self, *args, **kwargs):
        super().forward(*args, **kwargs)
        self.eval()


def test_a_step_moves_nothing_that_its_forward_freezes():
    commanded = CommandedCell()
    homeostasis = regulated(commanded, kind=Selective, plasticity=0.25)
    commanded.fire(1)
    homeostasis.step()
    assert commanded.weight == [0.0]


class Always(LinearHomeostasis):
    """The base of a mixin must not make its formula linear."""


class Mixin:
    def parts(self, cell, state, rate, target):
        return torch.ones(()), torch.zeros(())


class Mixed(Mixin, Always):
    pass


def test_a_mixed_in_formula_is_not_taken_for_a_linear_one():
    cell = CommandedCell()
    homeostasis = regulated(cell, kind=Mixed, plasticity=0.25)
    cell.fire(0)
    homeostasis.step()
    assert cell.weight == [1.0]


def test_a_formula_of_the_object_is_not_taken_for_a_linear_one():
    cell = CommandedCell()
    homeostasis = regulated(cell, plasticity=0.25)
    homeostasis.parts = lambda cell, state, rate, target: (torch.ones(()), torch.zeros(()))
    cell.fire(0)
    homeostasis.step()
    assert cell.weight == [1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_target_in_half_precision_is_used_exactly(dtype):
    cell = CommandedCell(2)
    target = torch.tensor([0.1, 0.3], dtype=dtype)
    homeostasis = regulated(cell, plasticity=1.0, target=target)
    cell.fire(1)
    homeostasis.step()
    expected = ((target.double() - 1) / target.double()).tolist()
    assert cell.weight == pytest.approx(expected, rel=1e-6)
