"""Rules with both sides of a synapse: what a weight sees, and inferno's STDP on snntorch layers."""

import copy
import math

import pytest
import snntorch as snn
import torch
from nets import leaky
from torch import nn
from torch.utils.checkpoint import checkpoint

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ClampBounds,
    DelayedLinear,
    ExponentialRate,
    LinearHomeostasis,
    NoSpikesError,
    UnsupportedLayerError,
    connect,
)

LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "linear over positions": (lambda: nn.Linear(5, 3), (4, 5)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 4), (2, 9)),
    "stride": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1)), (2, 7, 6)),
    "padding": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2)), (2, 5, 6)),
    "same padding": (lambda: nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(1, 2)), (2, 5, 6)),
    "valid padding": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 6)),
    "circular padding": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 6)),
    "reflected padding": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 6)),
    "dilation": (lambda: nn.Conv2d(2, 3, 3, dilation=2), (2, 8, 7)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "depthwise": (lambda: nn.Conv1d(4, 4, 3, groups=4, padding=1), (4, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (2, 3, 2), stride=2, padding=1, groups=2), (2, 5, 6, 4)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_both_views_together_give_the_gradient_of_the_weight(name):
    build, shape = LAYERS[name]
    layer, x = build().double(), torch.randn(3, *shape, dtype=torch.float64)
    connection = connect(layer)
    output = layer(x)
    cotangent = torch.randn_like(output)
    (wanted,) = torch.autograd.grad(output, layer.weight, cotangent)
    before, after = connection.presyn_receptive(x), connection.postsyn_receptive(cotangent)
    assert before.shape[0] == 3
    torch.testing.assert_close((before * after).sum(-1).sum(0), wanted)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(2, 3, 3),
        nn.Bilinear(2, 3, 4),
        nn.LSTMCell(2, 3),
        nn.RNN(2, 3),
        DelayedLinear(2, 3, 4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers_are_refused_by_name_at_registration(layer):
    cell = Cell(layer, leaky())
    for call in (
        lambda: cell.connection.presyn_receptive(torch.ones(1, 2)),
        lambda: cell.listen_to_inputs(Heard()),
    ):
        with pytest.raises(UnsupportedLayerError, match=type(layer).__name__):
            call()


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.training, self.steps = True, []

    def update_step(self, spikes):
        self.steps.append(spikes.clone())


def commanded(layer):
    """A cell whose neurons fire where their input is 1."""
    neuron = snn.Leaky(beta=0.0, threshold=0.5, init_hidden=True, reset_mechanism="none")
    return Cell(layer, neuron), neuron


def test_inputs_are_heard_once_per_step_and_hold_no_graph():
    layer = nn.Linear(4, 3)
    cell, neuron = commanded(layer)
    heard = Heard()
    assert not layer._forward_pre_hooks
    with pytest.raises(NoSpikesError, match="Linear"):
        _ = cell.presynaptic.spike
    cell.listen_to_inputs(heard)
    x = torch.tensor([[0.0, 2.0, -1.0, 0.0]], requires_grad=True)
    neuron(layer(input=x))
    assert [step.tolist() for step in heard.steps] == [[[False, True, True, False]]]
    assert torch.equal(cell.presynaptic.spike, heard.steps[0])
    assert not cell.presynaptic.spike.requires_grad


def test_inputs_are_not_heard_in_eval_mode_in_a_recompute_or_in_a_copy():
    net = nn.Sequential(nn.Linear(4, 3), leaky())
    cell, heard = Cell(net[0], net[1]), Heard()
    cell.listen_to_inputs(heard)
    net.eval()(torch.ones(2, 4))
    assert not heard.steps
    net.train()
    copy.deepcopy(nn.Sequential(net[0]))(torch.ones(2, 4))
    assert not heard.steps
    out = checkpoint(net[0], torch.ones(2, 4, requires_grad=True), use_reentrant=False)
    net[1](out)
    out.sum().backward()
    assert len(heard.steps) == 1


def test_a_dropped_cell_leaves_no_hook_on_its_layer():
    layer = nn.Linear(4, 3)
    cell, _ = commanded(layer)
    cell.listen_to_inputs(Heard())
    assert layer._forward_pre_hooks
    del cell
    assert not layer._forward_pre_hooks


def test_positions_that_differ_are_refused_at_the_first_step():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), leaky())
    Cell(net[0], net[2]).listen_to_inputs(Heard())  # the hook lives with its cell
    cell = Cell(net[0], net[2])
    cell.listen_to_inputs(Heard())
    with pytest.raises(ArgumentError, match="16 and 4, as around a pooling"):
        net(torch.ones(1, 1, 6, 6))


def test_a_layer_that_runs_twice_per_step_is_refused():
    layer = nn.Linear(4, 3)
    cell, neuron = commanded(layer)
    cell.listen_to_inputs(Heard())
    with pytest.raises(ArgumentError, match="2 calls"):
        neuron(layer(torch.ones(1, 4)) + layer(torch.ones(1, 4)))


# --- inferno's trainers ----------------------------------------------------------------------

inferno = pytest.importorskip("inferno")
from inferno import learn, neural  # noqa: E402

STEPS, BATCH = 20, 3
RATES = {"lr_post": 0.02, "lr_pre": -0.015, "tc_post": 7.0, "tc_pre": 11.0}


def pair_stdp(pre, post, weight, view):
    """Pair STDP in plain float64 loops: traces that a spike raises by 1 and a step lowers."""
    weight = weight.double().clone()
    before, after = torch.zeros_like(pre[0]).double(), torch.zeros_like(post[0]).double()
    for x, y in zip(pre.double(), post.double(), strict=True):
        before = before * math.exp(-1 / RATES["tc_pre"]) + RATES["lr_post"] * x
        after = after * math.exp(-1 / RATES["tc_post"]) - RATES["lr_pre"] * y
        for sample in range(len(x)):
            for place, (i, o) in view:
                change = before[sample][i] * y[sample][o] - x[sample][i] * after[sample][o]
                weight[place] += change / len(x)
    return weight


def dense_places(layer):
    return [((n, m), (m, n)) for n in range(layer.out_features) for m in range(layer.in_features)]


def conv_places(layer, size):
    """Each weight of a 3 by 3 convolution, with each input and output position that it joins."""
    spans = [range(size - 2)] * 2
    return [
        ((f, c, u, v), ((c, row + u, column + v), (f, row, column)))
        for f in range(layer.out_channels)
        for c in range(layer.in_channels)
        for u in range(3)
        for v in range(3)
        for row in spans[0]
        for column in spans[1]
    ]


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_pair_stdp_equals_plain_loops(kind):
    if kind == "dense":
        layer, inputs, outputs = nn.Linear(4, 3), (4,), (3,)
        view = dense_places(layer)
    else:
        layer, inputs, outputs = nn.Conv2d(2, 3, 3), (2, 5, 5), (3, 3, 3)
        view = conv_places(layer, 5)
    pre, post = torch.rand(STEPS, BATCH, *inputs) < 0.3, torch.rand(STEPS, BATCH, *outputs) < 0.3
    wanted = pair_stdp(pre, post, layer.weight.detach(), view)
    run(layer, learn.STDP(**RATES), pre, post)
    torch.testing.assert_close(layer.weight.detach().double(), wanted, rtol=0, atol=1e-6)


def run(layer, trainer, pre, post, *signals):
    cell, neuron = commanded(layer)
    trainer.register_cell("cell", cell)
    for x, y in zip(pre, post, strict=True):
        with torch.no_grad():
            layer(x.float())
            neuron(y.float())
        trainer(*signals)
        cell.updater()


TRIPLET = {
    "lr_post_pair": 0.02,
    "lr_post_triplet": 0.01,
    "lr_pre_pair": -0.015,
    "lr_pre_triplet": 0.02,
    "tc_post_fast": 5.0,
    "tc_post_slow": 12.0,
    "tc_pre_fast": 6.0,
    "tc_pre_slow": 15.0,
}
TRAINERS = {
    "pair": (lambda: learn.STDP(**RATES), ()),
    "nearest": (lambda: learn.STDP(**RATES, trace_mode="nearest"), ()),
    "triplet": (lambda: learn.TripletSTDP(**TRIPLET), ()),
    "modulated": (lambda: learn.MSTDP(**RATES), (0.7,)),
    "modulated for each sample": (lambda: learn.MSTDP(**RATES), (torch.tensor([0.5, -1.0, 0.2]),)),
    "eligibility": (lambda: learn.MSTDPET(**RATES, tc_eligibility=9.0), (0.7,)),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_trainers_do_the_same_on_infernos_own_layer(name):
    build, signals = TRAINERS[name]
    connection = neural.LinearDense(
        4,
        3,
        1.0,
        synapse=neural.DeltaCurrent.partialconstructor(1.0),
        batch_size=BATCH,
        weight_init=torch.rand_like,
    )
    connection.updater = connection.defaultupdater()
    potentials = {"rest_v": 0.0, "reset_v": 0.0, "thresh_v": 0.5}
    neuron = neural.LIF(3, 1.0, **potentials, refrac_t=1.0, time_constant=0.5, batch_size=BATCH)
    theirs = neural.Serial(connection, neuron)
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(connection.weight)
    trainer = build()
    trainer.register_cell("cell", theirs.cell)
    pre, post = torch.rand(STEPS, BATCH, 4) < 0.3, []
    for x in pre:
        post.append(theirs(x.float()).clone())
        trainer(*signals)
        theirs.cell.updater()
        theirs.cell.updater.clear()
    run(layer, build(), pre, torch.stack(post), *signals)
    assert not torch.equal(layer.weight, torch.zeros_like(layer.weight))
    torch.testing.assert_close(layer.weight.detach(), connection.weight.detach(), rtol=0, atol=1e-6)


def test_trainers_that_need_delays_are_refused_by_name():
    cell, _ = commanded(nn.Linear(4, 3))
    trainer = learn.DelayAdjustedSTDP(0.1, -0.1, 5.0, 5.0)
    with pytest.raises((ArgumentError, RuntimeError), match=r"synapse|delay"):
        trainer.register_cell("cell", cell)


def test_other_attributes_are_refused_by_name():
    cell, _ = commanded(nn.Linear(4, 3))
    with pytest.raises(ArgumentError, match=r"Found `attr = 'neuron\.voltage'`"):
        cell.add_monitor("v", "neuron.voltage", lambda name, port: None, None)


def test_parts_of_several_rules_are_bounded_once_and_applied_once():
    layer = nn.Linear(4, 3)
    nn.init.constant_(layer.weight, 0.5)
    cell, neuron = commanded(layer)
    stdp = learn.STDP(**RATES)
    stdp.register_cell("cell", cell)
    homeostasis = LinearHomeostasis(0.1, 0.5, "weight", bounds=ClampBounds(0.0, 0.55))
    homeostasis.register_cell("cell", cell)
    layer(torch.ones(1, 4))
    neuron(torch.tensor([[1.0, 0.0, 0.0]]))
    stdp()
    homeostasis()
    pair = torch.tensor([0.02 - 0.015, 0.0, 0.0])[:, None]
    rate = 0.1 * torch.tensor([-1.0, 1.0, 1.0])[:, None]
    homeostasis.update()
    torch.testing.assert_close(layer.weight.detach(), (0.5 + pair + rate).clamp(0.0, 0.55).expand(3, 4))
    after = layer.weight.detach().clone()
    homeostasis.update()
    assert torch.equal(layer.weight, after)


TARGET = 0.1


def learnt(*, regulate, steps):
    """Six neurons, 20 inputs in two groups that are busy in turn, and STDP that favours growth."""
    torch.manual_seed(0)
    layer, neuron = nn.Linear(20, 6, bias=False), snn.Leaky(beta=0.8, init_hidden=True)
    nn.init.uniform_(layer.weight, 0.1, 0.3)
    cell = Cell(layer, neuron)
    stdp = learn.STDP(lr_post=0.002, lr_pre=-0.001, tc_post=5.0, tc_pre=5.0)
    stdp.register_cell("cell", cell)
    homeostasis = LinearHomeostasis(
        0.002, TARGET, rate=lambda: ExponentialRate(50), bounds=ClampBounds(0.0, 1.0)
    )
    homeostasis.register_cell("cell", cell)
    rates = []
    for _ in range(steps):
        is_first = torch.rand(8, 1) < 0.5
        busy = (torch.arange(20) < 10) == is_first
        with torch.no_grad():
            rates.append(neuron(layer((torch.rand(8, 20) < torch.where(busy, 0.3, 0.03)).float())).mean(0))
        stdp()
        if regulate:
            homeostasis()
        homeostasis.update()
    return torch.stack(rates[-steps // 3 :]).mean(0), layer.weight.detach()


def test_homeostasis_holds_the_rate_where_stdp_alone_runs_away():
    rate, weight = learnt(regulate=False, steps=600)
    assert (rate > 0.9).all()
    rate, weight = learnt(regulate=True, steps=1200)
    assert ((rate - TARGET).abs() < 0.3 * TARGET).all()
    assert weight.min() >= 0
    assert weight.max() <= 1
    preference = (weight[:, :10].mean(1) - weight[:, 10:].mean(1)).abs() / weight.mean(1)
    assert preference.mean() > 0.5  # each neuron has chosen one of the groups
