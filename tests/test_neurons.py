"""Every neuron that snntorch exports: regulated to its target, or refused by name."""

import re
import warnings

import pytest
import snntorch as snn
import torch
from cases import pairwise
from nets import hooks_of, leaky
from neurons import CLOSED_LOOPS, STEPS, Loop, exported_neurons, noise
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    Cell,
    CumulativeRate,
    ExponentialRate,
    HomeostasisWarning,
    LinearHomeostasis,
    NonFiniteError,
    NoSpikesError,
    UnsupportedNeuronError,
    WindowedRate,
    one_step,
    spikes_of,
)

REFUSED = {
    "SpikingNeuron": lambda: snn.SpikingNeuron(),
    "LIF": lambda: snn.LIF(beta=0.9),
    "StateLeaky": lambda: snn.StateLeaky(beta=0.9, channels=3, output=False),
    "LinearLeaky": lambda: snn.LinearLeaky(beta=0.9, in_features=3, out_features=3, output=False),
    "AssociativeLeaky": lambda: snn.AssociativeLeaky(3, 2, 2, 4, use_q_projection=True),
}
WARNED = {"AssociativeLeaky", "DeltaLeaky"}
VARIANTS = [(name, index) for name, loops in CLOSED_LOOPS.items() for index in range(len(loops))]


def a_cell(loop: Loop) -> Cell:
    with warnings.catch_warnings():
        if type(loop.neuron).__name__ in WARNED:
            warnings.simplefilter("ignore", HomeostasisWarning)
        return Cell(loop.layer, loop.neuron)


def regulate(loop: Loop, target: float) -> float:
    """The rate at the end of a closed loop, recounted by a hook of the test's own."""
    homeostasis = LinearHomeostasis(0.01, target, loop.param)
    unit = homeostasis.register_cell("cell", a_cell(loop))
    for plasticity, rounds in ((0.04, 80), (0.01, 40), (0.002, 40)):
        unit.state.plasticity = plasticity * loop.scale
        for _ in range(rounds):
            homeostasis.clear()
            loop.present()
            homeostasis.step()
    fired = []

    def recount(neuron, args, output):
        spikes = output if isinstance(output, torch.Tensor) else output[0]
        fired.append((spikes != 0).float().mean())

    loop.neuron.register_forward_hook(recount)
    for _ in range(20):
        loop.present()
    return torch.stack(fired).mean().item()


def test_every_exported_neuron_is_regulated_or_refused():
    assert set(exported_neurons()) == set(CLOSED_LOOPS) | set(REFUSED) | WARNED


@torch.no_grad()
@pytest.mark.parametrize(("name", "index"), VARIANTS, ids=lambda value: str(value))
def test_closed_loop_reaches_target(name, index):
    assert regulate(CLOSED_LOOPS[name][index](), target=0.1) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("name", REFUSED)
def test_a_neuron_without_spikes_is_refused_by_name(name):
    neuron = REFUSED[name]()
    with pytest.raises(UnsupportedNeuronError, match=f"Found {name}"):
        Cell(nn.Linear(3, 3), neuron)
    assert not hooks_of(neuron)


def test_delta_leaky_runs_and_warns():
    layer, neuron = nn.Linear(10, 12), snn.DeltaLeaky(0.3, beta=0.9, init_hidden=True)
    with pytest.warns(HomeostasisWarning, match="DeltaLeaky"):
        cell = Cell(layer, neuron)
    homeostasis = LinearHomeostasis(0.01, 0.1, "bias")
    homeostasis.register_cell("cell", cell)
    for _ in range(STEPS):
        neuron(layer(noise(8, 10)))
    before = layer.bias.clone()
    homeostasis.step()
    assert not torch.equal(layer.bias, before)


def test_unknown_neuron_is_refused_with_advice():
    with pytest.raises(UnsupportedNeuronError, match=re.escape("@spikes_of.register(YourNeuron)")):
        Cell(nn.Linear(3, 3), nn.ReLU())


