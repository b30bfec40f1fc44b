"""Copies, moves, checkpoints and modes of an observed net."""

import contextlib
import copy
import functools
import gc
import io
import math
import pickle
import re
import warnings
import weakref

import pytest
import torch
from nets import Recount, hooks_of, leaky, linear, snapshot, spikes, unchanged
from snntorch import utils
from torch import nn
from torch.distributed import checkpoint
from torch.optim.swa_utils import AveragedModel

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ClampBounds,
    CumulativeRate,
    ExponentialRate,
    HomeostasisError,
    LinearHomeostasis,
    NoSpikesError,
    RateHistory,
    WindowedRate,
)


def attached(**settings) -> tuple[nn.Sequential, LinearHomeostasis]:
    net = linear()
    return net, LinearHomeostasis(0.02, 0.2, **settings).attach(net)


@torch.no_grad()
def present(net: nn.Module, steps: int = 3, batch: int = 4) -> None:
    utils.reset(net)
    weight = next(net.parameters())
    for _ in range(steps):
        net(2 * spikes(batch, 6).to(weight.device, weight.dtype))


@pytest.mark.parametrize("copier", [copy.deepcopy, AveragedModel])
def test_a_copy_is_not_observed_and_runs_as_the_original(copier):
    net, homeostasis = attached()
    present(net)
    twin = copier(net)
    before = homeostasis.rates()
    present(twin.module if isinstance(twin, AveragedModel) else twin)
    for name, rate in homeostasis.rates().items():
        assert torch.equal(rate, before[name])
    if isinstance(twin, AveragedModel):
        twin.update_parameters(net)
    present(net)
    assert homeostasis.units["1"].rate.steps == 6


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_conversion_of_the_net_is_followed(overwrite):
    net = nn.Sequential(*linear()[:2])
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
    present(net)
    homeostasis.step()
    torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
    try:
        net.to(torch.bfloat16)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    recount = Recount(net[1])
    homeostasis.clear()
    present(net)
    assert homeostasis.rates()["1"].dtype == torch.float32
    torch.testing.assert_close(homeostasis.rates()["1"].double(), recount.rate)
    before = net[0].weight.detach().clone()
    homeostasis.step()
    assert net[0].weight.dtype == torch.bfloat16
    assert not torch.equal(net[0].weight, before)


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_parameters_are_the_ones_that_are_updated(assign):
    net, homeostasis = attached()
    present(net)
    net.load_state_dict({key: value.clone() for key, value in linear().state_dict().items()}, assign=assign)
    present(net)
    before = snapshot(net)
    homeostasis.step()
    assert not torch.equal(net[0].weight, before["0.weight"])


def tied_nets() -> tuple[nn.Sequential, LinearHomeostasis]:
    net = nn.Sequential(nn.Linear(6, 6), leaky(), nn.Linear(6, 6), leaky())
    return net, LinearHomeostasis(0.02, 0.2, bounds=ClampBounds(-1.0, 1.0)).attach(net)


def parts_of(homeostasis: LinearHomeostasis) -> list[torch.Tensor]:
    return [unit.slot.pos - unit.slot.neg for unit in homeostasis.units.values()]


def test_layers_tied_after_attach_get_one_update():
    net, homeostasis = tied_nets()
    net[2].weight = net[0].weight
    present(net)
    before = net[0].weight.detach().clone()
    version = net[0].weight._version
    homeostasis()
    first, second = parts_of(homeostasis)
    homeostasis.update()
    torch.testing.assert_close(net[0].weight, before + first + second)
    assert net[0].weight._version - version == 2  # one addition and one clamp


