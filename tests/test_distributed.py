"""Several processes that train one model: two gloo processes, started once for all scenarios."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import os
import re
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from processes import (
    FEATURES,
    SIZE,
    SYNC,
    Double,
    Net,
    Reports,
    Scenarios,
    batch_of,
    collectives,
    conv,
    ddp,
    dense,
    leaky,
    require_close,
    require_replicas,
    require_untouched,
    shard,
    snapshot,
    start_group,
)
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from snn_homeostasis import (
    ArgumentError,
    Band,
    Bounds,
    Cell,
    ClampBounds,
    CumulativeRate,
    DelayedLinear,
    ExponentialRate,
    FallingPlasticity,
    HomeostasisError,
    HomeostasisWarning,
    LinearHomeostasis,
    NonFiniteError,
    NoSpikesError,
    PowerBounds,
    ProcessMismatchError,
    SharpBounds,
    WaitingGraphError,
    WindowedRate,
)

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

scenario = Scenarios()


def test_scenario_passes_in_every_process(reports: Reports, scenario_name: str) -> None:
    number = list(scenario).index(scenario_name)
    for rank in range(SIZE):
        dies = (scenario_name, rank) == ("a_process_that_dies", 1)
        report = reports.of(number, rank)
        assert report == ("the process has ended" if dies else "passed"), f"process {rank}: {report}"


@torch.enable_grad()
def train(net: nn.Module, x: Tensor, total: int, parts: int, optimizer: torch.optim.Optimizer) -> None:
    """A step toward sparse output; gradients of ``parts`` processes average to those of the joint mean."""
    optimizer.zero_grad()
    (net(x).square().sum() * parts / total).backward()
    optimizer.step()


# --- equal to one process --------------------------------------------------------------------

NETS = {"dense": dense, "conv": conv}
EPOCHS = {"even": (4, 4), "uneven": (5, 2), "empty": (0, 3)}
RATES = {
    "cumulative": CumulativeRate,
    "exponential": functools.partial(ExponentialRate, 15.0),
    "windowed": functools.partial(WindowedRate, 10),
}
BOUNDS = {
    "free": None,
    "clamped": ClampBounds(-0.5, 0.5),
    "soft": PowerBounds(-1.0, 1.0, (1.0, 2.0)),
    "sharp": SharpBounds(-0.5, 0.5),
}


@scenario(
    ("even", "cumulative", "free", "weight", "dense"),
    ("uneven", "cumulative", "soft", "weight", "dense"),
    ("uneven", "exponential", "free", "bias", "conv"),
    ("empty", "cumulative", "clamped", "weight", "conv"),
    ("empty", "exponential", "soft", "bias", "dense"),
    ("uneven", "windowed", "soft", "bias", "dense"),
    ("even", "windowed", "sharp", "weight", "conv"),
)
def equal_to_one_process(epoch: str, rate: str, bounds: str, param: str, build: str, rank: int) -> None:
    reference, net = NETS[build](), NETS[build]()
    wrapped = ddp(net)
    rule = functools.partial(LinearHomeostasis, 0.02, 0.2, param, rate=RATES[rate], bounds=BOUNDS[bounds])
    one, many = rule(process_group=None).attach(reference), rule().attach(wrapped)
    optimizers = [torch.optim.SGD(model.parameters(), 1e-3) for model in (reference, net)]
    sizes = EPOCHS[epoch]
    for iteration in range(15):
        x = batch_of(*sizes, seed=iteration)
        train(reference, torch.cat(x), sum(sizes), 1, optimizers[0])
        train(wrapped, x[rank], sum(sizes), SIZE, optimizers[1])
        one.step()
        many.step()
        require_replicas(net)
        for mine, wanted in zip(many.rates().values(), one.rates().values(), strict=True):
            torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=0)
    require_close(net, reference)


@scenario(("cumulative", "free"), ("exponential", "soft"), ("windowed", "sharp"))
def replicas_stay_equal_over_changes_of_the_batch(rate: str, bounds: str, rank: int) -> None:
    net = dense()
    wrapped = ddp(net)
    many = LinearHomeostasis(0.02, 0.2, rate=RATES[rate], bounds=BOUNDS[bounds]).attach(wrapped)
    for iteration, sizes in enumerate([(4, 4), (4, 1), (2, 1), (4, 0), (0, 3), (3, 3)]):
        wrapped(batch_of(*sizes, seed=iteration)[rank])
        many.step()
        require_replicas(net)
        mine = torch.cat(list(many.rates().values()))
        everyone = [torch.empty_like(mine) for _ in range(SIZE)]
        dist.all_gather(everyone, mine)
        assert torch.equal(*everyone)


@scenario(("mean",), ("sum",))
def batches_of_any_size_after_clear(reduction: str, rank: int) -> None:
    reference, net = dense(), dense()
    rule = functools.partial(LinearHomeostasis, 0.02, 0.2, "weight", getattr(torch, reduction))
    one = rule(bounds=BOUNDS["soft"], process_group=None).attach(reference)
    many = rule(bounds=BOUNDS["soft"]).attach(ddp(net))
    for iteration, sizes in enumerate([(4, 4), (3, 5), (1, 6), (0, 5), (5, 0), (2, 2)]):
        x = batch_of(*sizes, seed=iteration)
        one.clear(), many.clear()
        reference(torch.cat(x)), net(x[rank])
        one.step(), many.step()
    require_close(net, reference)
    require_replicas(net)


@scenario(("band",), ("number",), ("bounds",))
def what_follows_the_mean_follows_the_mean_of_all(kind: str, rank: int) -> None:
    """A limit, a band and a schedule act on the mean over the joint batch, not on that of a process."""
    reference, net = dense(), dense()
    target = 0.05 if kind == "number" else Band(0.02, 0.05)
    plasticity = FallingPlasticity(0.05, limit=0.4)
    bounds = BOUNDS["soft"] if kind == "bounds" else None
    rule = functools.partial(LinearHomeostasis, plasticity, target, bounds=bounds)
    one, many = rule(process_group=None).attach(reference), rule().attach(ddp(net))
    for iteration, sizes in enumerate([(4, 4), (3, 5), (1, 6), (0, 5), (5, 0), (2, 2)]):
        x = batch_of(*sizes, seed=iteration)
        reference(torch.cat(x)), net(x[rank])
        one.step(), many.step()
    require_close(net, reference)
    require_replicas(net)
    assert {unit.state.steps for unit in many.units.values()} == {6}


@scenario()
def several_calls_of_the_rule_share_one_update(rank: int) -> None:
    reference, net = dense(), dense()
    one = LinearHomeostasis(0.02, 0.2, process_group=None, bounds=BOUNDS["soft"]).attach(reference)
    many = LinearHomeostasis(0.02, 0.2, bounds=BOUNDS["soft"]).attach(ddp(net))
    for iteration in range(6):
        for micro, sizes in enumerate([(4, 2), (1, 3), (2, 0)]):
            x = batch_of(*sizes, seed=10 * iteration + micro)
            for homeostasis, model, data in ((one, reference, torch.cat(x)), (many, net, x[rank])):
                forget(homeostasis)
                model(data)
                homeostasis(cells=[list(homeostasis.cells)[micro % 2]])
        one.update(), many.update()
    require_close(net, reference)
    require_replicas(net)


def forget(homeostasis: LinearHomeostasis) -> None:
    """Resets the estimates and leaves the pending parts."""
    for unit in homeostasis.units.values():
        unit.rate.reset()


@scenario()
def parts_that_the_user_adds_are_averaged(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2, param="weight").attach(ddp(net))
    cell = next(iter(homeostasis.cells.values()))
    net(batch_of(3, 1, seed=0)[rank])
    before = net.layers[0].bias.detach().clone()
    cell.updater.bias = (torch.full((8,), 4.0 * rank), None)
    with pytest.raises(HomeostasisError, match="where one process trains the model"):
        cell.updater()
    homeostasis.update()
    torch.testing.assert_close(net.layers[0].bias, before + 1.0)  # (3 · 0 + 1 · 4) / 4


@scenario()
def parts_of_several_shapes_share_a_slot(rank: int) -> None:
    reference, net = dense(), dense()
    one = LinearHomeostasis(0.02, 0.2, process_group=None, bounds=BOUNDS["soft"]).attach(reference)
    many = LinearHomeostasis(0.02, 0.2, bounds=BOUNDS["soft"], process_group=dist.group.WORLD)
    many.attach(net)
    x = batch_of(3, 1, seed=0)
    for homeostasis, model, data in ((one, reference, torch.cat(x)), (many, net, x[rank])):
        model(data)
        cell = homeostasis.cells["layers.1"]
        cell.updater.weight = (None, torch.tensor(0.5))
        homeostasis()
        cell.updater.weight = (torch.linspace(0.0, 1.0, FEATURES), torch.ones(8, FEATURES))
        homeostasis.update()
    require_close(net, reference)


# --- one all-reduce --------------------------------------------------------------------------


@scenario()
def one_all_reduce_per_update_for_all_cells(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    for iteration in range(4):
        net(batch_of(4 - iteration, 3, seed=iteration)[rank])
        assert collectives(homeostasis) == []
        assert collectives(homeostasis.update) == ["all_reduce"]
        assert collectives(homeostasis.rates) == []
    assert collectives(homeostasis.step) == ["all_reduce"]


@scenario()
def the_buffer_grows_with_the_cells(rank: int) -> None:
    wide = Net(nn.Linear(FEATURES, 2000), leaky(), Double(), nn.Linear(2000, 3), leaky(), Double())
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(wide))
    for number in (2, 1, 1):
        wide(batch_of(2, 3, seed=number)[rank])
        assert collectives(homeostasis.step) == ["all_reduce"] * number
    require_replicas(wide)


@scenario()
def alone_in_the_group_nothing_is_sent(rank: int) -> None:
    groups = [dist.new_group([each]) for each in range(SIZE)]
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net, process_group=groups[rank]))
    net(batch_of(4, 4, seed=rank)[rank])
    assert collectives(homeostasis.step) == []
    assert not homeostasis.cells["layers.1"].updater.weight.shared


# --- which processes -------------------------------------------------------------------------


def attached_before(net: Net, rule: LinearHomeostasis) -> nn.Module:
    rule.attach(net)
    return ddp(net)


def attached_inside(net: Net, rule: LinearHomeostasis) -> nn.Module:
    wrapped = ddp(net)
    rule.attach(wrapped.module)
    return wrapped


def attached_around(net: Net, rule: LinearHomeostasis) -> nn.Module:
    wrapped = nn.Sequential(ddp(net))
    rule.attach(wrapped)
    return wrapped


def registered_by_hand(net: Net, rule: LinearHomeostasis) -> nn.Module:
    for name, (layer, neuron) in {"first": (0, 1), "second": (3, 4)}.items():
        rule.register_cell(name, Cell(net.layers[layer], net.layers[neuron]))
    return ddp(net)


def compiled(net: Net, rule: LinearHomeostasis) -> nn.Module:
    rule.attach(net)
    net.compile(backend="eager")
    return ddp(net)


def given_a_group(net: Net, rule: LinearHomeostasis) -> nn.Module:
    rule.attach(net)
    return net


WRAPPERS = {
    each.__name__: each
    for each in (
        attached_before,
        attached_inside,
        attached_around,
        registered_by_hand,
        compiled,
        given_a_group,
    )
}


@scenario(*((how,) for how in WRAPPERS))
def the_wrapper_is_found(how: str, rank: int) -> None:
    reference, net = dense(), dense()
    one = LinearHomeostasis(0.02, 0.2, process_group=None).attach(reference)
    group = dist.group.WORLD if how == "given_a_group" else "auto"
    many = LinearHomeostasis(0.02, 0.2, process_group=group)
    wrapped = WRAPPERS[how](net, many)
    with pytest.raises(NoSpikesError):
        many.rates()
    for seed in range(3):
        x = batch_of(4, 2, seed=seed)
        reference(torch.cat(x)), wrapped(x[rank])
        one.step(), many.step()
    require_close(net, reference)
    require_replicas(net)


@scenario()
def processes_with_models_of_their_own_stay_apart(rank: int) -> None:
    reference, net, turned_off = dense(), dense(), dense()
    x = batch_of(4, 4, seed=0)[rank]
    one = LinearHomeostasis(0.02, 0.2, process_group=None).attach(reference)
    own = LinearHomeostasis(0.02, 0.2).attach(net)
    off = LinearHomeostasis(0.02, 0.2, process_group=None).attach(ddp(turned_off))
    reference(x), net(x), turned_off(x)
    one.step()
    assert collectives(own.step) == collectives(off.step) == []
    for model in (net, turned_off):
        for mine, wanted in zip(model.parameters(), reference.parameters(), strict=True):
            assert torch.equal(mine, wanted)


@scenario()
def what_is_no_group_is_refused(rank: int) -> None:
    with pytest.raises(ArgumentError, match=r"`process_group` should be .* Found `process_group = 'world'`"):
        LinearHomeostasis(0.02, 0.2, process_group="world")


@scenario()
def broadcast_membranes_are_refused(rank: int) -> None:
    message = f"`{SYNC}` should be False for a spiking model. Found `{SYNC} = True`"
    net = dense()
    with pytest.raises(ArgumentError, match=message):
        LinearHomeostasis(0.02, 0.2).attach(ddp(net, sync=True))
    late = LinearHomeostasis(0.02, 0.2).attach(net)
    with pytest.raises(ArgumentError, match=message):
        ddp(net, sync=True)(batch_of(4, 4, seed=0)[rank])
    del late
    ignored = [f"layers.{layer}.mem" for layer in (1, 4)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(net, ignored)
    LinearHomeostasis(0.02, 0.2).attach(ddp(net, sync=True))


@scenario()
def a_target_that_each_would_draw_is_refused(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, lambda shape: torch.rand(shape) + 0.1).attach(ddp(net))
    net(batch_of(4, 4, seed=0)[rank])
    with pytest.raises(ArgumentError, match="`target` should be drawn before where several processes"):
        homeostasis.step()


@scenario()
def a_reduction_without_a_sum_is_refused(rank: int) -> None:
    message = "Found `batch_reduction = amax`"
    with pytest.raises(ArgumentError, match=message):
        LinearHomeostasis(0.02, 0.2, batch_reduction=torch.amax).attach(ddp(dense()))
    net = dense()
    late = LinearHomeostasis(0.02, 0.2, batch_reduction=torch.amax).attach(net)
    ddp(net)(batch_of(4, 4, seed=0)[rank])
    with pytest.raises(ArgumentError, match=message):
        late.step()


# --- errors in one process --------------------------------------------------------------------


def go_on(net: Net, homeostasis: LinearHomeostasis, rank: int) -> None:
    """Checks that after an error the next iteration works, equally in all processes."""
    before = snapshot(net)
    homeostasis.clear()
    net(batch_of(4, 3, seed=9)[rank])
    homeostasis.step()
    assert not torch.equal(net.layers[0].weight, before["layers.0.weight"])
    require_replicas(net)


@scenario(("first",), ("later",))
def a_membrane_that_is_not_finite_in_one(when: str, rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    if when == "later":
        net(batch_of(4, 4, seed=0)[rank])
        homeostasis.step()
    before, x = snapshot(net), batch_of(4, 4, seed=1)[rank]
    net(x * torch.nan if rank == 1 else x)
    with pytest.raises(NonFiniteError, match=re.escape("in cell 'layers.1' (membrane)")):
        homeostasis.step()
    require_untouched(net, before)
    assert not any(
        slot.pending for cell in homeostasis.cells.values() for slot in cell.updater.slots.values()
    )
    go_on(net, homeostasis, rank)


@scenario()
def a_membrane_that_is_not_finite_at_the_update(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    before, x = snapshot(net), batch_of(4, 4, seed=1)[rank]
    net(x * torch.nan if rank == 0 else x)
    homeostasis()
    with pytest.raises(NonFiniteError, match=re.escape("'layers.1' (membrane)")):
        homeostasis.update()
    require_untouched(net, before)
    go_on(net, homeostasis, rank)


@scenario()
def parts_that_are_not_finite_in_one(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    net(batch_of(4, 4, seed=1)[rank])
    before = snapshot(net)
    homeostasis.cells["layers.1"].updater.weight = (torch.tensor([0.0, torch.nan][rank]), None)
    with pytest.raises(NonFiniteError, match=re.escape("cell 'layers.1' (update)")):
        homeostasis.update()
    require_untouched(net, before)
    go_on(net, homeostasis, rank)


@scenario()
def an_error_in_the_rule_of_one(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    net(batch_of(4, 4, seed=1)[rank])
    before = snapshot(net)
    kind = ValueError if rank == 1 else ProcessMismatchError
    said = "lost" if rank == 1 else "process 1 raised: ValueError: lost"
    failing = mock.patch.object(homeostasis, "drive", side_effect=ValueError("lost"))
    with failing if rank == 1 else contextlib.nullcontext(), pytest.raises(kind, match=said):
        homeostasis.step()
    require_untouched(net, before)
    go_on(net, homeostasis, rank)


@scenario()
def not_called_in_one(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    before = snapshot(net)
    if rank == 0:
        net(batch_of(4, 4, seed=1)[rank])
    with pytest.raises(NoSpikesError, match=re.escape("cell 'layers.1' should have been observed")):
        homeostasis.step()
    require_untouched(net, before)
    go_on(net, homeostasis, rank)


@scenario()
def empty_in_all(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    net(batch_of(0, 0, seed=1)[rank])
    with pytest.raises(NoSpikesError, match=re.escape("for cell 'layers.1', 'layers.4'")):
        homeostasis.step()
    go_on(net, homeostasis, rank)


@scenario()
def warned_in_one(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    net(batch_of(4, 4, seed=1)[rank])
    homeostasis.step()
    before = snapshot(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if rank == 0 else "ignore")
        with pytest.raises((HomeostasisWarning, ProcessMismatchError), match="once for each observation"):
            homeostasis.step()  # a second time
    require_untouched(net, before)
    go_on(net, homeostasis, rank)


@scenario()
def frozen_in_one(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    net(batch_of(4, 4, seed=1)[rank])
    homeostasis.step()
    before = snapshot(net)
    net(batch_of(4, 4, seed=2)[rank])
    net.layers[4].train(rank == 0)
    with pytest.raises(ProcessMismatchError, match=r"only process 0 has .* cell 'layers.4'"):
        homeostasis.step()
    require_untouched(net, before)
    net.train()
    go_on(net, homeostasis, rank)
    net.eval()
    with pytest.warns(HomeostasisWarning, match="eval mode"):
        homeostasis.step()


@scenario()
def one_more_cell_in_one(rank: int) -> None:
    net = dense()
    pairs = {"layers.1": "layers.0", "layers.4": "layers.3"}
    homeostasis = LinearHomeostasis(0.02, 0.2, process_group=dist.group.WORLD)
    homeostasis.attach(net, pairs=pairs if rank else {"layers.1": "layers.0"})
    net(batch_of(4, 4, seed=1)[rank])
    before = snapshot(net)
    with pytest.raises(ProcessMismatchError, match=r"only process 1 has .* cell 'layers.4'"):
        homeostasis.step()
    require_untouched(net, before)


@scenario()
def one_more_call_of_the_rule_in_one(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    net(batch_of(4, 4, seed=1)[rank])
    homeostasis.step()
    before = snapshot(net)
    net(batch_of(4, 4, seed=2)[rank])
    if rank:
        homeostasis()
    with pytest.raises(ProcessMismatchError, match=r"only process 1 has 2 calls of the rule for `weight`"):
        homeostasis.step()
    require_untouched(net, before)
    go_on(net, homeostasis, rank)


@scenario()
def one_stays_away(rank: int) -> None:
    group = dist.new_group(timeout=timedelta(seconds=1))
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2, process_group=group).attach(net)
    net(batch_of(4, 4, seed=1)[rank])
    homeostasis.step()
    before, start = snapshot(net), time.monotonic()
    if rank == 0:
        with pytest.raises(ProcessMismatchError, match=re.escape("Found that one is gone, waits elsewhere")):
            homeostasis.step()
        assert time.monotonic() - start < 10.0
        require_untouched(net, before)
    dist.barrier()


@scenario()
def a_graph_that_waits_in_one(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    with torch.set_grad_enabled(rank == 1):
        net(batch_of(4, 4, seed=1)[rank])
    before = snapshot(net)
    with pytest.raises(WaitingGraphError, match=re.escape("cell 'layers.4'")):
        homeostasis.step()
    require_untouched(net, before)
    go_on(net, homeostasis, rank)


class Lost(CumulativeRate):
    """An estimator that can fail."""

    fails = False

    @property
    def weight(self) -> float:
        if self.fails:
            raise ValueError("lost")
        return super().weight


@scenario()
def a_rate_that_cannot_be_shared_in_one(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2, rate=Lost).attach(ddp(net))
    for _ in range(2):
        net(batch_of(4, 4, seed=1)[rank])
        before = snapshot(net)
        homeostasis.units["layers.1"].rate.fails = rank == 1
        kind = ValueError if rank == 1 else ProcessMismatchError
        with pytest.raises(kind, match="lost"):
            homeostasis.update()
        homeostasis.units["layers.1"].rate.fails = False
        require_untouched(net, before)
        go_on(net, homeostasis, rank)


@scenario()
def a_bound_that_fails_in_one(rank: int) -> None:
    def bound(param: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        if fails and rank == 0:
            raise ValueError("lost")
        return pos - neg

    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2, bounds=bound).attach(ddp(net))
    net(batch_of(4, 4, seed=1)[rank])
    before, fails = snapshot(net), True
    with pytest.raises(ValueError if rank == 0 else ProcessMismatchError, match="lost"):
        homeostasis.step()
    require_untouched(net, before)
    fails = False
    go_on(net, homeostasis, rank)


@scenario()
def a_membrane_that_is_poisoned_after_the_rule_in_one(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    x = batch_of(4, 4, seed=1)[rank]
    net(x)
    homeostasis()
    before = snapshot(net)
    net(x * torch.nan if rank == 1 else x)
    with pytest.raises(NonFiniteError, match=re.escape("'layers.1' (membrane)")):
        homeostasis.update()
    require_untouched(net, before)
    go_on(net, homeostasis, rank)


@scenario()
def other_settings_in_one(rank: int) -> None:
    net = dense()
    bounds = ClampBounds(-1.0, 1.0 + rank)
    homeostasis = LinearHomeostasis(0.02, 0.2, bounds=bounds).attach(ddp(net))
    net(batch_of(4, 4, seed=1)[rank])
    before = snapshot(net)
    with pytest.raises(ProcessMismatchError, match=r"only process 1 has .*max=2.0"):
        homeostasis.step()
    require_untouched(net, before)


@scenario(("clamp",), ("power",), ("half",), ("parametrized",))
def a_parameter_that_is_not_finite_in_one(kind: str, rank: int) -> None:
    net = halves() if kind == "half" else dense()
    if kind == "parametrized":
        nn.utils.parametrizations.weight_norm(net.layers[0])
    bounds = {"clamp": ClampBounds(-1.0, 1.0), "power": PowerBounds(-1.0, 1.0, 2.0)}.get(kind)
    homeostasis = LinearHomeostasis(0.02, 0.2, bounds=bounds).attach(ddp(net))
    net(batch_of(4, 4, seed=1)[rank].to(net.layers[3].weight.dtype))
    if rank == 1:
        layer = net.layers[0]
        original = layer.parametrizations.weight.original1 if kind == "parametrized" else layer.weight
        original[0, 0] = torch.nan
    before = {name: value.nan_to_num() for name, value in snapshot(net).items()}
    with pytest.raises(NonFiniteError, match=re.escape("cell 'layers.1' (update)")):
        homeostasis.step()
    assert all(torch.equal(value.nan_to_num(), before[name]) for name, value in net.named_parameters())


def scaled(factor: float, param: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    return factor * (pos - neg)


def closed(factor: float) -> Callable:
    return lambda param, pos, neg: factor * (pos - neg)


class Noisy(Bounds):
    """Bounds that throw dice: each process throws its own."""

    def __call__(self, param: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        return (pos - neg) * torch.rand_like(param)


OWN_BOUNDS = {
    "partial": lambda rank: functools.partial(scaled, 1.0 + rank),
    "closure": lambda rank: closed(1.0 + rank),
    "random": lambda rank: Noisy(-1.0, 1.0),
}


@scenario(*((kind,) for kind in OWN_BOUNDS))
def own_bounds_that_differ(kind: str, rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2, bounds=OWN_BOUNDS[kind](rank)).attach(ddp(net))
    net(batch_of(4, 4, seed=1)[rank])
    before = snapshot(net)
    torch.manual_seed(rank)
    with pytest.raises(ProcessMismatchError, match="their bounds make other changes of the same parts"):
        homeostasis.step()
    require_untouched(net, before)


@scenario()
def own_bounds_that_agree(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2, bounds=closed(0.5)).attach(ddp(net))
    go_on(net, homeostasis, rank)


def another_delay(net: nn.Module, rank: int) -> LinearHomeostasis:
    net.layers[0] = DelayedLinear(FEATURES, 8, 4 + rank).double()
    return LinearHomeostasis(0.02, 0.2, "delay", process_group=dist.group.WORLD).attach(
        net, pairs={"layers.1": "layers.0"}
    )


def another_type(net: nn.Module, rank: int) -> LinearHomeostasis:
    net.layers[0].to(torch.float64 if rank else torch.float32)
    return LinearHomeostasis(0.02, 0.2, "bias", process_group=dist.group.WORLD).attach(
        net, pairs={"layers.1": "layers.0"}
    )


def another_norm(net: nn.Module, rank: int) -> LinearHomeostasis:
    if rank:
        nn.utils.parametrizations.weight_norm(net.layers[0])
    return LinearHomeostasis(0.02, 0.2, process_group=dist.group.WORLD).attach(
        net, pairs={"layers.1": "layers.0"}
    )


def another_residue(net: nn.Module, rank: int) -> LinearHomeostasis:
    net.layers[0].half()
    homeostasis = LinearHomeostasis(0.02, 0.2, process_group=dist.group.WORLD).attach(
        net, pairs={"layers.1": "layers.0"}
    )
    residue = torch.full_like(net.layers[0].weight, 1e-5, dtype=torch.float32) if rank else None
    homeostasis.cells["layers.1"].updater.weight.residue = residue
    return homeostasis


LAYERS = {each.__name__: each for each in (another_delay, another_type, another_norm, another_residue)}


@scenario(*((kind,) for kind in LAYERS))
def layers_that_differ(kind: str, rank: int) -> None:
    net = dense()
    homeostasis = LAYERS[kind](net, rank)
    cell, before = homeostasis.cells["layers.1"], snapshot(net)
    net.layers[1](torch.rand(3, 8))
    homeostasis()
    with pytest.raises(ProcessMismatchError, match=r"only process 1 has .*'layers.1'"):
        homeostasis.update()
    require_untouched(net, before)
    assert not any(slot.pending for slot in cell.updater.slots.values())


@scenario()
def an_argument_that_cannot_work_in_one(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    for wrong in ({"target": -1.0}, {"cells": ["no such cell"]}, {"target": torch.ones(5)}):
        net(batch_of(4, 4, seed=1)[rank])
        before = snapshot(net)
        homeostasis(**wrong if rank == 1 else {})
        with pytest.raises(ArgumentError, match="Found" if rank else "process 1 raised: "):
            homeostasis.update()
        require_untouched(net, before)
        go_on(net, homeostasis, rank)


@scenario()
def a_reduction_that_changes_in_one(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    net(batch_of(4, 4, seed=1)[rank])
    before = snapshot(net)
    if rank == 1:
        homeostasis.units["layers.1"].state.batch_reduction = torch.amax
    with pytest.raises(ArgumentError, match="Found `batch_reduction = amax`"):
        homeostasis.step()
    require_untouched(net, before)


@scenario()
def no_cell_in_one(rank: int) -> None:
    net = dense()
    wrapped = ddp(net)
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(wrapped)
    wrapped(batch_of(4, 4, seed=1)[rank])
    before = snapshot(net)
    if rank == 1:
        homeostasis.remove()
    with pytest.raises(ArgumentError, match="`cells` should be registered"):
        homeostasis.step()
    with pytest.raises(ProcessMismatchError, match=r"only process 0 has .* cell 'layers.4'"):
        homeostasis.update()
    require_untouched(net, before)


@scenario()
def a_parameter_that_is_gone_in_one(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    net(batch_of(4, 4, seed=1)[rank])
    for cell in homeostasis.cells.values():
        cell.updater.bias = (torch.tensor(1.0), None)
    if rank == 1:
        bias = net.layers[3].bias
        del net.layers[3].bias
        net.layers[3].bias = bias.detach().clone()
    before = net.layers[0].bias.detach().clone()
    with pytest.raises(HomeostasisError, match=r"only process 1 has .*`bias` of Linear of cell 'layers.4'"):
        homeostasis.update()
    assert torch.equal(net.layers[0].bias, before)


# --- groups that come and go ------------------------------------------------------------------


@scenario()
def parts_from_before_the_group_count(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
    bias = homeostasis.cells["layers.1"].updater
    bias.bias = (torch.full((8,), 4.0 * rank), None)  # before any batch: all processes weigh the same
    wrapped, before = ddp(net), net.layers[0].bias.detach().clone()
    wrapped(batch_of(3, 1, seed=0)[rank])
    homeostasis.update()
    torch.testing.assert_close(net.layers[0].bias, before + 2.0)
    require_replicas(net)


@scenario()
def after_the_group_each_process_is_alone(rank: int) -> None:
    net, reference = dense(), dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    one = LinearHomeostasis(0.02, 0.2, process_group=None).attach(reference)
    x = batch_of(4, 4, seed=1)[rank]
    net(x)
    homeostasis.step()
    dist.destroy_process_group()
    homeostasis.clear()
    reference.load_state_dict(net.state_dict())
    for model, rule in ((net, homeostasis), (reference, one)):
        model(x), rule.step()
        model(x[:0]), rule.step()
    require_close(net, reference)
    for mine, wanted in zip(homeostasis.rates().values(), one.rates().values(), strict=True):
        assert torch.equal(mine, wanted)


@scenario()
def a_group_after_another(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    net(batch_of(4, 4, seed=1)[rank])
    homeostasis.step()
    for number in range(2):
        dist.barrier()
        dist.destroy_process_group()
        start_group(rank, f"again {number}")
        wrapped = ddp(net)
        wrapped(batch_of(4, 4, seed=2)[rank])  # a new wrapper copies the membranes of process 0 to all
        assert collectives(homeostasis.step) == ["all_reduce"]
        require_replicas(net)


# --- processes that leave early --------------------------------------------------------------


@scenario(("before",), ("after",))
def join_is_refused_in_every_process(attached: str, rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2)
    if attached == "before":
        homeostasis.attach(net)
    wrapped = ddp(net)
    if attached == "after":
        homeostasis.attach(wrapped)
    before = snapshot(net)
    with contextlib.suppress(Interrupted), wrapped.join() if attached == "before" else Join([wrapped]):
        wrapped(batch_of(4, 4, seed=1)[rank])
        assert collectives(lambda: require_refused(homeostasis)) == []
        raise Interrupted  # as the error would; without one `join()` waits for the others
    require_untouched(net, before)


class Interrupted(Exception): ...  # noqa: N818


def require_refused(homeostasis: LinearHomeostasis) -> None:
    with pytest.raises(ArgumentError, match=re.escape("`join()` should not be around the training")):
        homeostasis.step()


@scenario()
def join_without_uneven_batches_is_taken(rank: int) -> None:
    net = dense()
    wrapped = ddp(net)
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(wrapped)
    with wrapped.join(enable=False):
        wrapped(batch_of(4, 4, seed=1)[rank])
        homeostasis.step()
    require_replicas(net)


# --- state -----------------------------------------------------------------------------------


@scenario()
def resuming_is_never_having_stopped(rank: int) -> None:
    net, twin = dense(), dense()
    first, resumed = (
        LinearHomeostasis(0.02, 0.2, bounds=BOUNDS["soft"]).attach(ddp(model)) for model in (net, twin)
    )
    for sizes in ((4, 2), (4, 0)):
        net(batch_of(*sizes, seed=sum(sizes))[rank])
        first.step()
    net(batch_of(1, 3, seed=3)[rank])
    first()
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "homeostasis": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["homeostasis"], strict=True)
    for model, homeostasis in ((net, first), (twin, resumed)):
        homeostasis.update()
        model(batch_of(2, 2, seed=5)[rank])
        homeostasis.step()
    require_untouched(twin, snapshot(net))
    require_replicas(net)


@scenario()
def several_processes_load_a_checkpoint_of_one(rank: int) -> None:
    reference, net = dense(), dense()
    one = LinearHomeostasis(0.02, 0.2, process_group=None).attach(reference)
    x = torch.cat(batch_of(4, 2, seed=0))
    reference(x)
    one()
    wrapped = ddp(net)
    many = LinearHomeostasis(0.02, 0.2).attach(wrapped.module)
    net.load_state_dict(reference.state_dict())
    many.load_state_dict(copy.deepcopy(one.state_dict()), strict=True)
    wrapped(batch_of(3, 1, seed=4)[rank])
    reference(torch.cat(batch_of(3, 1, seed=4)))
    one.update(), many.update()
    require_close(net, reference)
    one.load_state_dict(many.state_dict(), strict=True)


@scenario()
def follow_steps_in_every_process(rank: int) -> None:
    net = dense()
    wrapped = ddp(net)
    optimizer = torch.optim.Adam(net.parameters())
    homeostasis = (
        LinearHomeostasis(0.02, 0.2, bounds=ClampBounds(-0.3, 0.3)).attach(wrapped).follow(optimizer)
    )
    for iteration in range(5):
        train(wrapped, batch_of(3, 4, seed=iteration)[rank], 7, SIZE, optimizer)
        require_replicas(net)
        assert net.layers[0].weight.abs().max() <= 0.3
    assert list(homeostasis.rates()) == list(homeostasis.cells)


# --- sharded parameters ----------------------------------------------------------------------


class Halves(nn.Identity):
    """Spikes in the precision of a bfloat16 model."""

    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


def halves() -> Net:
    torch.manual_seed(1)
    return Net(nn.Linear(FEATURES, 7), leaky(), Halves(), nn.Linear(7, 3), leaky()).bfloat16()


def require_shards_close(net: nn.Module, reference: nn.Module) -> None:
    net.reshard()
    require_close(net, reference)


@scenario(
    *((bounds, "weight", "dense", 0) for bounds in BOUNDS),
    ("soft", "bias", "conv", 0),
    ("clamped", "weight", "dense", 1),
)
def sharded_is_equal_to_one_process(bounds: str, param: str, build: str, dim: int, rank: int) -> None:
    reference, net = NETS[build](), shard(NETS[build](), inner=param == "weight", dim=dim)
    one = LinearHomeostasis(0.02, 0.2, param, bounds=BOUNDS[bounds], process_group=None).attach(reference)
    many = LinearHomeostasis(0.02, 0.2, param, bounds=BOUNDS[bounds]).attach(net)
    optimizers = [torch.optim.SGD(model.parameters(), 1e-3) for model in (reference, net)]
    for iteration in range(6):
        sizes = (4, 1)
        x = batch_of(*sizes, seed=iteration)
        train(reference, torch.cat(x), sum(sizes), 1, optimizers[0])
        train(net, x[rank], sum(sizes), SIZE, optimizers[1])
        one.step(), many.step()
    require_shards_close(net, reference)


@scenario()
def parameters_still_gathered_after_a_forward(rank: int) -> None:
    reference, net = dense(), shard(dense())
    one = LinearHomeostasis(0.02, 0.2, process_group=None).attach(reference)
    many = LinearHomeostasis(0.02, 0.2).attach(net)
    for iteration in range(3):
        x = batch_of(4, 3, seed=iteration)
        reference(torch.cat(x)), net(x[rank])
        one.step()
        assert collectives(many.step).count("all_reduce") == 1
    require_shards_close(net, reference)


@scenario((False,), (True,))
def a_graph_that_waits_for_sharded_parameters(inner: bool, rank: int) -> None:
    net = shard(dense(), inner=inner)
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
    x = batch_of(4, 3, seed=0)[rank]
    with torch.enable_grad():
        loss = net(x).sum()
    with pytest.raises(WaitingGraphError, match=re.escape("cell 'layers.4'")):
        homeostasis.step()
    loss.backward()
    homeostasis.step()


@scenario()
def sharded_cells_registered_by_hand(rank: int) -> None:
    reference, net = dense(), shard(dense(), inner=True)
    one, many = LinearHomeostasis(0.02, 0.2, process_group=None), LinearHomeostasis(0.02, 0.2)
    for homeostasis, model in ((one, reference), (many, net)):
        homeostasis.register_cell("cell", Cell(model.layers[0], model.layers[1]))
    x = batch_of(4, 3, seed=0)
    reference(torch.cat(x)), net(x[rank])
    one.step(), many.step()
    require_shards_close(net, reference)


@scenario()
def gathered_cells_registered_by_hand(rank: int) -> None:
    net = shard(dense())
    homeostasis = LinearHomeostasis(0.02, 0.2)
    homeostasis.register_cell("cell", Cell(net.layers[0], net.layers[1]))
    net(batch_of(4, 3, seed=0)[rank])
    with pytest.raises(HomeostasisError, match=re.escape("Call `reshard()` of the model")):
        homeostasis.step()
    net.reshard()
    homeostasis.step()


@scenario()
def small_updates_of_half_precision_shards_add_up(rank: int) -> None:
    net = shard(halves())
    homeostasis = LinearHomeostasis(1e-4, 0.2).attach(net)
    before = net.layers[0].weight.full_tensor().float()
    cell = homeostasis.cells["layers.1"]
    x = batch_of(1, 1, seed=0)[rank].bfloat16()
    net(x)
    for _ in range(100):
        cell.updater.weight = (torch.tensor(1e-4), None)
        homeostasis.update()
    after = net.layers[0].weight.full_tensor().float()
    torch.testing.assert_close(after - before, torch.full_like(after, 0.01), atol=4e-3, rtol=0)
    assert (after - before).mean().item() == pytest.approx(0.01, abs=5e-4)


@scenario()
def bounds_that_fail_on_one_shard(rank: int) -> None:
    net = shard(dense())
    homeostasis = LinearHomeostasis(0.02, 0.2, bounds=BOUNDS["soft"]).attach(net)
    train(net, batch_of(4, 3, seed=0)[rank], 7, SIZE, torch.optim.SGD(net.parameters(), 1e-3))
    if rank == 1:
        net.layers[0].weight.to_local().fill_(torch.inf)
    before = {name: value.to_local().clone() for name, value in net.named_parameters()}
    with pytest.raises(NonFiniteError, match=re.escape("'layers.1' (update)")):
        homeostasis.step()
    assert all(torch.equal(value.to_local(), before[name]) for name, value in net.named_parameters())


@scenario()
def a_half_precision_shard_that_is_not_finite_in_one(rank: int) -> None:
    net = shard(halves())
    homeostasis = LinearHomeostasis(1e-4, 0.2).attach(net)
    net(batch_of(1, 1, seed=0)[rank].bfloat16())
    net.reshard()
    if rank == 1:
        net.layers[0].weight.to_local().fill_(torch.inf)
    before = {name: value.to_local().clone() for name, value in net.named_parameters()}
    with pytest.raises(NonFiniteError, match=re.escape("'layers.1' (update)")):
        homeostasis.step()
    assert all(torch.equal(value.to_local(), before[name]) for name, value in net.named_parameters())


@scenario()
def stuck_delays_beside_bounds_that_fail_in_one(rank: int) -> None:
    def bound(param: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        if fails and rank == 0:
            raise ValueError("lost")
        return pos - neg

    net = Net(nn.Linear(FEATURES, 8), leaky(), Double(), DelayedLinear(8, 3, 4), leaky(), Double())
    net = shard(net)
    homeostasis = LinearHomeostasis(0.02, 0.2)
    homeostasis.attach(net, include=["layers.1"], pairs={"layers.1": "layers.0"}, bounds=bound)
    homeostasis.attach(net, include=["layers.4"], pairs={"layers.4": "layers.3"}, param="delay")
    net.layers[3].reset()
    for name in ("layers.1", "layers.4"):
        homeostasis.cells[name].neuron.module(torch.zeros(4, 8 if name == "layers.1" else 3))
    net.layers[3].delay.to_local().fill_(4.0)
    homeostasis.cells["layers.4"].updater.delay = (torch.ones(3, 1), None)
    before, fails = [value.to_local().clone() for value in net.parameters()], True
    with pytest.raises(ValueError if rank == 0 else ProcessMismatchError, match="lost"):
        homeostasis.step()
    assert all(map(torch.equal, before, [value.to_local() for value in net.parameters()]))
    fails = False
    homeostasis.cells["layers.4"].updater.delay = (torch.ones(3, 1), None)
    with pytest.warns(HomeostasisWarning, match="All delays of a neuron in cell 'layers.4' are at a limit"):
        homeostasis.step()


@scenario()
def flat_shards_are_refused(rank: int) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    class Flat(FullyShardedDataParallel):
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self._fsdp_wrapped_module = module

    with pytest.raises(ArgumentError, match=r"Use `torch.distributed.fsdp.fully_shard`"):
        LinearHomeostasis(0.02, 0.2).attach(nn.Sequential(Flat(dense())))


# --- last, because one process dies -----------------------------------------------------------


@scenario()
def a_process_that_dies(rank: int) -> None:
    net = dense()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(ddp(net))
    net(batch_of(4, 3, seed=0)[rank])
    homeostasis.step()
    before = snapshot(net)
    if rank == 1:
        os._exit(1)
    with pytest.raises(ProcessMismatchError, match=re.escape("every process should take part in `update()`")):
        homeostasis.step()
    require_untouched(net, before)
