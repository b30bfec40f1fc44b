"""Inferno's own rule on our cells; and each fault of inferno next to the right result here."""

from __future__ import annotations

import warnings

import pytest
import snntorch as snn
import torch
from cases import PARAMS, CommandedCell, case
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ClampBounds,
    CumulativeRate,
    ExponentialRate,
    HomeostasisWarning,
    LinearHomeostasis,
    PowerBounds,
)

inferno = pytest.importorskip("inferno")
from inferno import functional, learn, neural, observe  # noqa: E402

BATCH, UPDATES, PLASTICITY, TARGET = 3, 10, 0.02, 0.25


def fresh(*ids):
    """The same layers and neurons at each call."""
    torch.manual_seed(1)
    return [case(id).build() for id in ids]


def history(builts, kind, step):
    """The parameters after each of some updates."""
    values = []
    for seed in range(UPDATES):
        torch.manual_seed(seed)
        with torch.no_grad():
            for built in builts:
                built.run(BATCH)
        step()
        values.append([built.parameter(kind).detach().clone() for built in builts])
    return values


def history_of_ours(builts, kind, **settings):
    homeostasis = LinearHomeostasis(
        PLASTICITY, param=kind, **{"target": TARGET, "rate": CumulativeRate} | settings
    )
    for number, built in enumerate(builts):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HomeostasisWarning)
            homeostasis.register_cell(str(number), built.cell())
    return history(builts, kind, homeostasis.step)


def history_of_infernos(builts, kind, *, target=TARGET, batch_reduction=None):
    number = target if isinstance(target, float) else None
    trainer = learn.LinearHomeostasis(PLASTICITY, number, kind, batch_reduction)
    # inferno holds cells weakly
    cells = [built.cell() for built in builts]
    for name, cell in enumerate(cells):
        trainer.register_cell(str(name), cell, target=target)

    def step():
        trainer()
        for cell in cells:
            cell.updater()

    return history(builts, kind, step)


def assert_same(ours, theirs):
    first, last = ours[0], ours[-1]
    assert all(not torch.equal(a, b) for a, b in zip(first, last, strict=True))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("each", "kind"), PARAMS, ids=str)
def test_infernos_rule_on_our_cells_agrees_with_ours(each, kind):
    ours = history_of_ours(fresh(each.id), kind)
    assert_same(ours, history_of_infernos(fresh(each.id), kind))


@pytest.mark.parametrize("ids", [("linear", "conv2d"), ("conv2d", "linear", "transposed1d-groups")], ids=str)
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_infernos_rule_agrees_on_cells_of_different_widths(ids, kind):
    ours = history_of_ours(fresh(*ids), kind)
    assert_same(ours, history_of_infernos(fresh(*ids), kind))


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_infernos_rule_agrees_with_a_target_for_each_neuron(kind):
    target = torch.linspace(0.1, 0.6, 5, dtype=torch.float64)[None]
    ours = history_of_ours(fresh("linear"), kind, target=target)
    assert_same(ours, history_of_infernos(fresh("linear"), kind, target=target))


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_infernos_rule_agrees_with_another_batch_reduction(kind):
    ours = history_of_ours(fresh("conv2d"), kind, batch_reduction=torch.sum)
    assert_same(ours, history_of_infernos(fresh("conv2d"), kind, batch_reduction=torch.sum))


def infernos_layer(size=1, *, value=2.0, batch=1):
    """A layer of inferno's, whose neurons fire wherever the input is 1."""
    connection = neural.LinearDense(
        1,
        size,
        1.0,
        synapse=neural.DeltaCurrent.partialconstructor(1.0),
        batch_size=batch,
        weight_init=lambda weight: torch.full_like(weight, value),
    )
    connection.updater = connection.defaultupdater()
    potentials = {"rest_v": 0.0, "reset_v": 0.0, "thresh_v": 0.5}
    neuron = neural.LIF(size, 1.0, **potentials, refrac_t=0.0, time_constant=0.01, batch_size=batch)
    return neural.Serial(connection, neuron)


