"""Receptive views, against loops over positions and against autograd; and every refusal."""

from __future__ import annotations

import numpy as np
import pytest
import snntorch as snn
import torch
from cases import CASES, PARAMS
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ChannelConnection,
    LinearHomeostasis,
    OneToOneConnection,
    UnsupportedLayerError,
    connect,
)

BATCH = 3


def views_of_each_neuron(connection, kind, neurons, size):
    """Which entries of a parameter the view gives to each neuron: ``[neurons, *size]``."""
    marks = torch.eye(int(np.prod(neurons)), dtype=torch.float64).reshape(-1, *neurons)
    reach = connection.postsyn_receptive(marks).sum(-1)
    if kind == "bias":
        reach = torch.stack([connection.like_bias(k) for k in reach])
    return (reach.expand(-1, *size) > 0).cpu().numpy()


def drivers_of_each_neuron(each, kind, size):
    """The same, as the case names it by hand."""
    found = np.zeros((int(np.prod(each.shape)), *size), dtype=bool)
    for index in np.ndindex(*size):
        for neuron in each.drivers[kind](index):
            found[(neuron, *index)] = True
    return found


def gradients_of_each_neuron(each, built, kind):
    """The same, by autograd: which entries the output of each neuron depends on in one call."""
    with torch.no_grad():
        for _ in range(5):
            built.run(16)
    with parametrize.cached():
        parameter = built.parameter(kind)
        output = built.run(16)
        output = output[0] if isinstance(output, tuple) else output
        totals = output.flatten(0, int(each.sequence)).flatten(1).sum(0)
        gradients = [torch.autograd.grad(total, parameter, retain_graph=True)[0] for total in totals]
    return (torch.stack(gradients) != 0).cpu().numpy()


@pytest.mark.parametrize("each", CASES, ids=str)
def test_spikes_have_the_stated_shape_and_vary(each):
    built = each.build()
    with torch.no_grad():
        spikes = torch.cat([each.spikes(built.run(BATCH)) for _ in range(10)]).double()
    assert spikes.shape[1:] == (BATCH, *each.shape)
    assert 0.04 < spikes.mean() < 0.96


@pytest.mark.parametrize("each", CASES, ids=str)
def test_view_broadcasts_with_the_weight(each):
    connection = each.build().cell().connection
    view = connection.postsyn_receptive(torch.rand(BATCH, *each.shape))
    weight = connection.weight
    sizes = view.shape[1:-1] if weight is None else weight.shape
    assert view.shape[0] == BATCH
    assert view.ndim == len(sizes) + 2
    assert torch.broadcast_shapes(view.shape[1:-1], sizes) == sizes


@pytest.mark.parametrize(("each", "kind"), PARAMS, ids=str)
def test_last_axis_holds_the_positions_that_share_a_parameter(each, kind):
    built = each.build()
    view = built.cell().connection.postsyn_receptive(torch.rand(BATCH, *each.shape))
    sharing = {len(each.drivers[kind](index)) for index in np.ndindex(*built.parameter(kind).shape)}
    assert sharing == {view.shape[-1]}


@pytest.mark.parametrize("each", [each for each in CASES if "bias" in each.drivers], ids=str)
def test_like_bias_gives_the_shape_of_the_bias(each):
    built = each.build()
    connection = built.cell().connection
    k = connection.postsyn_receptive(torch.rand(BATCH, *each.shape)).mean(-1).mean(0)
    assert connection.like_bias(k).shape == connection.bias.shape == built.parameter("bias").shape


@pytest.mark.parametrize("each", CASES, ids=str)
def test_connection_names_the_parameters_and_no_others(each):
    built = each.build()
    connection = built.cell().connection
    for kind in ("weight", "bias", "delay"):
        if kind in each.drivers:
            assert torch.equal(getattr(connection, kind), built.parameter(kind))
        else:
            assert getattr(connection, kind) is None


@pytest.mark.parametrize(("each", "kind"), PARAMS, ids=str)
def test_view_gives_each_parameter_the_neurons_named_by_hand(each, kind):
    built = each.build()
    size = tuple(built.parameter(kind).shape)
    found = views_of_each_neuron(built.cell().connection, kind, each.shape, size)
    assert np.array_equal(found, drivers_of_each_neuron(each, kind, size))


