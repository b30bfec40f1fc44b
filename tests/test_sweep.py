"""One sweep over all cells does what `forward` and `update` do, and is given up where it cannot."""

import functools
import weakref

import pytest
import torch
from nets import leaky, spikes
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ClampBounds,
    CumulativeRate,
    DelayedLinear,
    DenseConnection,
    ExponentialRate,
    HomeostasisWarning,
    LinearHomeostasis,
    NonFiniteError,
    NoSpikesError,
    PowerBounds,
    SharpBounds,
    WaitingGraphError,
    WindowedRate,
    connect,
    rows,
)
from snn_homeostasis.updates.passes import Passes

RATES = [CumulativeRate, functools.partial(ExponentialRate, 5.0), functools.partial(WindowedRate, 3)]


def a_net() -> nn.Sequential:
    torch.manual_seed(0)
    conv = [nn.Conv2d(1, 4, 3, padding=1), leaky(), nn.ConvTranspose2d(4, 3, 2), leaky(), nn.Flatten()]
    net = nn.Sequential(*conv, nn.Linear(75, 5), leaky())
    for index in (0, 2, 5):  # spikes are float32 whatever the neuron is
        net[index].register_forward_pre_hook(lambda layer, inputs: (inputs[0].to(layer.weight.dtype),))
    return net


def show(net: nn.Module, batch: int = 3, steps: int = 4) -> None:
    with torch.no_grad():
        for _ in range(steps):
            net(3 * spikes(batch, 1, 4, 4))


class Plainly(LinearHomeostasis):
    """The rule without its short form."""

    def parts(self, *args):
        return super().parts(*args)