def trained(*layers, plasticity=0.5, target=0.5):
    """Inferno's rule with the cells "a", "b" and so on."""
    trainer = learn.LinearHomeostasis(plasticity, target, "weight")
    for name, layer in zip("abc", layers, strict=False):
        trainer.register_cell(name, layer.cell)
    return trainer


def regulated(*commanded, **settings):
    """Our rule with cells of the same names."""
    homeostasis = LinearHomeostasis(0.5, **{"target": 0.5, "rate": CumulativeRate} | settings)
    for name, each in zip("abc", commanded, strict=False):
        homeostasis.register_cell(name, each.cell)
    return homeostasis


def test_busy_cells_come_down():
    layer = infernos_layer()
    trainer = trained(layer)
    assert layer(torch.ones(1, 1)).all()
    trainer()
    layer.cell.updater()
    assert layer.cell.connection.weight.item() == 2.5  # up, and the cell was busy

    commanded = CommandedCell(value=2.0)
    homeostasis = regulated(commanded)
    commanded.fire(1)
    homeostasis.step()
    assert commanded.weight == [1.5]


def test_a_runaway_under_inferno_reaches_its_target_here():
    torch.manual_seed(0)
    inputs = (torch.rand(400, 1, 1) < 0.5).float()
    layer = infernos_layer(value=1.0)
    trainer = trained(layer, plasticity=0.05, target=0.2)
    ours, neuron = nn.Linear(1, 1, bias=False), snn.Leaky(beta=0.9, init_hidden=True)
    nn.init.ones_(ours.weight)
    homeostasis = LinearHomeostasis(0.05, target=0.2)
    homeostasis.register_cell("a", Cell(ours, neuron))
    for number, each in enumerate(inputs):
        layer(each)
        trainer()
        layer.cell.updater()
        layer.cell.updater.clear()
        if number % 20 == 0:
            homeostasis.clear()
        neuron(ours(each).detach())
        if number % 20 == 19:
            homeostasis.step()
    assert layer.cell.connection.weight.item() > 10.0
    assert 0.0 < ours.weight.item() < 1.0
    assert homeostasis.rates()["a"].item() == pytest.approx(0.2, abs=0.1)


def test_the_target_of_one_cell_is_not_used_for_the_next():
    a, b = CommandedCell(), CommandedCell()
    trainer = learn.LinearHomeostasis(0.5, None, "weight")
    for name, each, target in (("a", a, 0.25), ("b", b, 0.5)):
        trainer.register_cell(name, each.cell, target=target)
        each.fire(1)
    trainer()
    assert b.cell.updater.weight.neg.item() == a.cell.updater.weight.neg.item() == 1.5

    a, b = CommandedCell(), CommandedCell()
    homeostasis = LinearHomeostasis(0.5)
    for name, each, target in (("a", a, 0.25), ("b", b, 0.5)):
        homeostasis.register_cell(name, each.cell, target=target)
        each.fire(1)
    homeostasis()
    assert (a.cell.updater.weight.neg.item(), b.cell.updater.weight.neg.item()) == (1.5, 0.5)


def test_cells_do_not_share_a_monitor():
    a, b = infernos_layer(3), infernos_layer(2)
    trainer = trained(a, b)
    assert trainer.get_monitor("a", "spike_rate") is trainer.get_monitor("b", "spike_rate")
    a(torch.ones(1, 1))
    b(torch.zeros(1, 1))
    trainer()
    assert b.cell.updater.weight.neg.shape == a.cell.updater.weight.neg.shape == (3, 1)

    a, b = CommandedCell(3), CommandedCell(2)
    homeostasis = regulated(a, b)
    a.fire(1)
    b.fire(0)
    homeostasis.step()
    assert (a.weight, b.weight) == ([-0.5] * 3, [0.5] * 2)