def test_layers_that_are_no_longer_tied_get_two_updates():
    net, homeostasis = tied_nets()
    net[2].weight = net[0].weight
    present(net)
    homeostasis.step()
    state = {key: value.detach().clone() for key, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    assert net[0].weight is not net[2].weight
    present(net)
    homeostasis()
    before, parts = snapshot(net), parts_of(homeostasis)
    homeostasis.update()
    for index, part in zip((0, 2), parts, strict=True):
        torch.testing.assert_close(net[index].weight, before[f"{index}.weight"] + part)


def test_tied_layers_with_different_bounds_are_refused():
    net, homeostasis = tied_nets()
    homeostasis.cells["3"].updater.weight.bounds = ClampBounds(-2.0, 2.0)
    present(net)
    homeostasis.step()
    net[2].weight = net[0].weight
    present(net)
    before = snapshot(net)
    with pytest.raises(ArgumentError, match="be the same wherever one parameter is regulated"):
        homeostasis.step()
    assert unchanged(net, before)


@pytest.mark.parametrize(
    "rate", [CumulativeRate, functools.partial(ExponentialRate, 20.0), functools.partial(WindowedRate, 9)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resuming_in_the_middle_of_training_is_bit_identical(rate, dtype):
    def build():
        torch.manual_seed(7)
        net = nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 3, dtype=torch.float32), leaky()).to(dtype)
        net[2].float()  # spikes are float32
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        homeostasis = LinearHomeostasis(1e-3, target=torch.full((8,), 0.2), rate=rate).attach(net[:2])
        return net, optimizer, homeostasis.follow(optimizer)

    def iterate(net, optimizer, homeostasis, iteration):
        torch.manual_seed(iteration)
        utils.reset(net)
        output = sum(net(2 * spikes(3 + iteration % 2, 6).to(dtype)) for _ in range(4))
        optimizer.zero_grad()
        output.square().mean().backward()
        optimizer.step()
        homeostasis(target=0.7)  # stays pending until the next step

    run = build()
    for iteration in range(4):
        iterate(*run, iteration)
    run[2].cells["1"].updater.bias = (torch.full((8,), 1e-4), None)  # which no rule has given
    file = io.BytesIO()
    utils.reset(run[0])
    torch.save([each.state_dict() for each in run], file)
    file.seek(0)
    resumed = build()
    present(resumed[0][:2])
    for each, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        each.load_state_dict(state)
    for iteration in range(4, 8):
        for each in (run, resumed):
            iterate(*each, iteration)
    assert unchanged(resumed[0], snapshot(run[0]))
    for key, value in run[2].state_dict().items():
        assert torch.equal(value, resumed[2].state_dict()[key]), key


# --- state in part -------------------------------------------------------------------------------


RATES = [CumulativeRate, functools.partial(ExponentialRate, 20.0), functools.partial(WindowedRate, 9)]


def saved_and_fresh(rate) -> tuple[LinearHomeostasis, nn.Sequential, LinearHomeostasis]:
    """The homeostasis of one cell, with a rate and a pending slot, and a new one that saw nothing."""
    net, fresh_net = (nn.Sequential(*linear()[:2]) for _ in range(2))
    homeostasis, fresh = (LinearHomeostasis(0.02, 0.2, rate=rate).attach(each) for each in (net, fresh_net))
    present(net)
    homeostasis()
    return homeostasis, fresh_net, fresh


def load_from_disk(state: dict, fresh: LinearHomeostasis, path) -> dict:
    """What torch.distributed.checkpoint loads: the entries that the new object has already."""
    with warnings.catch_warnings(action="ignore"):  # it says that it runs in one process
        checkpoint.save(state, checkpoint_id=path)
        loaded = fresh.state_dict()
        checkpoint.load(loaded, checkpoint_id=path)
    return loaded


@pytest.mark.parametrize("rate", RATES)
def test_a_distributed_checkpoint_reports_the_tensors_it_leaves_out(rate, tmp_path):
    homeostasis, net, fresh = saved_and_fresh(rate)
    loaded = load_from_disk(homeostasis.state_dict(), fresh, tmp_path)
    with pytest.raises(RuntimeError, match=r"Missing key.*registered\.1\.rate\.total.*slots\.weight\.pos"):
        fresh.load_state_dict(loaded)
    fresh.load_state_dict(loaded, strict=False)
    assert not any(unit.pending for unit in fresh.units.values())
    with pytest.raises(NoSpikesError):
        fresh.rates()
    other = LinearHomeostasis(0.02, 0.2, rate=rate).attach(net)
    present(net)
    assert torch.equal(fresh.rates()["1"], other.rates()["1"])


def test_a_distributed_checkpoint_resumes_after_one_run(tmp_path):
    net, homeostasis = attached()
    present(net)
    homeostasis.step()
    twin, fresh = attached()
    present(twin, steps=1)
    fresh.load_state_dict(load_from_disk(homeostasis.state_dict(), fresh, tmp_path))
    for name, rate in homeostasis.rates().items():
        assert torch.equal(fresh.rates()[name], rate)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_without_one_entry_a_state_is_reported_and_loads_in_whole_or_not(rate, used):
    homeostasis, net, fresh = saved_and_fresh(rate)
    state = homeostasis.state_dict()
    for missing in state:
        fresh.clear()
        if used:
            present(net, steps=1, batch=2)
        own = fresh.rates()["1"] if used else None
        part = {key: value for key, value in state.items() if key != missing}
        with pytest.raises(RuntimeError, match=re.escape(f'"{missing}"')):
            fresh.load_state_dict(part)
        fresh.load_state_dict(part, strict=False)
        if not missing.startswith("registered.1.rate"):
            own = homeostasis.rates()["1"]
        if own is None:
            with pytest.raises(NoSpikesError):
                fresh.rates()
        else:
            assert torch.equal(fresh.rates()["1"], own)
        is_slot = missing.startswith("registered.1.slots.weight")
        assert fresh.units["1"].pending != is_slot


def test_a_tensor_target_that_is_not_loaded_is_reported(tmp_path):
    _, homeostasis = attached()
    homeostasis.units["1"].state.target = torch.full((8,), 0.4)
    _, fresh = attached()
    loaded = load_from_disk(homeostasis.state_dict(), fresh, tmp_path)
    with pytest.raises(RuntimeError, match=r"Missing key.*registered\.1\.state\.target_tensor"):
        fresh.load_state_dict(loaded)


@pytest.mark.parametrize("other", [*RATES, functools.partial(ExponentialRate, 50.0)])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("strict", [True, False])
def test_the_total_of_another_estimator_never_becomes_a_wrong_rate(rate, other, strict):
    net, homeostasis = attached(rate=rate)
    present(net, steps=12)
    _, fresh = attached(rate=other)
    with contextlib.suppress(RuntimeError):  # of torch, which joins what is wrong to one message
        fresh.load_state_dict(homeostasis.state_dict(), strict=strict)
    if rate is other:
        assert torch.equal(fresh.rates()["1"], homeostasis.rates()["1"])
    else:
        with pytest.raises(NoSpikesError):
            fresh.rates()


def test_an_estimator_with_another_constant_is_refused_by_name():
    net, homeostasis = attached(rate=RATES[1])
    present(net)
    _, fresh = attached(rate=functools.partial(ExponentialRate, 50.0))
    with pytest.raises(RuntimeError, match="Build ExponentialRate with the arguments of the saved one"):
        fresh.load_state_dict(homeostasis.state_dict())


# --- a module that holds its homeostasis ---------------------------------------------------------


class Holder(nn.Module):
    """A module as in Lightning: it holds its model and what regulates it, in any order."""

    def __init__(self, is_first: bool = False, bias: bool = False, **settings) -> None:
        super().__init__()
        if is_first:
            self.homeostasis = LinearHomeostasis(0.02, 0.2, **settings)
        self.net = nn.Sequential(*linear()[:2])
        if not is_first:
            self.homeostasis = LinearHomeostasis(0.02, 0.2, **settings)
        self.homeostasis.attach(self.net)
        if bias:
            self.homeostasis.register_cell("bias", self.homeostasis.cells["1"], param="bias")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def copy_in_a_list(holder: Holder) -> Holder:
    """Copies what a holder has, without the holder."""
    twin = Holder.__new__(Holder)
    nn.Module.__init__(twin)
    twin.net, twin.homeostasis = copy.deepcopy([holder.net, holder.homeostasis])
    return twin


COPIERS = {
    "deepcopy": copy.deepcopy,
    "average": lambda holder: AveragedModel(holder).module,
    "copy of a copy": lambda holder: copy.deepcopy(copy.deepcopy(holder)),
    "list": copy_in_a_list,
}


@pytest.mark.parametrize("copier", COPIERS)
@pytest.mark.parametrize("is_first", [False, True], ids=["model first", "homeostasis first"])
@pytest.mark.parametrize("bias", [False, True], ids=["one unit", "two units"])
def test_a_copied_holder_observes_and_changes_only_its_own_model(copier, is_first, bias):
    holder = Holder(is_first, bias)
    present(holder.net)
    twin = COPIERS[copier](holder)
    before, rates = snapshot(holder.net), holder.homeostasis.rates()
    recount = Recount(twin.net[1])
    twin.homeostasis.clear()
    present(twin.net)
    torch.testing.assert_close(twin.homeostasis.rates()["1"].double(), recount.rate)
    twin.homeostasis.step()
    assert not unchanged(twin.net, before)
    assert unchanged(holder.net, before)
    assert torch.equal(holder.homeostasis.rates()["1"], rates["1"])
    assert hooks_of(twin.net) == hooks_of(holder.net) + 1
    twin.homeostasis.remove()
    assert hooks_of(twin.net) == 1  # of the recount
    assert holder.homeostasis.cells["1"].connection.layer is holder.net[0]


@pytest.mark.parametrize("batch", [3, 4])
@pytest.mark.parametrize("rate", RATES)
def test_a_copied_holder_goes_on_exactly_as_the_original(rate, batch):
    holder = Holder(rate=rate, bounds=ClampBounds(-0.1, 0.1), bias=True)
    present(holder.net)
    holder.homeostasis.step()
    holder.homeostasis(target=0.7)  # stays pending
    twin = copy.deepcopy(holder)
    for each in (holder, twin):
        torch.manual_seed(1)
        each.net[1].reset_mem()  # `utils.reset` does not know copies
        present(each.net, batch=batch)
        each.homeostasis.step()
    assert unchanged(twin.net, snapshot(holder.net))
    state = holder.homeostasis.state_dict()
    assert twin.homeostasis.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in twin.homeostasis.state_dict().items())


