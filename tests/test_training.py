"""Inside a training loop: gradients, graphs that wait, optimizers, and forwards that run twice."""

import copy
import gc
import weakref
from contextlib import nullcontext

import pytest
import snntorch as snn
import torch
from nets import NETS, Recount, hooks_of, leaky, linear, snapshot, spikes, unchanged
from snntorch import utils
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ClampBounds,
    HomeostasisWarning,
    LinearHomeostasis,
    WaitingGraphError,
)
from snn_homeostasis.updates import is_needed_by

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, 0.05, momentum=0.9, weight_decay=1e-2),
    "sgd-foreach": lambda params: torch.optim.SGD(params, 0.05, momentum=0.9, foreach=True),
    "sgd-fused": lambda params: torch.optim.SGD(params, 0.05, momentum=0.9, fused=True),
    "adamw": lambda params: torch.optim.AdamW(params, 1e-2),
    "adamw-foreach": lambda params: torch.optim.AdamW(params, 1e-2, foreach=True),
    "adamw-fused": lambda params: torch.optim.AdamW(params, 1e-2, fused=True),
}
WEIGHTS = {
    "linear": ["0.weight", "2.weight", "4.weight"],
    "conv": ["0.weight", "5.weight", "8.weight"],
    "recurrent": ["0.weight", "1.recurrent.weight", "2.weight"],
    "slstm": ["0.weight", "2.lstm_cell.weight_ih", "3.weight"],
}


def regulated(name: str, **settings) -> tuple[nn.Sequential, LinearHomeostasis]:
    """A net with every layer regulated, also those inside its neurons."""
    net = NETS[name].build()
    homeostasis = LinearHomeostasis(0.02, 0.2, **settings)
    for path in WEIGHTS[name]:
        layer = path.rpartition(".")[0]
        before = list(net)[: int(layer.partition(".")[0])]
        rest = list(net)[len(before) :]
        neuron = next(module for module in rest if isinstance(module, snn.SpikingNeuron))
        homeostasis.register_cell(layer.replace(".", "-"), Cell(net.get_submodule(layer), neuron))
    return net, homeostasis


def gradients(net: nn.Module) -> list[torch.Tensor]:
    return [param.grad for param in net.parameters()]


# --- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_those_of_the_plain_net(name):
    net, homeostasis = regulated(name)
    for iteration in range(5):
        plain = NETS[name].build()
        plain.load_state_dict(net.state_dict())
        for each in (net, plain):
            torch.manual_seed(iteration)
            each.zero_grad()
            NETS[name].present(each).square().mean().backward()
        for mine, yours in zip(gradients(net), gradients(plain), strict=True):
            assert torch.equal(mine, yours)
        before = snapshot(net)
        homeostasis.step()
        assert not unchanged(net, before)


# --- a graph that waits ------------------------------------------------------------------------


def loss_on_spikes(net: nn.Module, output: torch.Tensor) -> torch.Tensor:
    return output.sum()


def loss_on_membrane(net: nn.Module, output: torch.Tensor) -> torch.Tensor:
    return net[-1].mem.square().sum()


@pytest.mark.parametrize("loss", [loss_on_spikes, loss_on_membrane])
@pytest.mark.parametrize("name", NETS)
def test_step_before_backward_is_refused_and_after_it_is_not(name, loss):
    net, homeostasis = regulated(name)
    for _ in range(2):
        output = NETS[name].present(net)
        before = snapshot(net)
        with pytest.raises(WaitingGraphError, match="Call `backward\\(\\)` first"):
            homeostasis.step()
        assert unchanged(net, before)
        assert not any(unit.slot.pending for unit in homeostasis.units.values())
        loss(net, output).backward()
        homeostasis.step()
        assert not unchanged(net, before)


@pytest.mark.parametrize("path", [path for name in WEIGHTS for path in WEIGHTS[name] if path != "0.weight"])
def test_what_is_refused_would_fail_in_the_backward(path):
    name = next(name for name in WEIGHTS if path in WEIGHTS[name])
    net, homeostasis = regulated(name)
    cell = path.rpartition(".")[0].replace(".", "-")
    loss = NETS[name].present(net).sum()
    with pytest.raises(WaitingGraphError, match=f"'{cell}'"):
        homeostasis.step(cells=[cell])
    with torch.no_grad():
        net.get_parameter(path).add_(0.01)  # what the step would do
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_torch_allows_is_not_refused():
    net = linear()
    weights = LinearHomeostasis(0.02, 0.2).attach(net[:2])  # its input needs no gradient
    biases = LinearHomeostasis(0.02, 0.2, "bias").attach(net)
    loss = NETS["linear"].present(net).sum()
    weights.step()
    biases.step()
    loss.backward()
    with torch.no_grad():
        NETS["linear"].present(net)
    LinearHomeostasis(0.02, 0.2).attach(net)
    weights.step()