def test_own_neuron_needs_one_registration():
    class Threshold(nn.Module):
        def forward(self, x):
            return {"fired": (x > 0.5).float()}

    spikes_of.register(Threshold, lambda neuron, output: one_step(output["fired"]))
    layer, neuron = nn.Linear(2, 3), Threshold()
    homeostasis = LinearHomeostasis(0.1, 0.5, "bias")
    homeostasis.register_cell("own", Cell(layer, neuron))
    neuron(layer(torch.zeros(4, 2)))
    homeostasis.step()
    assert homeostasis.rates()["own"].shape == (3,)


def test_subclass_is_observed_like_its_parent():
    class MyLeaky(snn.Leaky):
        pass

    layer, neuron = nn.Linear(2, 3), MyLeaky(beta=0.9)
    cell = Cell(layer, neuron)
    spikes, _ = neuron(10 * torch.ones(4, 3))
    assert torch.equal(cell.neuron.spike, spikes != 0)


def test_bare_output_is_the_batch_and_not_one_sample():
    layer, neuron = nn.Linear(2, 3), snn.Leaky(beta=0.9, init_hidden=True)
    cell = Cell(layer, neuron)
    neuron(torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0]]))
    assert cell.neuron.spike.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("batched", [True, False])
def test_time_axis_comes_from_the_class(batched):
    neuron = snn.LeakyParallel(5, 3, beta=0.5)
    homeostasis = LinearHomeostasis(0.01, 0.1)
    unit = homeostasis.register_cell("cell", Cell(neuron.rnn, neuron))
    neuron(torch.rand(7, 2, 5) if batched else torch.rand(7, 5))
    assert unit.rate.steps == 7
    assert unit.rate.rate.shape == (2 if batched else 1, 3)


def test_unbatched_input_to_a_step_neuron_is_an_error():
    layer, neuron = nn.Linear(2, 3), snn.Leaky(beta=0.9, init_hidden=True)
    cell = Cell(layer, neuron)
    with pytest.raises(ArgumentError, match="batch dimension"):
        neuron(layer(torch.rand(2)))
    with pytest.raises(NoSpikesError):
        _ = cell.neuron.spike


@pytest.mark.parametrize("factor", [2.5, torch.tensor([0.5, 1.0, 3.0])])
def test_graded_spikes_are_counted_once_each(factor):
    neuron = snn.Leaky(beta=0.9, graded_spikes_factor=factor, reset_mechanism="none")
    homeostasis = LinearHomeostasis(0.01, 0.1)
    homeostasis.register_cell("cell", Cell(nn.Linear(2, 3), neuron))
    neuron(torch.full((4, 3), 5.0))
    assert homeostasis.rates()["cell"].tolist() == [1.0, 1.0, 1.0]


def test_graded_factor_loaded_after_attach_is_noticed():
    neuron = snn.Leaky(beta=0.9, reset_mechanism="none")
    homeostasis = LinearHomeostasis(0.01, 0.1)
    homeostasis.register_cell("cell", Cell(nn.Linear(2, 3), neuron))
    neuron.load_state_dict(neuron.state_dict() | {"graded_spikes_factor": torch.tensor(2.5)})
    neuron(torch.full((4, 3), 5.0))
    assert homeostasis.rates()["cell"].tolist() == [1.0, 1.0, 1.0]


class Ternary(snn.Leaky):
    """Fires on either side of its threshold."""

    def fire(self, mem):
        return torch.sign(mem) * (mem.abs() > self.threshold)


class Doubled(snn.Leaky):
    """Puts out more than one spike at once."""

    def forward(self, *args):
        spikes, mem = super().forward(*args)
        return 2.0 * spikes, mem


class Half(torch.autograd.Function):
    """A surrogate whose spikes have half a size."""

    @staticmethod
    def forward(ctx, shifted):
        return 0.5 * (shifted > 0)


def patched():
    neuron = snn.Leaky(beta=0.9)
    neuron.fire = lambda mem: -1.0 * (mem > neuron.threshold)
    return neuron