def test_settings_of_a_copied_holder_are_its_own():
    holder = Holder(bias=True)
    holder.homeostasis.units["1"].state.target = torch.full((8,), 0.3)
    twin = copy.deepcopy(holder)
    unit, other = twin.homeostasis.units["1"], twin.homeostasis.units["bias"]
    assert unit.cell is other.cell
    unit.state.target.fill_(0.5)
    unit.state.plasticity, unit.slot.bounds = 1.0, ClampBounds(0.0)
    original = holder.homeostasis.units["1"]
    assert original.state.target.unique().tolist() == pytest.approx([0.3])
    assert (original.state.plasticity, original.slot.bounds) == (0.02, None)


def test_ties_of_the_original_are_not_copied():
    holder = Holder()
    optimizer = torch.optim.SGD(holder.parameters(), 0.1)
    holder.homeostasis.follow(optimizer)
    history = RateHistory(holder.homeostasis)
    with holder.homeostasis.pause():
        twin = copy.deepcopy(holder)
    present(holder.net)
    present(twin.net)
    before = snapshot(twin.net)
    twin.homeostasis.step()
    assert not unchanged(twin.net, before)
    assert len(history) == 0
    after = snapshot(twin.net)
    optimizer.step()
    assert unchanged(twin.net, after)
    assert len(history) == 1