def test_a_graph_that_is_kept_still_waits():
    net, homeostasis = regulated("linear")
    NETS["linear"].present(net).sum().backward(retain_graph=True)
    with pytest.raises(WaitingGraphError):
        homeostasis.step()


# --- optimizers --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_following_adds_the_rule_to_what_the_optimizer_does(optimizer):
    net, plain = linear(), linear()
    plain.load_state_dict(net.state_dict())
    fit, fit_plain = (OPTIMIZERS[optimizer](each.parameters()) for each in (net, plain))
    bounds = ClampBounds(-0.3, 0.3)
    homeostasis = LinearHomeostasis(0.02, 0.2, bounds=bounds).attach(net).follow(fit)
    for _ in range(4):
        NETS["linear"].present(net).square().mean().backward()
        for mine, yours in zip(net.parameters(), plain.parameters(), strict=True):
            with torch.no_grad():
                yours.copy_(mine)
            yours.grad, mine.grad = mine.grad, None
            mine.grad = yours.grad.clone()
        fit_plain.step()
        fit.step()
        for index, cell in zip((0, 2, 4), homeostasis.cells, strict=True):
            term = 0.02 * (0.2 - homeostasis.units[cell].rate.rate) / 0.2
            delta = (term.clamp_min(0).mean(0) + term.clamp_max(0).mean(0)).unsqueeze(1)
            expected = (plain[index].weight + delta).clamp(-0.3, 0.3)
            torch.testing.assert_close(net[index].weight, expected)
            torch.testing.assert_close(net[index].bias, plain[index].bias, rtol=0, atol=0)
            assert net[index].weight.abs().max() <= 0.3
        net.zero_grad()


def test_a_followed_optimizer_keeps_the_rule_alive():
    net = linear()
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    kept = weakref.ref(LinearHomeostasis(0.02, 0.2).attach(net).follow(optimizer))
    gc.collect()
    before = snapshot(net)
    NETS["linear"].present(net).square().mean().backward()
    optimizer.step()
    assert not unchanged(net, before)
    del optimizer
    assert kept() is None
    assert not net[1]._forward_hooks