OWN_SPIKES = {
    "ternary": lambda: Ternary(beta=0.9),
    "doubled": lambda: Doubled(beta=0.9),
    "surrogate": lambda: snn.Leaky(beta=0.9, spike_grad=Half.apply),
    "surrogate of a function": lambda: snn.Leaky(beta=0.9, spike_grad=lambda shifted: -3.0 * (shifted > 0)),
    "patched": patched,
}


@pytest.mark.parametrize("factory", [CumulativeRate, lambda: ExponentialRate(5.0), lambda: WindowedRate(4)])
@pytest.mark.parametrize("own", OWN_SPIKES)
def test_spikes_of_any_size_are_counted_once_each(own, factory):
    torch.manual_seed(0)
    neuron, rate = OWN_SPIKES[own](), factory()
    homeostasis = LinearHomeostasis(0.1, 0.1, rate=factory)
    homeostasis.register_cell("cell", Cell(nn.Linear(2, 3), neuron))
    mem = torch.zeros(4, 3)
    with torch.no_grad():
        for _ in range(9):
            spikes, mem = neuron(2.0 * torch.randn(4, 3), mem)
            rate.update((spikes != 0).unsqueeze(0))
    torch.testing.assert_close(homeostasis.rates()["cell"], rate.rate.mean(0), rtol=1e-6, atol=1e-6)
    assert rate.rate.mean() > 0.1


