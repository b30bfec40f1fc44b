"""Calibration in several processes: what one process makes of all their samples, equal to the bit."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import snntorch as snn
import torch
import torch.distributed as dist
from nets import hooks_of
from processes import (
    FEATURES,
    SIZE,
    STEPS,
    Double,
    Net,
    Reports,
    Scenarios,
    batch_of,
    collectives,
    ddp,
    dense,
    leaky,
    require_close,
    require_replicas,
    require_untouched,
    shard,
    snapshot,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from snn_homeostasis import (
    ArgumentError,
    Band,
    CalibrationReport,
    Cell,
    HomeostasisError,
    LinearHomeostasis,
    NonFiniteError,
    ProcessMismatchError,
)

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

scenario = Scenarios()


def test_scenario_passes_in_every_process(reports: Reports, scenario_name: str) -> None:
    for rank in range(SIZE):
        report = reports.of(list(scenario).index(scenario_name), rank)
        assert report == "passed", f"process {rank}: {report}"


# --- equal to one process --------------------------------------------------------------------


def silent() -> Net:
    net = dense()
    for layer in (0, 3):
        net.layers[layer].weight.mul_(0.02)
        net.layers[layer].bias.zero_()
    return net


def saturated() -> Net:
    net = dense()
    for layer in (0, 3):
        net.layers[layer].weight.add_(1.0)
    return net


def recurrent() -> Net:
    torch.manual_seed(1)
    hidden = snn.RLeaky(beta=0.9, all_to_all=False, init_hidden=True)
    return Net(nn.Linear(FEATURES, 8), hidden, Double(), nn.Linear(8, 3), leaky(), Double())


def learned() -> Net:
    net = dense()
    for layer, size in ((1, 8), (4, 3)):
        threshold = torch.ones(size, dtype=torch.float64)
        net.layers[layer] = snn.Leaky(0.9, threshold, init_hidden=True, learn_threshold=True)
    return net


STARTS = {each.__name__: each for each in (dense, silent, saturated, recurrent, learned)}
SIZES = {"even": (60, 60), "uneven": (95, 25), "empty": (0, 120)}
TARGETS = {
    "number": 0.2,
    "tensor": {"layers.1": torch.linspace(0.1, 0.4, 8), "layers.4": torch.linspace(0.2, 0.3, 3)},
    "band": Band(0.05, 0.2),
}


@scenario(
    ("even", "dense", "bias", "number"),
    ("uneven", "silent", "bias", "tensor"),
    ("empty", "saturated", "bias", "number"),
    ("uneven", "dense", "weight", "band"),
    ("empty", "learned", "threshold", "tensor"),
    ("uneven", "recurrent", "bias", "number"),
)
def equal_to_one_process(sizes: str, start: str, param: str, target: str, rank: int) -> None:
    reference, wrapped = STARTS[start](), ddp(STARTS[start]())
    net = wrapped.module
    rule = functools.partial(LinearHomeostasis, param=param)
    one = rule(process_group=None).attach(reference, target=TARGETS[target])
    many = rule().attach(wrapped, target=TARGETS[target])
    x, before = batch_of(*SIZES[sizes], seed=0), snapshot(net)
    alone = one.calibrate(torch.cat(x), gradients=True, progress=False)
    report = many.calibrate(x[rank], gradients=True, progress=False)
    require_close(net, reference)
    require_replicas(net)
    require_same_reports(report)
    require_equal(report, alone)
    assert report.samples == 120
    assert any(not torch.equal(value, before[name]) for name, value in net.named_parameters())
    is_repaired = not torch.equal(net.layers[3].weight, before["layers.3.weight"])
    assert is_repaired == (start in ("silent", "saturated") or param == "weight")
    report.undo()
    require_untouched(net, before)


def require_same_reports(report: CalibrationReport) -> None:
    """Checks that all processes report the same, the seconds included."""
    everyone: list[Any] = [None] * SIZE
    dist.all_gather_object(everyone, replace(report, undo=print))
    assert repr(everyone[0]) == repr(everyone[1])


def require_equal(report: CalibrationReport, other: CalibrationReport) -> None:
    assert (report.forwards, report.samples, report.notes) == (other.forwards, other.samples, other.notes)
    for mine, wanted in zip(report.cells, other.cells, strict=True):
        for name, value in vars(mine).items():
            is_number = isinstance(value, float)
            expected = getattr(wanted, name)
            assert value == (pytest.approx(expected, rel=1e-5, abs=1e-6) if is_number else expected), name


@scenario()
def loaders_give_samples_until_there_are_enough_in_all(rank: int) -> None:
    reference, wrapped = dense(), ddp(dense())
    (data,) = batch_of(1200, seed=0)
    sampler = DistributedSampler(TensorDataset(data), SIZE, rank, shuffle=False)
    loader = DataLoader(sampler.dataset, 100, sampler=sampler)
    one = LinearHomeostasis(target=0.2, param="bias", process_group=None).attach(reference)
    many = LinearHomeostasis(target=0.2, param="bias").attach(wrapped)
    alone = one.calibrate(list(data.split(200)), progress=False)
    report = many.calibrate(loader, progress=False)
    require_close(wrapped, reference)
    require_replicas(wrapped)
    require_equal(report, alone)
    assert (report.samples, report.forwards) == (600, 12)


@scenario()
def sequences_that_are_longer_in_one(rank: int) -> None:
    wrapped = ddp(dense())
    x = batch_of(60, 60, seed=0)[rank].repeat(1, 1 + rank, 1)
    homeostasis = LinearHomeostasis(target=0.2, param="bias").attach(wrapped)
    report = homeostasis.calibrate(x, scale=1.0, progress=False)
    require_replicas(wrapped)
    require_same_reports(report)
    assert report.is_on_target


class Circular(nn.Module):
    """The second layer acts back on the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc1, self.lif1 = nn.Linear(FEATURES, 8).double(), leaky()
        self.fc2, self.lif2 = nn.Linear(8, 8).double(), leaky()
        self.back = nn.Linear(8, 8, bias=False).double()
        self.back.weight.mul_(2.0)

    def forward(self, x: Tensor) -> Tensor:
        spikes = x.new_zeros(len(x), 8)
        for step in x.unbind(1):
            spikes = self.lif1(self.fc1(step) + self.back(spikes)).double()
            spikes = self.lif2(self.fc2(spikes)).double()
        return spikes