@pytest.mark.parametrize(("each", "kind"), PARAMS, ids=str)
def test_view_agrees_with_autograd(each, kind):
    built = each.build()
    depends = gradients_of_each_neuron(each, built, kind)
    view = views_of_each_neuron(built.cell().connection, kind, each.shape, depends.shape[1:])
    assert not (depends & ~view).any()  # no neuron depends on a parameter outside its view
    depends, view = (mask.reshape(len(mask), -1) for mask in (depends, view))
    for shared in np.unique(view, axis=1).T:
        sharing = (view == shared[:, None]).all(0)  # the parameters that the same neurons share
        assert np.array_equal(depends[:, sharing].any(1), shared)


def test_view_of_a_dense_layer_does_not_grow_with_its_inputs():
    connection = Cell(nn.Linear(1000, 5), snn.Leaky(beta=0.9)).connection
    assert connection.postsyn_receptive(torch.rand(BATCH, 5)).numel() == BATCH * 5


def refusal(layer, *words):
    """Checks that the error names what was found and each of the words."""
    with pytest.raises(UnsupportedLayerError) as caught:
        LinearHomeostasis(0.1, 0.1).register_cell("cell", Cell(layer, snn.Leaky(beta=0.9)))
    for word in (type(layer).__name__, "Found", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("layer", [nn.Embedding(3, 4), nn.PReLU(), nn.GroupNorm(2, 4)], ids=type)
def test_unknown_layer_is_refused(layer):
    refusal(layer, "connect.register", "Linear")


def test_container_is_refused():
    refusal(nn.Sequential(nn.Linear(3, 4)), "connect.register")


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation.*are deprecated:UserWarning")
def test_quantised_layer_is_refused():
    try:
        layer = torch.ao.nn.quantized.dynamic.Linear(3, 4)
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        pytest.skip(f"no quantised layers here: {error}")
    refusal(layer, "quantised", "before quantising")


def test_layer_without_values_is_refused():
    refusal(nn.LazyLinear(4), "`weight`", "no values yet", "Run the model once")


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_legacy_norms_are_refused(norm):
    layer = nn.Linear(3, 4)
    if norm == "weight_norm":
        with pytest.warns(FutureWarning, match="weight_norm"):
            nn.utils.weight_norm(layer)
    else:
        nn.utils.spectral_norm(layer)
    refusal(layer, "`weight`", "recomputed at each forward", "parametrizations.weight_norm")


@pytest.mark.parametrize("norm", ["spectral_norm", "orthogonal"])
def test_parametrizations_that_lose_a_change_are_refused(norm):
    layer = getattr(parametrizations, norm)(nn.Linear(4, 4))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    refusal(layer, "`weight`", "does not keep a value", "Remove the parametrization")
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_expanded_weight_is_refused():
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.ones(1, 3).expand(4, 3))
    refusal(layer, "`weight`", "expanded", ".clone()")


