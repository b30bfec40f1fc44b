"""The linear rule against plain loops in float64, and what it promises around the formula."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from cases import MAX_DELAY, PARAMS, Puppet, case

from snn_homeostasis import (
    ArgumentError,
    ClampBounds,
    CumulativeRate,
    ExponentialRate,
    HomeostasisWarning,
    LinearHomeostasis,
    PowerBounds,
    SharpBounds,
)

BATCH, UPDATES, PLASTICITY = 3, 20, 0.02
LOW, HIGH = -0.2, 0.3


def power(p, pos, neg):
    return np.maximum(HIGH - p, 0) ** 1.0 * pos - np.maximum(p - LOW, 0) ** 2.0 * neg


def scaled(p, pos, neg):
    width = HIGH - LOW
    return np.maximum(HIGH - p, 0) / width * pos - np.maximum(p - LOW, 0) / width * neg


def sharp(p, pos, neg):
    return np.heaviside(HIGH - p, 1.0) * pos - np.heaviside(p - LOW, 1.0) * neg


def clamp(p, pos, neg):
    return np.minimum(np.maximum(p + pos - neg, LOW), HIGH) - p


BOUNDS = {
    "none": (None, lambda p, pos, neg: pos - neg),
    "power": (PowerBounds(LOW, HIGH, power=(1.0, 2.0)), power),
    "scaled": (PowerBounds(LOW, HIGH, scaled=True), scaled),
    "sharp": (SharpBounds(LOW, HIGH), sharp),
    "clamp": (ClampBounds(LOW, HIGH), clamp),
}
TARGETS = {
    "scalar": lambda shape: 0.25,
    "neurons": lambda shape: 0.05 + 0.5 * torch.rand(*shape, dtype=torch.float64),
    "samples": lambda shape: 0.05 + 0.5 * torch.rand(BATCH, *shape, dtype=torch.float64),
}


class SpikeCounter:
    """A plain hook that counts the spikes of a neuron by itself."""

    def __init__(self, each, neuron):
        self.each, self.counts, self.steps = each, 0.0, 0
        neuron.register_forward_hook(self)

    def __call__(self, neuron, args, output):
        spikes = self.each.spikes(output).double().cpu().numpy()
        self.counts, self.steps = self.counts + spikes.sum(0), self.steps + len(spikes)

    @property
    def rate(self):
        return self.counts / self.steps


class Oracle:
    """The rule in plain loops over parameters, samples and positions."""

    def __init__(self, each, kind, size, *, plasticity=PLASTICITY, reduce=np.mean):
        self.size, self.plasticity, self.reduce = size, plasticity, reduce
        self.sets = {index: tuple(each.drivers[kind](index)) for index in np.ndindex(*size)}

    def parts(self, rate, target):
        """The magnitudes pos and neg of every entry, from rates ``[B, *N]``."""
        target = np.broadcast_to(np.asarray(target, dtype=np.float64), rate.shape)
        rate, target = (values.reshape(len(rate), -1).tolist() for values in (rate, target))
        shared = {positions: self._parts_of(positions, rate, target) for positions in self.sets.values()}
        both = np.zeros((2, *self.size))
        for index, positions in self.sets.items():
            both[(slice(None), *index)] = shared[positions]
        return both

    def _parts_of(self, positions, rate, target):
        ks = []
        for r, t in zip(rate, target, strict=True):
            total = 0.0
            for n in positions:
                total += (t[n] - r[n]) / t[n]
            ks.append(self.plasticity * total / len(positions))
        pos, neg = [max(k, 0.0) for k in ks], [min(k, 0.0) for k in ks]
        return self.reduce(pos), abs(self.reduce(neg))


def registered(each, built, kind, **settings):
    """A rule with this one cell."""
    homeostasis = LinearHomeostasis(PLASTICITY, param=kind)
    cancelled = kind == "weight" and built.norm is not None
    with pytest.warns(HomeostasisWarning, match="cancels") if cancelled else nullcontext():
        homeostasis.register_cell("cell", built.cell(), **settings)
    return homeostasis


def as_array(tensor):
    return tensor.detach().cpu().double().numpy().copy() if isinstance(tensor, torch.Tensor) else tensor


def assert_follows(each, kind, bounds, target, *, reduction=None, **oracle_settings):
    """Checks every one of some updates against the oracle."""
    built = each.build()
    bounds, bound = BOUNDS[bounds]
    homeostasis = registered(each, built, kind, target=target, bounds=bounds, batch_reduction=reduction)
    counter = SpikeCounter(each, built.neuron)
    before = first = as_array(built.parameter(kind))
    oracle = Oracle(each, kind, before.shape, **oracle_settings)
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


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize(("each", "kind"), PARAMS, ids=str)
@pytest.mark.filterwarnings("ignore:All delays of a neuron:snn_homeostasis.HomeostasisWarning")
def test_rule_agrees_with_plain_loops(each, kind, bounds, target):
    plasticity = -PLASTICITY if kind == "delay" else PLASTICITY
    assert_follows(each, kind, bounds, TARGETS[target](each.shape), plasticity=plasticity)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize(
    ("reduction", "reduce"),
    [
        (torch.sum, np.sum),
        (torch.amax, np.max),
        (lambda part, dim: part.abs().amax(dim), lambda ks: max(map(abs, ks))),
    ],
    ids=["sum", "amax", "own"],
)
@pytest.mark.parametrize("id", ["linear", "conv2d", "transposed1d-groups", "rleaky-v-scalar"])
def test_batch_reduction_takes_both_parts(id, reduction, reduce, bounds):
    each = case(id)
    assert_follows(each, "weight", bounds, 0.25, reduction=reduction, reduce=reduce)


def regulated(*puppets, kind=LinearHomeostasis, **settings):
    """A rule with the cells "a", "b" and so on."""
    homeostasis = kind(**{"plasticity": 0.5, "target": 0.5} | settings)
    for name, puppet in zip("abc", puppets, strict=False):
        homeostasis.register_cell(name, puppet.cell)
    return homeostasis


@pytest.mark.parametrize("param", ["weight", "bias"])
@pytest.mark.parametrize("plasticity", [0.25, -0.25])
@pytest.mark.parametrize("fires", [0, 1])
def test_positive_plasticity_raises_silent_neurons_and_lowers_busy_ones(plasticity, fires, param):
    puppet = Puppet()
    homeostasis = regulated(puppet, plasticity=plasticity, param=param)
    puppet.fire(fires)
    homeostasis.step()
    assert getattr(puppet, param) == [-plasticity if fires else plasticity]
    assert getattr(puppet, "bias" if param == "weight" else "weight") == [0.0]


def test_parts_are_split_before_the_batch_is_reduced():
    puppet = Puppet(value=0.75)
    homeostasis = regulated(puppet, bounds=PowerBounds(0.0, 1.0))
    puppet.fire(0, 1)
    homeostasis()
    slot = puppet.cell.updater.weight
    assert (slot.pos.tolist(), slot.neg.tolist()) == ([[0.25]], [[0.25]])
    homeostasis.update()
    # the mean of k over the batch is 0: split after it, nothing would change
    assert puppet.weight == [0.75 + 0.25 * 0.25 - 0.75 * 0.25]


def test_positions_are_averaged_before_the_split():
    puppet = Puppet()
    homeostasis = regulated(puppet)
    puppet.neuron(torch.tensor([[[0.0], [1.0]]]))
    homeostasis()
    slot = puppet.cell.updater.weight
    assert (slot.pos.tolist(), slot.neg.tolist()) == ([[0.0]], [[0.0]])


def test_cells_selects():
    a, b, c = Puppet(), Puppet(2), Puppet(3)
    homeostasis = regulated(a, b, c)
    for puppet in (a, b, c):
        puppet.fire(0)
    homeostasis(cells=["c", "a"])
    assert [puppet.cell.updater.weight.pending for puppet in (a, b, c)] == [True, False, True]
    homeostasis.update()
    homeostasis.step(cells="b")
    assert (a.weight, b.weight, c.weight) == ([0.5], [0.5] * 2, [0.5] * 3)


def test_each_cell_has_its_own_target():
    a, b = Puppet(), Puppet(2)
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
    a, b = Puppet(), Puppet()
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
    homeostasis = LinearHomeostasis(plasticity=PLASTICITY)
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
        # a step over all cells at once rounds otherwise than one that has bounds to keep
        return all(
            torch.allclose(one, other, rtol=0, atol=1e-6) for one, other in zip(some, others, strict=True)
        )

    together = runs_of(ids, fresh(), settings)
    first, second = fresh(), fresh()
    idle = [{"target": 0.3, "plasticity": 0.0}] * 2
    assert same(together[0], runs_of(ids, first, [settings[0], idle[1]])[0])
    assert same(together[1], runs_of(ids, second, [idle[0], settings[1]])[1])
    assert not same(together[0], runs_of(ids, fresh(), idle)[0])


def test_every_argument_can_be_overridden_for_a_cell():
    a, b = Puppet(), Puppet()
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
    for puppet in (a, b):
        puppet.fire(0, 0)
    homeostasis.step()
    assert (a.weight, a.bias) == ([0.5], [0.0])
    assert (b.weight, b.bias) == ([0.0], [0.375])  # two samples of 0.25 each, clamped
    assert isinstance(unit.rate, ExponentialRate)
    assert unit.rate.tau == 3.0
    assert isinstance(homeostasis.units["a"].rate, CumulativeRate)
    assert (unit.cell, unit.state.plasticity, unit.state.target) == (b.cell, 0.25, 0.8)
    assert (unit.state.param, unit.state.batch_reduction) == ("bias", torch.sum)


def test_forward_writes_slots_only():
    puppet = Puppet(2)
    homeostasis = regulated(puppet)
    puppet.fire(0)
    versions = [value._version for value in puppet.layer.parameters()]
    homeostasis()
    assert puppet.cell.updater.weight.pending
    assert [value._version for value in puppet.layer.parameters()] == versions


@pytest.mark.parametrize("apply", ["homeostasis", "updater"])
def test_update_applies_once(apply):
    puppet = Puppet()
    homeostasis = regulated(puppet)
    puppet.fire(0)
    homeostasis()
    homeostasis()
    update = homeostasis.update if apply == "homeostasis" else puppet.cell.updater
    update()
    assert puppet.weight == [1.0]  # both calls of the rule are in
    slot = puppet.cell.updater.weight
    assert (slot.pos, slot.neg, slot.pending) == (None, None, False)
    update()
    assert puppet.weight == [1.0]


def test_step_leaves_nothing_pending():
    puppet = Puppet()
    homeostasis = regulated(puppet)
    puppet.fire(0)
    homeostasis.step()
    homeostasis.update()
    assert puppet.weight == [0.5]


def test_cleared_slot_changes_nothing():
    puppet = Puppet()
    homeostasis = regulated(puppet)
    puppet.fire(0)
    homeostasis()
    puppet.cell.updater.clear()
    homeostasis.update()
    assert puppet.weight == [0.0]


def test_several_rules_add_to_one_slot():
    puppet = Puppet(value=0.5)
    bounds = PowerBounds(0.0, 1.0)
    first = regulated(puppet, bounds=bounds)
    second = regulated(puppet, plasticity=0.25, target=0.8, bounds=bounds)
    puppet.fire(0, 1)
    first()
    second()
    puppet.cell.updater.weight = (torch.tensor(0.125), torch.tensor(-0.0625))
    slot = puppet.cell.updater.weight
    assert slot.pos.item() == pytest.approx(0.25 + 0.125 + 0.125)
    assert slot.neg.item() == pytest.approx(0.25 + 0.03125 + 0.0625)
    first.update()
    second.update()
    assert puppet.weight == pytest.approx([0.5 + 0.5 * (0.5 - 0.34375)])


def test_slot_keeps_magnitudes_whichever_sign_the_negative_part_has():
    a, b = Puppet(), Puppet()
    a.cell.updater.weight = (None, torch.tensor(0.25))
    b.cell.updater.weight = (None, torch.tensor(-0.25))
    a.cell.updater()
    b.cell.updater()
    assert a.weight == b.weight == [-0.25]


def test_tied_layers_get_one_update():
    a, b = Puppet(), Puppet()
    b.layer.weight = a.layer.weight
    homeostasis = regulated(a, b, bounds=PowerBounds(-1.0, 1.0))
    a.fire(0)
    b.fire(1, 0)
    homeostasis()
    homeostasis.update()
    assert a.weight == b.weight == [0.5 + 0.25 - 0.25]
    homeostasis.update()
    assert a.weight == [0.5]


def test_pending_parts_of_a_tied_layer_survive_the_removal_of_the_other():
    a, b = Puppet(), Puppet()
    b.layer.weight = a.layer.weight
    homeostasis = regulated(a, b)
    b.fire(0)
    homeostasis(cells="b")
    homeostasis.remove_cell("a")
    homeostasis.update()
    assert b.weight == [0.5]


def test_delay_of_a_layer_without_one_is_refused():
    with pytest.raises(ArgumentError, match="`param = 'delay'`, and Linear has no such Parameter") as caught:
        LinearHomeostasis(0.01, target=0.1, param="delay").register_cell("a", Puppet().cell)
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


@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_loses_no_update(dtype, start):
    puppet = Puppet(dtype=dtype, value=start)
    homeostasis = regulated(puppet, plasticity=1e-4)
    puppet.fire(0)
    for _ in range(1000):
        homeostasis.step()
    weight, residue = puppet.layer.weight.float(), puppet.cell.updater.weight.residue
    assert puppet.layer.weight.dtype == dtype
    assert residue.dtype == torch.float32
    assert (weight + residue).item() == pytest.approx(start + 0.1, abs=1e-4)
    # numbers of the dtype below 1 are at most half an eps apart
    assert weight.item() == pytest.approx(start + 0.1, abs=max(1e-3, torch.finfo(dtype).eps / 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_to_its_bounds(dtype):
    puppet = Puppet(dtype=dtype, value=0.5)
    homeostasis = regulated(puppet, plasticity=1e-3, bounds=ClampBounds(max=0.625))
    puppet.fire(0)
    for _ in range(200):
        homeostasis.step()
    assert puppet.weight == [0.625]
    assert puppet.cell.updater.weight.residue.tolist() == [[0.0]]


class Upward(LinearHomeostasis):
    """A rule of a user's, which only ever adds."""

    def parts(self, cell, state, rate, target):
        pos, neg = super().parts(cell, state, rate, target)
        return pos, torch.zeros_like(neg)


class Watched(LinearHomeostasis):
    """A rule that wants to know when it is applied."""

    calls = 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        super().forward(*args, **kwargs)


def test_a_rule_with_parts_of_its_own_does_not_take_the_shortcut_of_another():
    puppet = Puppet()
    homeostasis = regulated(puppet, kind=Upward, plasticity=0.25)
    puppet.fire(1)
    homeostasis.step()
    assert puppet.weight == [0.0]


def test_a_forward_of_its_own_is_called_by_every_step():
    puppet = Puppet()
    homeostasis = regulated(puppet, kind=Watched, plasticity=0.25)
    puppet.fire(1)
    homeostasis.step()
    assert (homeostasis.calls, puppet.weight) == (1, [-0.25])


def test_a_step_adds_to_what_is_pending():
    puppet, twin = Puppet(), Puppet()
    for each, straight in ((puppet, False), (twin, True)):
        homeostasis = regulated(each)
        each.fire(1)
        if straight:
            homeostasis.step()
        else:
            homeostasis()
        homeostasis.step()
    assert puppet.weight == twin.weight == [-1.0]