def test_a_copied_holder_is_freed_and_leaves_no_hook():
    twin = copy.deepcopy(Holder())
    net, reference = twin.net, weakref.ref(twin.homeostasis)
    gc.disable()
    try:
        del twin.homeostasis
        assert reference() is None
    finally:
        gc.enable()
    assert hooks_of(net) == 0


def test_an_average_of_the_holder_follows_the_regulated_parameters():
    holder = Holder()
    present(holder.net)  # the membranes, which are averaged too, have their shape then
    average = AveragedModel(holder, avg_fn=lambda old, new, count: new)
    for _ in range(3):
        present(holder.net)
        holder.homeostasis.step()
        average.update_parameters(holder)
    for mine, own in zip(average.module.net.parameters(), holder.net.parameters(), strict=True):
        assert torch.equal(mine, own)
    assert average.module.homeostasis.units["1"].rate.steps == 3


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, copy.copy, pickle.dumps, lambda each: torch.save(each, io.BytesIO())]
)
def test_a_homeostasis_without_its_model_is_not_copied(copier):
    with pytest.raises(HomeostasisError, match="Attach a new one to the other model"):
        copier(Holder().homeostasis)


def test_a_holder_is_not_pickled():
    with pytest.raises(HomeostasisError, match="should not be pickled"):
        torch.save(Holder(is_first=True), io.BytesIO())