@pytest.mark.parametrize("option", [{"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_stacked_and_bidirectional_rnns_are_refused(option):
    name, value = next(iter(option.items()))
    with pytest.raises(UnsupportedLayerError, match=f"{name} = {value}") as caught:
        Cell(nn.RNN(3, 4, **option), snn.Leaky(beta=0.9))
    assert "single RNNs" in str(caught.value)


def test_one_to_one_without_a_parameter_is_refused():
    neuron = snn.RLeaky(beta=0.9, all_to_all=False, V=0.5, learn_recurrent=False)
    with pytest.raises(UnsupportedLayerError, match="make it an nn"):
        Cell(neuron.recurrent, neuron).connection.postsyn_receptive(torch.rand(BATCH, 5))


@pytest.mark.parametrize(
    ("layer", "spikes"),
    [
        (nn.Linear(6, 5), (BATCH, 4)),
        (nn.Linear(6, 5), (BATCH, 10)),
        (nn.Linear(6, 5), (BATCH, 5, 2)),
        (nn.Conv2d(2, 3, 3), (BATCH, 4, 2, 2)),
        (nn.Conv2d(2, 3, 3), (BATCH, 20)),
        (nn.ConvTranspose1d(3, 4, 2, groups=1), (BATCH, 3, 2)),
        (nn.LSTMCell(6, 5), (BATCH, 20)),
        (nn.BatchNorm1d(5), (BATCH, 4)),
    ],
    ids=str,
)
def test_neurons_that_do_not_fit_are_refused_at_first_spikes(layer, spikes):
    neuron = snn.Leaky(beta=0.9, init_hidden=True)
    cell = Cell(layer, neuron)
    with pytest.raises(ArgumentError, match="features of") as caught:
        neuron(torch.rand(spikes))
    assert type(layer).__name__ in str(caught.value)
    assert str(list(spikes)) in str(caught.value)
    assert not cell.neuron.samples


@pytest.mark.parametrize("spikes", [(BATCH, 4), (BATCH, 5, 2), (5, BATCH)], ids=str)
def test_one_to_one_weight_that_does_not_fit_is_refused(spikes):
    neuron = snn.Leaky(beta=0.9, init_hidden=True)
    cell = Cell(snn.RLeaky(all_to_all=False, V=torch.full((5,), 0.5), beta=0.9).recurrent, neuron)
    with pytest.raises(ArgumentError, match="5 features of RecurrentOneToOne"):
        neuron(torch.rand(spikes))
    assert not cell.neuron.samples


@pytest.mark.parametrize("batch", [1, BATCH, 5])
def test_one_to_one_weight_for_each_sample_is_refused(batch):
    neuron = snn.RLeaky(all_to_all=False, V=torch.full((batch, 5), 0.5), beta=0.9, init_hidden=True)
    cell = Cell(neuron.recurrent, neuron)
    with pytest.raises(ArgumentError, match="RecurrentOneToOne"):
        neuron(torch.rand(batch, 5))
    assert not cell.neuron.samples


@pytest.mark.parametrize(
    ("layer", "inputs", "words"),
    [
        (nn.Linear(6, 5), (6,), "unsqueeze"),
        (nn.Conv2d(2, 3, 3), (2, 4, 5), "batch dimension"),
        (nn.Conv1d(2, 3, 3), (2, 6), "batch dimension"),
    ],
    ids=str,
)
def test_input_without_a_batch_is_refused(layer, inputs, words):
    neuron = snn.Leaky(beta=0.9, init_hidden=True)
    cell = Cell(layer, neuron)
    with pytest.raises(ArgumentError, match=words):
        neuron(layer(torch.rand(inputs)))
    assert not cell.neuron.samples


def test_sequence_without_a_batch_is_one_sample():
    neuron = snn.LeakyParallel(4, 5, beta=0.7)
    cell = Cell(neuron.rnn, neuron)
    neuron(torch.rand(7, 4))
    assert cell.neuron.spike.shape == (1, 5)


class Gain(nn.Module):
    """A user's layer: one factor per neuron."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * self.weight


def test_a_users_layer_works_once_registered():
    net = nn.Sequential(Gain(5), snn.Leaky(beta=0.9, init_hidden=True))
    with pytest.raises(UnsupportedLayerError, match="whose receptive view is known"):
        Cell(net[0], net[1])
    connect.register(Gain)(OneToOneConnection)
    homeostasis = LinearHomeostasis(plasticity=0.25, target=0.5).attach(net)
    net(torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]]))
    homeostasis.step()
    assert torch.equal(net[0].weight, torch.tensor([1.25, 1.25, 1.25, 0.75, 0.75]))


def test_a_users_connection_may_have_other_names():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = nn.Parameter(torch.zeros(5))

    @connect.register(Shift)
    class ShiftConnection(OneToOneConnection):
        names = {"weight": "offset"}  # noqa: RUF012

    connection = Cell(Shift(), snn.Leaky(beta=0.9)).connection
    assert isinstance(connection, ShiftConnection)
    assert connection.weight is connection.layer.offset
    assert connection.postsyn_receptive(torch.rand(BATCH, 5)).shape == (BATCH, 5, 1)


class Narrow(nn.Conv1d):
    """A user's layer."""


def test_a_view_of_a_wrong_shape_is_named_and_changes_nothing():
    @connect.register(Narrow)
    class WrongView(ChannelConnection):
        def postsyn_receptive(self, x):
            return self.positions(x)  # lacks the inner dimensions of the weight

    net = nn.Sequential(
        nn.Conv1d(2, 3, 3), snn.Leaky(beta=0.9, init_hidden=True),
        Narrow(3, 4, 2), snn.Leaky(beta=0.9, init_hidden=True),
    )  # fmt: skip
    homeostasis = LinearHomeostasis(0.1, 0.2).attach(net)
    with torch.no_grad():
        net(torch.rand(BATCH, 2, 8))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with pytest.raises(ArgumentError, match="`pos` should broadcast to `weight` of Narrow"):
        homeostasis.step()
    assert all(map(torch.equal, net.parameters(), before))