def test_cells_do_not_share_a_monitor_of_infernos_trainer():
    a, b = CommandedCell(3), CommandedCell(2)
    trainer = trained(a, b)
    assert trainer.get_monitor("a", "spike_rate") is not trainer.get_monitor("b", "spike_rate")
    a.fire(1)
    b.fire(0)
    trainer()
    a.cell.updater()
    b.cell.updater()
    assert (a.weight, b.weight) == ([-0.5] * 3, [0.5] * 2)


def test_update_applies_what_the_rule_gave():
    layer = infernos_layer()
    trainer = trained(layer)
    layer(torch.ones(1, 1))
    trainer()
    with pytest.raises(AttributeError, match="updater"):
        trainer.update()
    with pytest.raises(TypeError):
        list(trainer.monitors)

    commanded = CommandedCell()
    homeostasis = regulated(commanded)
    commanded.fire(1)
    homeostasis()
    homeostasis.update()
    assert commanded.weight == [-0.5]


@pytest.mark.parametrize("scaled", [False, True])
def test_power_bounds_are_their_formula(scaled):
    param, pos, neg = torch.tensor([0.5, 1.5]), torch.tensor(0.25), torch.tensor(0.125)
    bound = functional.bound_scaled_power if scaled else functional.bound_power
    with pytest.raises(TypeError):
        bound(param, pos, neg, 2.0, 0.0, upper_power=1.0, lower_power=2.0)
    delta = PowerBounds(0.0, 2.0, power=(1.0, 2.0), scaled=scaled)(param, pos, neg)
    width = 2.0 if scaled else 1.0
    expected = (2.0 - param) / width * pos - (param / width) ** 2 * neg
    torch.testing.assert_close(delta, expected)


def test_target_zero_is_refused_everywhere():
    layer = infernos_layer()
    trainer = learn.LinearHomeostasis(0.5, None, "weight")
    trainer.register_cell("a", layer.cell, target=0.0)
    layer(torch.ones(1, 1))
    trainer()
    layer.cell.updater()
    assert not layer.cell.connection.weight.isfinite().any()

    commanded = CommandedCell()
    homeostasis = LinearHomeostasis(0.5)
    with pytest.raises(ArgumentError, match="target"):
        LinearHomeostasis(0.5, target=0.0)
    with pytest.raises(ArgumentError, match="target"):
        homeostasis.register_cell("a", commanded.cell, target=0.0)
    homeostasis.register_cell("a", commanded.cell)
    commanded.fire(1)
    with pytest.raises(ArgumentError, match="target"):
        homeostasis.step(target=torch.tensor(0.0))
    assert commanded.weight == [0.0]


def test_the_constructor_takes_a_target_tensor_and_saves_it():
    target = torch.tensor([0.25, 0.5])
    with pytest.raises(ValueError, match="one element"):
        learn.LinearHomeostasis(0.5, target, "weight")
    trainer = learn.LinearHomeostasis(0.5, None, "weight")
    layer = infernos_layer(2)
    trainer.register_cell("a", layer.cell, target=target[None])
    assert not any("target" in key for key in trainer.state_dict())

    saved = regulated(CommandedCell(2), target=target).state_dict()
    loaded = regulated(CommandedCell(2), target=torch.tensor([0.8, 0.8]))
    loaded.load_state_dict(saved)
    assert torch.equal(loaded.units["a"].state.target, target)


def test_pending_updates_are_no_parameters():
    layer = infernos_layer()
    trainer = trained(layer)
    before = len(list(layer.parameters()))
    layer(torch.ones(1, 1))
    trainer()
    assert len(list(layer.parameters())) == before + 2
    with pytest.raises(RuntimeError, match="Unexpected key"):
        infernos_layer().load_state_dict(layer.state_dict())

    commanded = CommandedCell()
    homeostasis = regulated(commanded)
    before, keys = list(commanded.layer.parameters()), list(commanded.layer.state_dict())
    commanded.fire(1)
    homeostasis()
    assert list(homeostasis.parameters()) == []
    assert all(map(torch.Tensor.is_set_to, commanded.layer.parameters(), before))
    assert list(commanded.layer.state_dict()) == keys
    other = CommandedCell()
    pending = regulated(other)
    pending.load_state_dict(homeostasis.state_dict())
    pending.update()
    assert other.weight == [-0.5]