@scenario()
def what_acts_back_is_settled_in_as_many_rounds(rank: int) -> None:
    reference, wrapped = Circular(), ddp(Circular())
    x = batch_of(150, 90, seed=0)
    one, many = (
        LinearHomeostasis(target=0.2, process_group=group).attach(
            model, x[0][:2], pairs={"lif1": "fc1", "lif2": "fc2"}, param="bias"
        )
        for model, group in ((reference, None), (wrapped, "auto"))
    )
    alone, report = one.calibrate(torch.cat(x), progress=False), many.calibrate(x[rank], progress=False)
    require_close(wrapped, reference)
    require_replicas(wrapped)
    require_equal(report, alone)
    assert report.forwards > 4, report


@scenario()
def the_last_batch_before_may_be_empty_in_one(rank: int) -> None:
    reference, wrapped = dense(), ddp(dense())
    one = LinearHomeostasis(param="bias", process_group=None).attach(reference, target=TARGETS["tensor"])
    many = LinearHomeostasis(param="bias").attach(wrapped, target=TARGETS["tensor"])
    x = batch_of(60, 60, seed=0)
    wrapped(x[rank][: 60 - 60 * rank])
    one.calibrate(torch.cat(x), progress=False), many.calibrate(x[rank], progress=False)
    require_close(wrapped, reference)
    require_replicas(wrapped)


# --- which processes -------------------------------------------------------------------------


def attached_before(net: Net, rule: LinearHomeostasis) -> object:
    rule.attach(net)
    return ddp(net)


def attached_inside(net: Net, rule: LinearHomeostasis) -> object:
    wrapped = ddp(net)
    return rule.attach(wrapped.module), wrapped


def attached_around(net: Net, rule: LinearHomeostasis) -> object:
    wrapped = nn.Sequential(ddp(net))
    return rule.attach(wrapped), wrapped


def wrapped_again(net: Net, rule: LinearHomeostasis) -> object:
    groups = [dist.new_group() for _ in range(2)]
    rule.attach(net)
    wrappers = [ddp(net, process_group=group) for group in groups]
    dist.destroy_process_group(groups[1])
    return wrappers


def given_a_group(net: Net, rule: LinearHomeostasis) -> object:
    return rule.attach(net)


WRAPPERS = {
    each.__name__: each
    for each in (attached_before, attached_inside, attached_around, wrapped_again, given_a_group)
}