def test_a_cell_is_copied_along_with_its_model():
    net = nn.Sequential(*linear()[:2])
    cell = Cell(*net, sign=-1)
    cell.updater.weight = (torch.full((8, 1), 0.1), None)
    twin, its_cell = copy.deepcopy((net, cell))
    present(twin)
    assert (its_cell.neuron.samples, its_cell.sign) == (4, -1)
    before = snapshot(net)
    its_cell.updater()
    torch.testing.assert_close(twin[0].weight, net[0].weight + 0.1)
    assert unchanged(net, before)
    assert cell.updater.weight.pending


# --- modes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [CumulativeRate, functools.partial(ExponentialRate, 20.0)])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_state_made_in_a_mode_works_outside_it(mode, rate):
    net, homeostasis = attached(rate=rate)
    with mode():
        present(net)
        homeostasis.step()
        present(net, batch=2)
        homeostasis()
    present(net, batch=2)
    with mode():
        homeostasis.load_state_dict(homeostasis.state_dict())
    present(net, batch=2)
    net(spikes(2, 6)).sum().backward()
    homeostasis.step()
    assert homeostasis.units["1"].rate.steps == 13


@pytest.mark.parametrize("rate", [CumulativeRate, functools.partial(ExponentialRate, 20.0)])
def test_a_loaded_estimate_of_another_batch_is_carried_over(rate):
    saved, loaded = attached(rate=rate), attached(rate=rate)
    present(saved[0])
    present(loaded[0], batch=1)
    loaded[1].load_state_dict(saved[1].state_dict())
    before = loaded[1].rates()["1"]
    present(loaded[0], batch=1, steps=1)
    state = loaded[1].units["1"].rate
    assert state.rate.shape == (1, 8)
    fired = loaded[1].cells["1"].neuron.spike.float()[0]
    decay = math.exp(-1 / 20)
    weight = 1 / 4 if rate is CumulativeRate else (1 - decay) / (1 - decay**4)
    torch.testing.assert_close(state.rate[0], before + weight * (fired - before))


def test_vmap_is_refused():
    net = nn.Sequential(nn.Linear(6, 8), leaky(surrogate_disable=True))
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
    for _ in range(2):  # before any state is there, and after
        with pytest.raises(ArgumentError, match=r"under `torch\.vmap`"):
            torch.vmap(net)(spikes(4, 6))
        net[1].mem = torch.zeros(())
        present(net)
    assert homeostasis.units["1"].rate.steps == 6


def test_replicas_of_data_parallel_are_refused():
    net, homeostasis = attached()
    present(net)
    replica = net[1]._replicate_for_data_parallel()  # what DataParallel does, but for the devices
    for name, buffer in net[1].named_buffers():
        setattr(replica, name, buffer)
    with pytest.raises(ArgumentError, match="Use DistributedDataParallel"):
        replica(torch.rand(4, 8))
    assert homeostasis.units["1"].rate.steps == 3


def test_frozen_parameters_are_regulated_only_on_request():
    net = linear().requires_grad_(False)
    with pytest.raises(ArgumentError, match="name a frozen layer in `pairs=`"):
        LinearHomeostasis(0.02, 0.2).attach(net)
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net, pairs={"1": "0"})
    present(net)
    before = snapshot(net)
    homeostasis.step()
    changed = [name for name, param in net.named_parameters() if not torch.equal(param, before[name])]
    assert changed == ["0.weight"]
    assert not net[0].weight.requires_grad