def test_an_update_is_applied_once():
    layer = infernos_layer()
    trainer = trained(layer)
    layer(torch.ones(1, 1))
    trainer()
    layer.cell.updater()
    layer.cell.updater()
    assert layer.cell.connection.weight.item() == 3.0  # twice 0.5

    commanded = CommandedCell()
    homeostasis = regulated(commanded)
    commanded.fire(1)
    homeostasis()
    commanded.cell.updater()
    commanded.cell.updater()
    assert commanded.weight == [-0.5]


def test_outside_soft_bounds_nothing_flips_or_is_nan():
    param, pos, neg = torch.tensor([1.5]), torch.tensor(0.25), torch.tensor(0.0)
    assert functional.bound_upper_multiplicative(param, pos, 1.0).item() < 0
    assert functional.bound_upper_power(param, pos, 1.0, power=0.5).isnan().all()
    assert PowerBounds(max=1.0)(param, pos, neg).item() == 0.0
    assert PowerBounds(max=1.0, power=0.5)(param, pos, neg).item() == 0.0
    assert PowerBounds(min=2.0)(param, neg, pos).item() == 0.0


def test_a_clamp_clamps():
    param, pos, neg = torch.tensor([0.875]), torch.tensor(0.25), torch.tensor(0.0)
    assert (param + functional.bound_sharp(param, pos, neg, 1.0, 0.0)).item() == 1.125
    assert (param + ClampBounds(0.0, 1.0)(param, pos, neg)).item() == 1.0


def means_of(estimator, batches):
    """The rates after one step of each batch."""
    for batch in batches:
        estimator.update(batch[None])
    return estimator.rate


def test_a_larger_batch_is_accepted():
    reducer = observe.CAReducer(1.0, inclusive=True)
    reducer(torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="must match"):
        reducer(torch.zeros(5, 3))

    rate = means_of(CumulativeRate(), [torch.ones(2, 3), torch.zeros(5, 3)])
    assert torch.equal(rate, torch.full((5, 3), 0.5))


def test_a_smaller_batch_leaves_no_stale_rows():
    reducer = observe.CAReducer(1.0, inclusive=True)
    reducer(torch.tensor([[1.0], [0.0]]))
    reducer(torch.ones(1, 1))
    assert reducer.peek().tolist() == [[1.0], [0.5]]

    rate = means_of(CumulativeRate(), [torch.tensor([[1.0], [0.0]]), torch.ones(1, 1)])
    assert rate.tolist() == [[0.75]]


def test_rates_of_half_precision_models_are_exact():
    reducer = observe.CAReducer(1.0, inclusive=True).to(torch.bfloat16)
    commanded = CommandedCell(dtype=torch.bfloat16)
    homeostasis = regulated(commanded)
    for step in range(1000):
        reducer(torch.tensor([step < 500], dtype=torch.bfloat16))
        commanded.fire(step < 500)
    assert reducer.peek().item() > 0.6
    assert homeostasis.rates()["a"].item() == 0.5
    assert homeostasis.units["a"].rate.rate.dtype == torch.float32


def test_a_change_after_long_silence_is_seen():
    silent, firing = [torch.zeros(1, 1)] * 1000, [torch.ones(1, 1)] * 100
    reducer = observe.CAReducer(1.0, inclusive=True)
    for spikes in silent + firing:
        reducer(spikes)
    assert reducer.peek().item() < 0.1
    assert means_of(ExponentialRate(tau=20.0), silent + firing).item() > 0.99