@scenario(*((how,) for how in WRAPPERS))
def the_wrapper_is_found_before_it_has_run(how: str, rank: int) -> None:
    reference, net = dense(), dense()
    one = LinearHomeostasis(target=0.2, param="bias", process_group=None).attach(reference)
    group = dist.group.WORLD if how == "given_a_group" else "auto"
    many = LinearHomeostasis(target=0.2, param="bias", process_group=group)
    kept, x = WRAPPERS[how](net, many), batch_of(70, 50, seed=0)
    one.calibrate(torch.cat(x), progress=False), many.calibrate(x[rank], progress=False)
    require_close(net, reference)
    require_replicas(net)
    del kept


@scenario()
def a_target_of_another_shape_is_refused_after_an_empty_batch(rank: int) -> None:
    net = ddp(dense())
    homeostasis = LinearHomeostasis(target=torch.full((4,), 0.2), param="bias").attach(net)
    net(batch_of(0, 0, seed=0)[rank])
    before = snapshot(net)
    with pytest.raises(ArgumentError, match="`target` should have the shape"):
        homeostasis.calibrate(batch_of(20, 20, seed=0)[rank], progress=False)
    require_untouched(net, before)


@scenario()
def registered_cells_take_a_run_of_their_own(rank: int) -> None:
    reference, net = dense(), dense()
    x = batch_of(70, 50, seed=0)
    wrapped = ddp(net)
    for model, run, data, group in (
        (reference, reference, torch.cat(x), None),
        (net, wrapped, x[rank], "auto"),
    ):
        rule = LinearHomeostasis(target=0.2, param="bias", process_group=group)
        rule.register_cell("first", Cell(model.layers[0], model.layers[1]))
        rule.calibrate(data, run=run, progress=False)
    require_close(net, reference)
    require_replicas(net)


@scenario()
def alone_nothing_is_sent(rank: int) -> None:
    groups = [dist.new_group([each]) for each in range(SIZE)]
    nets = dense(), ddp(dense()), ddp(dense(), process_group=groups[rank])
    x = batch_of(20, 20, seed=0)[rank]
    for net, group in zip(nets, ("auto", None, "auto"), strict=True):
        homeostasis = LinearHomeostasis(target=0.2, param="bias", process_group=group).attach(net)
        assert collectives(functools.partial(homeostasis.calibrate, x, progress=False)) == []


@scenario()
def pieces_are_refused_and_the_remedy_works(rank: int) -> None:
    reference, net = dense(), dense()
    x = batch_of(70, 50, seed=0)
    late = LinearHomeostasis(target=0.2, param="bias").attach(sharded := shard(dense()))
    with pytest.raises(ArgumentError, match="Found pieces of them, as `fully_shard` makes"):
        late.calibrate(x[rank], progress=False)
    one = LinearHomeostasis(target=0.2, param="bias", process_group=None).attach(reference)
    early = LinearHomeostasis(target=0.2, param="bias", process_group=dist.group.WORLD).attach(net)
    one.calibrate(torch.cat(x), progress=False), early.calibrate(x[rank], progress=False)
    early.remove()
    late = LinearHomeostasis(target=0.2, param="bias").attach(sharded := shard(net))
    require_close(sharded, reference)
    reference(torch.cat(x)), sharded(x[rank])
    one.step(), late.step()
    sharded.reshard()
    require_close(sharded, reference)


# --- errors in one process --------------------------------------------------------------------


def an_input(homeostasis: LinearHomeostasis, net: Net, x: Tensor, is_wrong: bool) -> None:
    homeostasis.calibrate(x * torch.nan if is_wrong else x, progress=False)


def a_target(homeostasis: LinearHomeostasis, net: Net, x: Tensor, is_wrong: bool) -> None:
    if is_wrong:
        homeostasis.units["layers.4"].state.target = None
    homeostasis.calibrate(x, progress=False)


def a_tensor(homeostasis: LinearHomeostasis, net: Net, x: Tensor, is_wrong: bool) -> None:
    homeostasis.units["layers.4"].state.target = torch.full((4 if is_wrong else 3,), 0.2)
    homeostasis.calibrate(x, progress=False)


def a_run(homeostasis: LinearHomeostasis, net: Net, x: Tensor, is_wrong: bool) -> None:
    calls = itertools.count()

    def run(batch: Tensor) -> None:
        net(batch)
        if next(calls) == 2 and is_wrong:
            raise ValueError("lost")

    homeostasis.calibrate(x, run=run, progress=False)