def test_an_optimizer_is_followed_once_and_again_after_remove():
    net = linear()
    optimizer, other = (torch.optim.SGD(net.parameters(), 0.0) for _ in range(2))
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net).follow(optimizer).follow(other)
    with pytest.raises(ArgumentError, match="Found a second `follow` of the same SGD"):
        homeostasis.follow(optimizer)
    homeostasis.remove()
    homeostasis.attach(net).follow(optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1


class Hollow(torch.optim.Optimizer):
    """An Optimizer by class alone, as some wrappers are: it never builds the hooks of its base."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


@pytest.mark.parametrize("kind", ["scheduler", "model", "wrapper", "parameters"])
def test_what_cannot_be_followed_is_refused_by_name(kind):
    net = linear()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    wrong = {
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
        "model": net,
        "wrapper": Hollow(optimizer),
        "parameters": net.parameters(),
    }[kind]
    with pytest.raises(
        ArgumentError, match=f"Found `optimizer = {type(wrong).__name__}`. Follow the optimizer of"
    ):
        LinearHomeostasis(0.02, 0.2).attach(net).follow(wrong)


def test_batches_of_accumulated_gradients_share_one_step():
    net = linear()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net).follow(optimizer)
    recount = Recount(net[1])
    before = net[0].weight.detach().clone()
    for _ in range(3):
        NETS["linear"].present(net).square().mean().backward()
        assert torch.equal(net[0].weight, before)
    optimizer.step()
    assert homeostasis.units["1"].rate.steps == 30
    torch.testing.assert_close(homeostasis.rates()["1"].double(), recount.rate)
    assert not torch.equal(net[0].weight, before)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw-fused"])
def test_a_step_that_a_grad_scaler_skips_keeps_what_was_observed(optimizer):
    net = linear()
    fit = OPTIMIZERS[optimizer](net.parameters())
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net).follow(fit)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    recount = Recount(net[1])
    for overflow in (True, False):
        before = snapshot(net)
        loss = NETS["linear"].present(net).square().mean()
        scaler.scale(loss * torch.inf if overflow else loss).backward()
        scaler.step(fit)
        scaler.update()
        fit.zero_grad()
        assert unchanged(net, before) == overflow
    assert homeostasis.units["1"].rate.steps == 20
    torch.testing.assert_close(homeostasis.rates()["1"].double(), recount.rate)


def test_a_repeated_closure_is_observed_once_with_pause():
    net = linear()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=1e-3, max_iter=5)
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net).follow(optimizer)
    runs = []

    def closure():
        runs.append(1)
        optimizer.zero_grad()
        loss = NETS["linear"].present(net).square().mean()
        loss.backward()
        return loss

    with torch.no_grad():
        NETS["linear"].present(net)
    before = net[0].weight.detach().clone()
    with homeostasis.pause():
        optimizer.step(closure)
    assert len(runs) > 1
    assert homeostasis.units["1"].rate.steps == 10
    assert not torch.equal(net[0].weight, before)


def by_train_and_eval(modules, modes):
    for module, mode in zip(modules, modes, strict=True):
        module.train(mode)


def by_attribute(modules, modes):
    for module, mode in zip(modules, modes, strict=True):
        module.training = mode


@pytest.mark.parametrize("restore", [by_train_and_eval, by_attribute])
@pytest.mark.parametrize("freeze", [by_train_and_eval, by_attribute])
@pytest.mark.parametrize("frozen", ["model", "homeostasis", "all"])
@torch.no_grad()
def test_modes_count_however_they_are_set(frozen, freeze, restore):
    net = linear()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
    both = nn.ModuleList([net, homeostasis])  # as a LightningModule holds them
    rate = homeostasis.units["1"].rate
    NETS["linear"].present(net)
    steps, before = rate.steps, snapshot(net)
    modules = list({"all": both, "homeostasis": homeostasis, "model": net}[frozen].modules())
    modes = [module.training for module in modules]
    freeze(modules, [False] * len(modules))
    NETS["linear"].present(net)
    with nullcontext() if frozen == "homeostasis" else pytest.warns(HomeostasisWarning, match="eval mode"):
        homeostasis.step()
    assert rate.steps == steps
    assert unchanged(net, before)
    restore(modules, modes)
    NETS["linear"].present(net)
    assert rate.steps == 2 * steps
    homeostasis.step()
    assert not unchanged(net, before)


def test_pauses_take_the_hooks_off_and_nest():
    net = linear()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
    other = LinearHomeostasis(0.02, 0.2)
    other.register_cell("shared", homeostasis.cells["1"], param="bias")
    with homeostasis.pause():
        with homeostasis.pause():
            assert not hooks_of(net[3])
        assert not hooks_of(net[3])
        net(spikes(4, 6))
    net(spikes(4, 6))
    assert homeostasis.units["1"].rate.steps == 1
    assert other.units["shared"].rate.steps == 2
    with pytest.raises(KeyError), homeostasis.pause():
        raise KeyError
    homeostasis.train()
    net(spikes(4, 6))
    assert homeostasis.units["1"].rate.steps == 2


def test_what_is_removed_in_a_pause_stays_removed():
    net = linear()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
    with homeostasis.pause():
        homeostasis.remove()
    homeostasis.train()
    assert not hooks_of(net)


# --- forwards that run twice -------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("frozen", [True, False], ids=["first layer frozen", "all trained"])
def test_a_checkpoint_counts_each_spike_once(reentrant, frozen):
    net = linear()
    net[0].requires_grad_(not frozen)
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net, pairs={"1": "0", "3": "2", "5": "4"})
    calls = []
    net[1].register_forward_hook(lambda *_: calls.append(1))
    plain = copy.deepcopy(net)
    utils.reset(net)
    x = spikes(10, 4, 6).requires_grad_()

    def run(x):
        utils.reset(net)
        return sum(net(step) for step in x)

    checkpoint(run, x, use_reentrant=reentrant).sum().backward()
    assert len(calls) == 20
    recount = Recount(plain[1])
    for step in x:
        plain(step)
    assert homeostasis.units["1"].rate.steps == 10
    torch.testing.assert_close(homeostasis.rates()["1"].double(), recount.rate)
    homeostasis.step()


@pytest.mark.skipif(
    not hasattr(torch._C._autograd.SavedTensor, "unpack_hook"),
    reason="this version of torch does not tell what a checkpoint saves",
)
def test_the_search_for_a_graph_recomputes_no_checkpoint():
    net = nn.Sequential(nn.Linear(6, 8), snn.Leaky(beta=0.9))
    homeostasis = LinearHomeostasis(0.02, 0.2, "bias").attach(net)
    calls = []
    net[0].register_forward_hook(lambda *_: calls.append(1))

    def run(x):
        membrane = torch.zeros(4, 8)
        spike, membrane = net[1](net[0](x), membrane)
        return spike

    loss = checkpoint(run, spikes(4, 6), use_reentrant=False).sum()
    homeostasis.step()
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2


some = torch.rand
UNSAVED = {
    "addbmm": lambda chain: torch.addbmm(chain, some(2, 3, 4), some(2, 4, 3)),
    "addcdiv": lambda chain: torch.addcdiv(chain, some(3, 3), some(3, 3)),
    "addcmul": lambda chain: torch.addcmul(chain, some(3, 3), some(3, 3)),
    "addmm": lambda chain: torch.addmm(chain, some(3, 4), some(4, 3)),
    "addmv": lambda chain: torch.addmv(chain[0], some(3, 4), some(4)),
    "addr": lambda chain: torch.addr(chain, some(3), some(3)),
    "baddbmm": lambda chain: torch.baddbmm(chain[None], some(1, 3, 4), some(1, 4, 3)),
    "conv2d": lambda chain: functional.conv2d(some(1, 1, 5, 5), some(3, 1, 2, 2), chain[0]),
    "fmod": lambda chain: torch.fmod(chain, some(3, 3) + 1),
    "index_add": lambda chain: chain.index_add(1, torch.arange(3), some(3, 3)),
    "linear": lambda chain: functional.linear(some(2, 4), some(3, 4), chain[0]),
    "remainder": lambda chain: chain % (some(3, 3) + 1),
    "scatter_add": lambda chain: chain.scatter_add(1, torch.zeros(3, 3, dtype=torch.int64), some(3, 3)),
}


@pytest.mark.parametrize("name", UNSAVED)
def test_a_graph_is_seen_behind_nodes_that_save_nothing(name):
    layer, other = torch.rand(3, 3), torch.rand(3, 3, requires_grad=True)
    out = UNSAVED[name](layer * other).sum()
    assert is_needed_by(layer, out.grad_fn)
    out.backward()
    assert not is_needed_by(layer, out.grad_fn)


def test_a_graph_is_seen_behind_what_is_saved_elsewhere():
    layer, other = torch.rand(3, 3), torch.rand(3, 3, requires_grad=True)
    product = layer * other
    with saved_tensors_hooks(lambda tensor: None, lambda nothing: product):
        out = (product * product).sum()
    assert is_needed_by(layer, out.grad_fn)


def test_a_sparse_matrix_that_is_saved_does_not_end_the_search():
    layer, other = torch.rand(3, 3), torch.rand(3, 3, requires_grad=True)
    out = torch.sparse.mm(torch.eye(3).to_sparse(), layer * other)
    assert is_needed_by(layer, out.grad_fn)


def test_a_step_frees_the_last_graph():
    net = nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 3), leaky())
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
    for _ in range(3):
        NETS["linear"].present(net).sum().backward()
        homeostasis.step()
    utils.reset(net)
    hook = homeostasis.cells["1"].neuron
    assert hook.membranes.graph is None
    assert hook.membranes.last is None


class KeepsItsNormsFrozen(nn.Sequential):
    """A model with a `train` of its own, as people write it to freeze norms."""

    def train(self, mode=True):
        for module in self:
            module.training = mode and not isinstance(module, nn.BatchNorm1d)
        self.training = mode
        return self


@pytest.mark.parametrize("way", ["attribute of the parent", "own train", "between run and step"])
def test_the_mode_of_the_neuron_counts_however_it_was_set(way):
    net = KeepsItsNormsFrozen(nn.Linear(6, 8), nn.BatchNorm1d(8), leaky())
    homeostasis = LinearHomeostasis(0.1, 0.2, "bias").attach(net)
    x, before = torch.rand(4, 6), net[1].bias.detach().clone()
    if way == "attribute of the parent":
        net.training = False  # its neurons go on training
    else:
        net.train(False)
        net(x)
        assert homeostasis.units["2"].rate.steps == 0
        net.train()
    net(x)
    if way == "between run and step":
        for module in net:
            module.training = False
        with pytest.warns(HomeostasisWarning, match="training mode"):
            homeostasis.step()
        assert torch.equal(net[1].bias, before)
        net.train()
    homeostasis.step()
    assert homeostasis.units["2"].rate.steps == 1
    assert not torch.equal(net[1].bias, before)