CHANGES = {
    "surrogate": lambda neuron: setattr(neuron, "spike_grad", Half.apply),
    "fire": lambda neuron: setattr(neuron, "fire", lambda mem: -1.0 * (mem > neuron.threshold)),
    "factor in place": lambda neuron: neuron.graded_spikes_factor.fill_(2.5),
    "factor replaced": lambda neuron: setattr(neuron, "graded_spikes_factor", torch.tensor(0.5)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_size_of_spikes_after_attach_is_noticed(change):
    neuron = snn.Leaky(beta=0.9, reset_mechanism="none")
    homeostasis = LinearHomeostasis(0.1, 0.1)
    homeostasis.register_cell("cell", Cell(nn.Linear(2, 3), neuron))
    neuron(torch.full((4, 3), 5.0))
    CHANGES[change](neuron)
    neuron(torch.full((4, 3), 5.0))
    assert homeostasis.rates()["cell"].tolist() == [1.0, 1.0, 1.0]


BEHIND = {
    "replaced": lambda neuron: setattr(neuron.graded_spikes_factor, "data", torch.tensor(2.5)),
    "in place": lambda neuron: neuron.graded_spikes_factor.data.fill_(-1.0),
    "through NumPy": lambda neuron: neuron.graded_spikes_factor.numpy().fill(0.5),
}


@pytest.mark.parametrize("change", BEHIND)
@pytest.mark.parametrize("begin", ["step", "reset"])
def test_a_factor_changed_behind_torch_is_noticed_at_the_next_sequence(change, begin):
    neuron = leaky(reset_mechanism="none")
    homeostasis = LinearHomeostasis(0.1, 0.1, "bias")
    homeostasis.register_cell("cell", Cell(nn.Linear(2, 3), neuron))
    neuron(torch.full((4, 3), 5.0))
    if begin == "step":
        homeostasis.step()
    BEHIND[change](neuron)
    neuron.reset_mem()
    for _ in range(3):
        neuron(torch.full((4, 3), 5.0))
    assert homeostasis.rates()["cell"].tolist() == [1.0, 1.0, 1.0]


def test_keyword_input_is_observed():
    layer, neuron = nn.Linear(2, 3), snn.Leaky(beta=0.9, init_hidden=True)
    cell = Cell(layer, neuron)
    neuron(input_=layer(torch.rand(4, 2)))
    assert cell.neuron.spike.shape == (4, 3)


def test_forward_called_directly_is_explained():
    layer, neuron = nn.Linear(2, 3), snn.Leaky(beta=0.9, init_hidden=True)
    homeostasis = LinearHomeostasis(0.1, 0.1)
    homeostasis.register_cell("cell", Cell(layer, neuron))
    neuron.forward(layer(torch.rand(4, 2)))
    with pytest.raises(NoSpikesError, match=re.escape("neuron.forward(...)")):
        homeostasis.step()


POISONED = {
    "Leaky": lambda: (snn.Leaky(beta=0.9, init_hidden=True), torch.full((2, 3), torch.nan)),
    "Leaky, explicit": lambda: (snn.Leaky(beta=0.9), torch.full((2, 3), torch.inf)),
    "Synaptic": lambda: (snn.Synaptic(0.9, 0.8, init_hidden=True), torch.full((2, 3), torch.nan)),
    "StateLeaky": lambda: (snn.StateLeaky(0.9, 3), torch.full((4, 2, 3), torch.nan)),
    "LeakyParallel": lambda: (snn.LeakyParallel(3, 3), torch.full((4, 2, 3), torch.nan)),
}


@pytest.mark.parametrize("name", POISONED)
def test_poisoned_membrane_raises_and_changes_nothing(name):
    neuron, x = POISONED[name]()
    layer = neuron.rnn if name == "LeakyParallel" else nn.Linear(3, 3)
    homeostasis = LinearHomeostasis(0.1, 0.1)
    cell = Cell(layer, neuron)
    homeostasis.register_cell("cell", cell)
    neuron(x)
    before = cell.connection.weight.clone()
    with pytest.raises(NonFiniteError, match=re.escape("'cell' (membrane)")):
        homeostasis.step()
    assert torch.equal(cell.connection.weight, before)
    assert not cell.updater.weight.pending

    homeostasis.clear()
    if hasattr(neuron, "reset_mem"):
        neuron.reset_mem()
    neuron(torch.zeros_like(x))
    homeostasis.step()


def test_inhibition_fires_one_neuron_and_cannot_reach_more():
    with pytest.warns(UserWarning, match="Inhibition"):
        neuron = snn.Leaky(beta=0.9, init_hidden=True, inhibition=True)
    layer = nn.Linear(10, 12)
    homeostasis = LinearHomeostasis(0.01, 0.05, "bias")
    homeostasis.register_cell("cell", Cell(layer, neuron))
    for _ in range(STEPS):
        neuron(layer(noise(8, 10)) + 1.0)
    assert sum(homeostasis.rates()["cell"].tolist()) <= 1.0 + 1e-6
    homeostasis.step()
    before = layer.bias.clone()
    with pytest.raises(ArgumentError, match="sum to at most 1"):
        homeostasis.step(target=0.1)
    assert torch.equal(layer.bias, before)


@torch.no_grad()
@pytest.mark.parametrize(
    ("start", "target", "param"), pairwise([0.0, 0.02, 0.5, 0.95], [0.05, 0.3], ["weight", "bias"])
)
def test_silent_cells_come_up_and_busy_ones_come_down(start, target, param):
    layer, neuron = nn.Linear(20, 16), snn.Leaky(beta=0.9, init_hidden=True)
    layer.weight.fill_(0.02)
    layer.bias.fill_({0.0: -0.5, 0.02: -0.13, 0.5: 0.4, 0.95: 0.85}[start])
    homeostasis = LinearHomeostasis(0.01, target, param)
    unit = homeostasis.register_cell("cell", Cell(layer, neuron))

    def present(rounds: int) -> None:
        homeostasis.clear()
        for _ in range(rounds * STEPS):
            neuron(layer(noise(128, 20)))

    present(10)
    assert homeostasis.rates()["cell"].mean().item() == pytest.approx(start, abs=0.05)
    scale = 0.1 if param == "weight" else 1.0  # ten of twenty inputs are on
    for plasticity, rounds in ((0.3, 80), (0.05, 60), (0.01, 40)):
        unit.state.plasticity = plasticity * scale * target
        for _ in range(rounds):
            present(1)
            homeostasis.step()
    present(25)
    assert homeostasis.rates()["cell"].mean().item() == pytest.approx(target, rel=0.02)
    assert homeostasis.rates()["cell"].tolist() == pytest.approx([target] * 16, rel=0.1)