class Pair:
    """The same model twice: regulated in a sweep, and without."""

    def __init__(self, **settings) -> None:
        self.nets = a_net(), a_net()
        kinds = LinearHomeostasis, Plainly
        self.rules = [kind(**{"plasticity": 0.02, "target": 0.2, **settings}) for kind in kinds]
        for rule, net in zip(self.rules, self.nets, strict=True):
            rule.attach(net)

    @property
    def is_swept(self) -> bool:
        assert self.rules[1]._sweep is None
        sweep = self.rules[0]._sweep
        return sweep is not None and sweep.fits()

    def step(self, *args, **kwargs) -> None:
        """A few time steps and one of each rule, after which all must be equal."""
        for rule, net in zip(self.rules, self.nets, strict=True):
            torch.manual_seed(1)
            show(net, **kwargs)
            rule.step(*args)
        self.compare()

    def compare(self) -> None:
        for one, other in zip(*(net.parameters() for net in self.nets), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-6)

    def change(self, call) -> None:
        for rule, net in zip(self.rules, self.nets, strict=True):
            call(rule, net)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("param", ["weight", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_equals_forward_and_update(rate, param, dtype):
    pair = Pair(rate=rate, param=param)
    pair.change(lambda rule, net: net.to(dtype))
    before = {name: each.clone() for name, each in pair.nets[0].named_parameters()}
    for _ in range(3):
        pair.step()
    assert pair.is_swept
    for name, each in pair.nets[0].named_parameters():
        assert torch.equal(each, before[name]) != name.endswith(param)


def halved(param, pos, neg):
    return 0.5 * pos - 0.25 * neg * (param > 0)


BOUNDS = [
    ClampBounds(-0.05, 0.05),
    SharpBounds(-0.05, 0.05),
    SharpBounds(-9.0, 9.0),
    PowerBounds(-1.0, 1.0),
    PowerBounds(-0.05, 0.2, power=0.5, scaled=True),
    halved,
]


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_it_splits_the_term_where_there_are_bounds(bounds, batch):
    pair = Pair(bounds=bounds, plasticity=0.1)
    targets(pair, (4, 1, 1), (), (5,))
    for _ in range(3):
        pair.step(batch=batch)
    assert pair.is_swept


def test_it_takes_cells_with_bounds_and_without():
    pair = Pair()
    pair.change(lambda rule, net: setattr(rule.cells["3"].updater.weight, "bounds", PowerBounds(-1.0, 1.0)))
    pair.step()
    pair.step()
    assert pair.is_swept


def test_it_keeps_what_half_precision_cannot_hold():
    pair = Pair(plasticity=1e-4)
    pair.change(lambda rule, net: net.bfloat16())
    for _ in range(20):
        pair.step()
    assert pair.is_swept
    for one, other in zip(*(rule.units.values() for rule in pair.rules), strict=True):
        exact = [unit.slot.reference.tensor + unit.slot.residue for unit in (one, other)]
        torch.testing.assert_close(*exact, rtol=0, atol=1e-6)


def test_it_takes_delays_and_warns_of_those_that_are_stuck():
    @torch.no_grad()
    def show(net, rule):
        for _ in range(12):
            net(torch.zeros(2, 3))
            rule.step()

    nets = [nn.Sequential(DelayedLinear(3, 4, max_delay=2), leaky()) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    rules = [
        kind(0.3, 0.9, "delay").attach(net)
        for kind, net in zip((LinearHomeostasis, Plainly), nets, strict=True)
    ]
    for rule, net in zip(rules, nets, strict=True):
        with pytest.warns(HomeostasisWarning, match="at a limit") as caught:
            show(net, rule)
        assert len(caught) == 1
    assert rules[0]._sweep is not None
    torch.testing.assert_close(nets[0][0].delay, nets[1][0].delay)


def targets(pair, *shapes):
    def give(rule, net):
        for unit, shape in zip(rule.units.values(), shapes, strict=True):
            unit.state.target = torch.linspace(0.1, 0.4, torch.Size(shape).numel()).reshape(shape)

    pair.change(give)


def test_each_neuron_may_have_a_target_of_its_own():
    pair = Pair()
    targets(pair, (4, 1, 1), (1, 3, 1, 1), (5,))
    pair.step()
    pair.step()
    assert pair.is_swept


@pytest.mark.parametrize("shapes", [[(4, 4, 4), (), ()], [(), (), (3, 5)]], ids=str)
def test_it_is_given_up_where_what_is_summed_has_several_targets(shapes):
    pair = Pair()
    targets(pair, *shapes)
    pair.step()
    assert not pair.is_swept


def in_place(rule, net):
    rule.units["1"].state.target.mul_(0.5)


def replaced(rule, net):
    net.load_state_dict({name: 0.5 * each for name, each in net.state_dict().items()}, assign=True)


def observed_apart(rule, net):
    with torch.no_grad():
        net[1](torch.ones(3, 4, 4, 4))


def folded(rule, net):
    for unit in rule.units.values():
        unit.rate._fold()


def one_more(rule, net):
    rule.register_cell("again", rule.cells["1"], param="bias", plasticity=0.3)


CHANGES = {
    "cleared": lambda rule, net: rule.clear(),
    "number": lambda rule, net: setattr(rule.units["1"].state, "target", 0.7),
    "tensor": lambda rule, net: setattr(rule.units["1"].state, "target", torch.full((4, 1, 1), 0.7)),
    "plasticity": lambda rule, net: setattr(rule.units["1"].state, "plasticity", -0.3),
    "reduction": lambda rule, net: setattr(rule.units["1"].state, "batch_reduction", torch.sum),
    "bounded": lambda rule, net: setattr(rule.cells["1"].updater.weight, "bounds", ClampBounds(-0.01, 0.01)),
    "replaced": replaced,
    "double": lambda rule, net: net.double(),
    "half": lambda rule, net: net.bfloat16(),
    "frozen": lambda rule, net: net[1].eval(),
    "pending": lambda rule, net: setattr(rule.cells["1"].updater, "weight", (torch.tensor(0.3), None)),
    "pending elsewhere": lambda rule, net: setattr(
        rule.cells["1"].updater, "bias", (None, torch.tensor(0.3))
    ),
    "observed apart": observed_apart,
    "folded": folded,
    "removed": lambda rule, net: rule.remove_cell("1"),
    "one more": one_more,
    "loaded": lambda rule, net: rule.load_state_dict(rule.state_dict()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_notices_what_changes(name):
    pair = Pair()
    pair.step()
    pair.step()
    assert pair.is_swept
    pair.change(CHANGES[name])
    if name == "half":
        pair.nets[1].load_state_dict(pair.nets[0].state_dict())  # which may have rounded otherwise
    pair.step()
    pair.step()


def test_it_notices_a_target_changed_in_place():
    pair = Pair(target=0.3)
    targets(pair, (4, 1, 1), (), ())
    pair.step()
    pair.change(in_place)
    pair.step()
    assert pair.is_swept


def test_it_notices_another_batch():
    pair = Pair()
    for batch in (3, 3, 1, 5, 3):
        pair.step(batch=batch)
    assert pair.is_swept


def test_a_target_for_one_call_and_a_choice_of_cells_are_heeded():
    pair = Pair()
    pair.step()
    pair.step(0.6)
    pair.step(0.6, ["1"])
    pair.step(None, ["3"])
    pair.step()


def test_hooks_on_the_rule_are_called():
    pair, calls = Pair(), []
    pair.step()
    pair.rules[0].register_forward_hook(lambda *_: calls.append(1))
    pair.step()
    assert calls == [1]


def test_what_is_prepared_in_inference_mode_lasts():
    pair = Pair()
    targets(pair, (4, 1, 1), (), (5,))
    with torch.inference_mode():
        pair.step()
    pair.change(lambda rule, net: [net[index].reset_mem() for index in (1, 3, 6)])
    pair.step()
    assert pair.is_swept


def swept(**settings) -> tuple[nn.Sequential, LinearHomeostasis, list[torch.Tensor]]:
    net = a_net()
    rule = LinearHomeostasis(0.02, 0.2, **settings).attach(net)
    show(net)
    rule.step()
    assert rule._sweep is not None
    return net, rule, [each.detach().clone() for each in net.parameters()]


def same(net: nn.Module, before: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, net.parameters(), before))


@pytest.mark.parametrize("bounds", [None, ClampBounds(-0.05, 0.05)], ids=str)
def test_a_membrane_that_is_not_finite_is_named(bounds):
    net, rule, before = swept(bounds=bounds)
    show(net)
    net[6].mem = torch.full((3, 5), float("nan"))
    rule.cells["6"].neuron._membrane = net[6].mem
    with pytest.raises(NonFiniteError, match="'6' \\(membrane\\)"):
        rule.step()
    assert same(net, before)


def test_a_rate_that_is_not_finite_is_named():
    net, rule, before = swept()
    rule.units["3"].rate.count.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="'3'"):
        rule.step()
    assert same(net, before)


def test_sums_too_large_for_float32_are_no_error():
    net, rule, before = swept()
    show(net)
    rule.cells["6"].neuron._membrane = torch.full((3, 5), 3e38)
    rule.step()
    assert not same(net, before)


@pytest.mark.parametrize("bounds", [ClampBounds(-0.05, 0.05), PowerBounds(-1.0, 1.0)], ids=str)
def test_a_bounded_parameter_that_is_not_finite_is_named(bounds):
    net, rule, _ = swept(bounds=bounds)
    show(net)
    with torch.no_grad():
        net[2].weight[0, 0] = float("nan")
    before = [each.detach().clone() for each in net.parameters()]
    with pytest.raises(NonFiniteError, match="'3'"):
        rule.step()
    torch.testing.assert_close([*net.parameters()], before, rtol=0, atol=0, equal_nan=True)


def test_bounds_that_cannot_work_change_nothing():
    net, rule, before = swept()
    rule.cells["6"].updater.weight.bounds = lambda param, pos, neg: torch.zeros(2, *param.shape)
    with pytest.raises(ArgumentError, match="broadcasts"):
        rule.step()
    rule.cells["6"].updater.weight.bounds = lambda param, pos, neg: 1 / 0
    with pytest.raises(ZeroDivisionError):
        rule.step()
    assert same(net, before)
    assert not any(slot.pending for unit in rule.units.values() for slot in unit.all_slots)


@pytest.mark.parametrize("bounds", [None, SharpBounds(-0.05, 0.05)], ids=str)
def test_it_is_made_whatever_the_default_dtype(bounds):
    pair = Pair(bounds=bounds)
    torch.set_default_dtype(torch.float64)
    try:
        pair.step()
        pair.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert pair.is_swept


class Kept:
    """A bound that keeps what it is given."""

    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []

    def __call__(self, param, pos, neg):
        self.parts += [pos, neg]
        return pos - neg


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_bound_is_given_the_same_parts_and_may_keep_them(dtype):
    pair = Pair()
    pair.change(lambda rule, net: net.to(dtype))
    kept = [Kept(), Kept()]
    for rule, bounds in zip(pair.rules, kept, strict=True):
        rule.cells["3"].updater.weight.bounds = bounds
    before = []
    for _ in range(2):
        pair.step()
        before += [part.clone() for part in kept[0].parts[-2:]]
    assert pair.is_swept
    torch.testing.assert_close(kept[0].parts, kept[1].parts)
    torch.testing.assert_close(kept[0].parts, before, rtol=0, atol=0)


def test_bounds_are_asked_only_if_rates_and_membranes_are_finite():
    net, rule, before = swept()
    rule.cells["3"].updater.weight.bounds = lambda param, pos, neg: 1 / 0
    show(net)
    rule.units["6"].rate.count.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="'6'"):
        rule.step()
    assert same(net, before)


def test_a_bound_is_asked_once_also_if_it_fails():
    net, rule, before = swept()
    calls = []
    rule.cells["3"].updater.weight.bounds = lambda param, pos, neg: calls.append(1) or pos * float("inf")
    show(net)
    with pytest.raises(NonFiniteError, match="'3' \\(update\\)"):
        rule.step()
    assert calls == [1]
    assert same(net, before)


def test_a_bound_may_return_a_sparse_delta():
    pair = Pair()

    def sparse(param, pos, neg):
        return ((pos - neg) * (param > 0)).to_sparse()

    pair.change(lambda rule, net: setattr(rule.cells["6"].updater.weight, "bounds", sparse))
    pair.step()
    assert pair.is_swept


def test_a_failure_while_it_is_prepared_anew_leaves_nothing_half_done(monkeypatch):
    pair = Pair(bounds=ClampBounds(-0.05, 0.05))
    pair.step()
    pair.step()
    for rule, net in zip(pair.rules, pair.nets, strict=True):
        rule.clear()
        torch.manual_seed(2)
        show(net)

    def no_memory(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(rows, "zeros_for", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        pair.rules[0].step()
    monkeypatch.undo()
    pair.change(lambda rule, net: rule.step())
    pair.compare()


def test_nothing_of_the_size_of_the_rates_is_kept():
    net = nn.Sequential(nn.Linear(3, 50), leaky())
    rule = LinearHomeostasis(0.02, 0.2, bounds=ClampBounds(-1.0, 1.0)).attach(net)
    with torch.no_grad():
        net(spikes(40, 3))
    rule.step()
    (row,) = rule._sweep.rows
    storages = [each.untyped_storage() for each in vars(row).values() if isinstance(each, torch.Tensor)]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    del held[rule.units["1"].rate.count.untyped_storage().data_ptr()]
    assert sum(held.values()) < 4 * 50 * 10


def test_a_cleared_cell_has_no_rate():
    net, rule, before = swept()
    rule.clear()
    with pytest.raises(NoSpikesError, match="'1'"):
        rule.step()
    assert same(net, before)


def test_a_graph_that_waits_is_respected():
    net, rule, before = swept()
    net(spikes(3, 1, 4, 4))
    with pytest.raises(WaitingGraphError):
        rule.step()
    assert same(net, before)


@pytest.mark.parametrize("bounds", [None, ClampBounds(-0.05, 0.05), PowerBounds(-1.0, 1.0)], ids=str)
@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted_it_is_made_as_a_whole(monkeypatch, bounds, after):
    net, rule, before = swept()
    twin, other, _ = swept()
    rule.cells["3"].updater.weight.bounds = other.cells["3"].updater.weight.bounds = bounds
    torch.manual_seed(1)
    show(net)
    torch.manual_seed(1)
    show(twin)
    other.step()
    made, calls = Passes.make, []

    def interrupted(passes):
        made(passes)
        calls.append(1)
        if len(calls) == after + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Passes, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rule.step()
    assert same(net, list(twin.parameters()))
    assert not same(net, before)


def test_a_cleared_rate_is_not_held():
    _, rule, _ = swept()
    count = weakref.ref(rule.units["1"].rate.count)
    rule.clear()
    assert count() is None


def test_a_parameter_that_is_not_regulated_may_go():
    pair = Pair()
    pair.step()
    pair.change(lambda rule, net: setattr(net[5], "bias", None))
    pair.step(batch=2)
    pair.step(batch=2)
    assert pair.is_swept


def test_another_target_tensor_is_noticed_whatever_its_address():
    pair = Pair()
    for number in range(10):
        targets(pair, (4, 1, 1), (), ())
        pair.step()
        pair.change(
            lambda rule, net, value=number: setattr(rule.units["1"].state, "target", 0.1 + value / 20)
        )
        pair.step()


class Padded(DenseConnection):
    """Eight outputs of which the first four drive neurons."""

    def positions(self, x):
        return torch.nn.functional.pad(x, (0, self.features - x.shape[1])).unsqueeze(-1)


class Wide(nn.Linear): ...


def test_a_view_that_is_more_than_a_layout_is_heeded():
    connect.register(Wide, Padded)
    layer, neuron = Wide(3, 8), leaky()
    rule = LinearHomeostasis(0.01, 0.2, "bias")
    rule.register_cell("a", Cell(layer, neuron))
    with torch.no_grad():
        neuron(layer(torch.zeros(1, 3))[:, :4])
    rule.step()
    assert rule._sweep is None


class Logged(LinearHomeostasis):
    updates = 0

    def update(self):
        self.updates += 1
        super().update()


class Short(Logged):
    """A rule that has a short form, and inherits an update that is more than one."""

    def affine(self, state, target):
        return super().affine(state, target)


def test_an_update_of_its_own_is_called():
    net = a_net()
    rule = Short(0.02, 0.2).attach(net)
    show(net)
    rule.step()
    assert rule.updates == 1


def test_methods_replaced_and_hooks_on_all_modules_are_called():
    _, rule, _ = swept()
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module)))
    try:
        rule.step()
    finally:
        handle.remove()
    assert calls == [LinearHomeostasis]
    update = rule.update
    rule.update = lambda: (calls.append("update"), update())
    rule.step()
    assert calls[-1] == "update"


def test_what_the_neuron_became_is_noticed():
    net, rule, before = swept()
    rule.units["6"].state.target = 0.9
    show(net)
    rule.step()
    before = [each.detach().clone() for each in net.parameters()]
    net[6].inhibition = True
    with pytest.raises(ArgumentError, match="inhibition"):
        rule.step()
    assert same(net, before)


def test_a_parameter_of_another_shape_changes_none():
    net, rule, _ = swept()
    net[5].weight.data = torch.zeros(2, 75)
    before = net[0].weight.clone()
    with pytest.raises(ArgumentError):
        rule.step()
    assert torch.equal(net[0].weight, before)


def test_a_prepared_sweep_looks_once_whether_it_fits(monkeypatch):
    _, rule, _ = swept()
    sweep, calls = rule._sweep, []
    fits = sweep.fits
    monkeypatch.setattr(sweep, "fits", lambda: (calls.append(1), fits())[1])
    rule.step()
    assert rule._sweep is sweep
    assert calls == [1]