def a_run_without_calls(homeostasis: LinearHomeostasis, net: Net, x: Tensor, is_wrong: bool) -> None:
    homeostasis.calibrate(x, run=(lambda batch: None) if is_wrong else net, progress=False)


def a_scale(homeostasis: LinearHomeostasis, net: Net, x: Tensor, is_wrong: bool) -> None:
    homeostasis.calibrate(x, scale=None if is_wrong else "auto", progress=False)


def a_number_of_calls(homeostasis: LinearHomeostasis, net: Net, x: Tensor, is_wrong: bool) -> None:
    homeostasis.calibrate(x, num_steps=2 if is_wrong else 1, progress=False)


def a_number_of_batches(homeostasis: LinearHomeostasis, net: Net, x: Tensor, is_wrong: bool) -> None:
    homeostasis.calibrate([x] if is_wrong else [x, x], progress=False)


def a_bound(homeostasis: LinearHomeostasis, net: Net, x: Tensor, is_wrong: bool) -> None:
    for unit in homeostasis.units.values():
        unit.slot.bounds = closed(2.0 if is_wrong else 1.0)
    homeostasis.calibrate(x, progress=False)


def a_step(homeostasis: LinearHomeostasis, net: Net, x: Tensor, is_wrong: bool) -> None:
    net(x)
    homeostasis.step() if is_wrong else homeostasis.calibrate(x, progress=False)


def closed(factor: float) -> Callable:
    return lambda param, pos, neg: factor * (pos - neg)


FAULTS: dict[str, tuple[Callable, type, str]] = {
    "input": (an_input, NonFiniteError, "what reaches the neuron of cell 'layers.1'"),
    "target": (a_target, ProcessMismatchError, "only process 1 has .*'layers.4'.* target None"),
    "tensor": (a_tensor, ArgumentError, r"`target` should have the shape \[3\]"),
    "run": (a_run, Exception, "lost"),
    "no call": (a_run_without_calls, ProcessMismatchError, "only process 1 has the samples of no cell"),
    "scale": (a_scale, ProcessMismatchError, "only process 1 has .*scale=None"),
    "calls": (a_number_of_calls, ProcessMismatchError, "only process 1 has .*num_steps=2"),
    "batches": (a_number_of_batches, ProcessMismatchError, "only process 1 has no further batch of `inputs`"),
    "bound": (a_bound, ProcessMismatchError, "their bounds make other changes"),
    "step": (a_step, ProcessMismatchError, "only process 0 has .*calibrate"),
}


@scenario(*((fault,) for fault in FAULTS))
def what_fails_in_one_is_raised_in_all(fault: str, rank: int) -> None:
    wrapped = ddp(dense())
    net, homeostasis = wrapped.module, LinearHomeostasis(target=0.2, param="bias").attach(wrapped)
    before, hooks, x = snapshot(net), hooks_of(net), batch_of(60, 60, seed=0)[rank]
    fail, kind, message = FAULTS[fault]
    with pytest.raises(kind, match=message) as caught:
        fail(homeostasis, net, x, rank == 1)
    assert isinstance(caught.value, HomeostasisError) or (fault, rank) == ("run", 1)
    require_untouched(net, before)
    assert hooks_of(net) == hooks
    homeostasis.set(target=0.2)
    for unit in homeostasis.units.values():
        unit.slot.bounds = None
    assert homeostasis.calibrate(x, progress=False).is_on_target
    require_replicas(net)


class Interrupted(Exception): ...  # noqa: N818


@scenario()
def join_is_refused(rank: int) -> None:
    wrapped = ddp(dense())
    homeostasis = LinearHomeostasis(target=0.2, param="bias").attach(wrapped)
    x = batch_of(20, 20, seed=0)[rank]
    with contextlib.suppress(Interrupted), wrapped.join():
        with pytest.raises(ArgumentError, match=re.escape("`join()` should not be around the training")):
            homeostasis.calibrate(x, progress=False)
        raise Interrupted  # without an error `join()` waits for the others


@scenario()
def empty_in_all(rank: int) -> None:
    wrapped = ddp(dense())
    homeostasis, before = LinearHomeostasis(target=0.2, param="bias").attach(wrapped), snapshot(wrapped)
    with pytest.raises(ArgumentError, match=re.escape("Found no sample. Pass at least one batch")):
        homeostasis.calibrate(torch.zeros(0, STEPS, FEATURES).double(), progress=False)
    require_untouched(wrapped, before)
