"""Calibration: every cell at its target, by closed forms, loops in float64, and counts on unseen images."""

import copy
import gc
import itertools
import warnings

import numpy as np
import pytest
import snntorch as snn
import torch
from models import MODEL_CASES
from nets import Recount, hooks_of, leaky, snapshot, unchanged
from sklearn.datasets import load_digits
from snntorch import surrogate, utils
from torch import Tensor, nn

from snn_homeostasis import (
    ArgumentError,
    Band,
    Cell,
    ClampBounds,
    HomeostasisWarning,
    LinearHomeostasis,
    NonFiniteError,
    SynapticScaling,
)

STEPS, TARGET = 10, 0.1


@pytest.fixture(scope="module")
def images():
    """Digits to calibrate on, and others to judge by."""
    x = torch.tensor(load_digits().images / 16, dtype=torch.float32).unsqueeze(1)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return x[:256], x[256:512]


def dense(depth: int, width: int = 64, neuron=leaky) -> nn.Sequential:
    net = nn.Sequential(nn.Flatten())
    for sizes in itertools.pairwise([64] + [width] * depth):
        net += nn.Sequential(nn.Linear(*sizes), neuron())
    return net


def attached(
    net: nn.Module, example: Tensor | None = None, param: str = "bias", **kwargs
) -> LinearHomeostasis:
    return LinearHomeostasis(0.01, TARGET, param).attach(net, example, **kwargs)


def rates_of(net: nn.Module, x: Tensor) -> list[float]:
    """The rate of each neuron module, counted by hooks of the test's own."""
    copied = copy.deepcopy(net)
    counts = [Recount(module) for module in copied.modules() if isinstance(module, snn.SpikingNeuron)]
    utils.reset(copied)
    with torch.no_grad():
        for _ in range(STEPS):
            copied(x)
    return [float(each.rate.mean()) for each in counts]


def worst(net: nn.Module, x: Tensor) -> float:
    return max(abs(rate - TARGET) / TARGET for rate in rates_of(net, x))


@torch.no_grad()
def saturate(net: nn.Module) -> None:
    for layer in net:
        if isinstance(layer, nn.Linear):
            layer.weight.add_(3 / layer.in_features)


@torch.no_grad()
def silence(net: nn.Module) -> None:
    for layer in net:
        if isinstance(layer, nn.Linear):
            layer.weight.mul_(0.1)
            layer.bias.zero_()


def test_a_neuron_without_memory_is_shifted_to_its_quantile():
    net = nn.Sequential(nn.Linear(1, 1), snn.Leaky(beta=0.0, init_hidden=True, reset_mechanism="none"))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.zero_()
    attached(net).calibrate(torch.linspace(0, 1, 1001).unsqueeze(1), num_steps=1)
    assert net[0].bias.item() == pytest.approx(0.1, abs=2e-3)  # 0.9 + b is the threshold


def test_shifts_are_those_of_a_bisection_in_float64():
    net, x = nn.Sequential(nn.Linear(6, 5), leaky()), torch.rand(64, 6)
    weight, before = (
        net[0].weight.detach().double().cpu().numpy(),
        net[0].bias.detach().double().cpu().numpy(),
    )
    attached(net).calibrate(x, num_steps=STEPS, progress=False)

    def rate(bias: float, row: int) -> float:
        current, membrane, spikes = x.double().cpu().numpy() @ weight[row] + bias, np.zeros(64), 0
        for _ in range(STEPS):
            membrane = 0.9 * membrane + current - (membrane > 1)
            spikes += (membrane > 1).sum()
        return spikes / (64 * STEPS)

    for row, bias in enumerate(net[0].bias.tolist()):
        low, high = -20.0, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if rate(before[row] + middle, row) < TARGET else (low, middle)
        assert rate(bias, row) == pytest.approx(TARGET, abs=2 / (64 * STEPS))
        assert bias - before[row] == pytest.approx(high, abs=0.02)


@pytest.mark.parametrize(
    ("start", "most"),
    [(lambda net: None, 5), (silence, 8), (saturate, 11)],
    ids=["default", "silent", "saturated"],
)
def test_dense_nets_are_on_target_on_unseen_images(images, start, most):
    net = dense(3)
    start(net)
    report = attached(net).calibrate(images[0], num_steps=STEPS, progress=False)
    assert worst(net, images[1]) < 0.04
    assert report.forwards <= most
    assert all(cell.silent == 0 for cell in report.cells)


def test_it_says_what_is_counted(images):
    net = dense(2)
    before = rates_of(net, images[0])
    biases = [net[place].bias.detach().clone() for place in (1, 3)]
    report = attached(net).calibrate(images[0], num_steps=STEPS, progress=False)
    shifts = [(net[place].bias - bias).mean().item() for place, bias in zip((1, 3), biases, strict=True)]
    assert [cell.shift for cell in report.cells] == pytest.approx(shifts, abs=1e-6)
    assert [cell.before for cell in report.cells] == pytest.approx(before)
    assert [cell.after for cell in report.cells] == pytest.approx(rates_of(net, images[0]))
    assert report.samples == 256
    assert f"{report['4'].after:.3f}" in str(report)


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Dropout(0.2), leaky(),
        nn.Conv2d(4, 4, 2), leaky(), nn.Flatten(), nn.Linear(16, 8), leaky(),
    )  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_norms_pooling_and_dropout_between_are_seen_through(images, training):
    net = conv().train(training)
    report = attached(net).calibrate(images[0], num_steps=STEPS, progress=False)
    assert [cell.after for cell in report.cells] == pytest.approx([TARGET] * 3, rel=0.01)


def test_weights_are_shifted_by_their_recorded_inputs(images):
    net = dense(2)
    bias = net[1].bias.detach().clone()
    report = attached(net, param="weight").calibrate(images[0], num_steps=STEPS, progress=False)
    assert [cell.after for cell in report.cells] == pytest.approx([TARGET] * 2, rel=0.02)
    assert torch.equal(net[1].bias, bias)


def test_healthy_weights_stay_bit_equal(images):
    net = dense(3)
    weights = [net[index].weight.detach().clone() for index in (1, 3, 5)]
    attached(net).calibrate(images[0], num_steps=STEPS, progress=False)
    assert all(torch.equal(net[index].weight, each) for index, each in zip((1, 3, 5), weights, strict=True))


def test_no_scale_leaves_bad_weights_alone(images):
    net = dense(2)
    silence(net)
    weight = net[1].weight.detach().clone()
    attached(net).calibrate(images[0], num_steps=STEPS, progress=False, scale=None)
    assert torch.equal(net[1].weight, weight)


def test_a_number_brings_hidden_layers_to_that_std(images):
    net = dense(3)
    last = net[5].weight.detach().clone()
    report = attached(net).calibrate(images[0], num_steps=STEPS, progress=False, scale=1.0)
    assert [cell.free_std for cell in report.cells[:2]] == pytest.approx([1.0, 1.0], rel=0.1)
    assert torch.equal(net[5].weight, last)


def test_bounds_hold(images):
    net = dense(1)
    homeostasis = LinearHomeostasis(0.01, 0.5, "bias", bounds=ClampBounds(-0.1, 0.2)).attach(net)
    homeostasis.calibrate(images[0], num_steps=STEPS, progress=False)
    assert net[1].bias.min() >= -0.1
    assert net[1].bias.max() <= 0.2


def test_all_but_the_parameter_is_left_as_it_was(images):
    net = conv()
    homeostasis = attached(net)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    parameters, hooks, random = list(net.parameters()), hooks_of(net), torch.get_rng_state()
    homeostasis.calibrate(images[0], num_steps=STEPS, progress=False)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == {"1.bias", "5.bias", "8.bias"}
    assert all(one is other for one, other in zip(parameters, net.parameters(), strict=True))
    assert all(each.grad is None and each.requires_grad for each in net.parameters())
    assert hooks_of(net) == hooks
    assert torch.equal(torch.get_rng_state(), random)
    assert not net[4].mem.any()


def test_an_error_in_the_middle_puts_everything_back(images):
    net = dense(3)
    homeostasis, before, hooks = attached(net), snapshot(net), hooks_of(net)
    calls = itertools.count()

    def run(x: Tensor) -> None:
        for _ in range(STEPS):
            net(x)
        if next(calls) == 3:
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        homeostasis.calibrate(images[0], run=run)
    assert unchanged(net, before)
    assert hooks_of(net) == hooks


class Loop(nn.Module):
    """A time loop, with the membranes as arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 32), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(32, 16), snn.Synaptic(alpha=0.7, beta=0.8)

    def forward(self, x: Tensor) -> Tensor:
        mem1 = self.lif1.init_leaky()
        syn2, mem2 = self.lif2.init_synaptic()
        for _ in range(STEPS):
            spikes, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
            spikes, syn2, mem2 = self.lif2(self.fc2(spikes), syn2, mem2)
        return spikes


def test_membranes_as_arguments_and_a_time_loop(images):
    net = Loop()
    report = attached(net, images[0][:2]).calibrate(images[0])
    assert [cell.after for cell in report.cells] == pytest.approx([TARGET] * 2, rel=0.01)
    assert report.forwards == 4


def rleaky() -> nn.Module:
    return snn.RLeaky(beta=0.9, linear_features=64, init_hidden=True)


def test_recurrent_neurons_take_no_more_forwards(images):
    net = dense(2, neuron=rleaky)
    report = attached(net, images[0][:2]).calibrate(images[0], num_steps=STEPS, progress=False)
    assert worst(net, images[1]) < 0.05
    assert report.forwards == 4
    assert "recurrent" in report["2:2.recurrent"].note


@pytest.mark.parametrize(
    "neuron",
    [lambda: snn.LinearLeaky(0.8, 6, 8), lambda: snn.LeakyParallel(6, 8, beta=0.5)],
    ids=["linear", "parallel"],
)
def test_sequence_neurons(neuron):
    net = nn.Sequential(neuron())
    report = attached(net).calibrate(torch.rand(STEPS, 64, 6))
    assert report["0"].after == pytest.approx(TARGET, rel=0.02)


def test_an_lstm_below_its_threshold_is_named():
    net = nn.Sequential(snn.SLSTM(6, 6, init_hidden=True))
    before = snapshot(net)
    report = attached(net).calibrate(torch.rand(64, 6), num_steps=STEPS, progress=False)
    assert "6 of 6 cannot reach the target" in report["0"].note
    assert unchanged(net, before)


def test_a_loader_gives_batches_until_there_are_enough():
    data = torch.utils.data.TensorDataset(torch.rand(2000, 6), torch.zeros(2000))
    net = nn.Sequential(nn.Linear(6, 5), leaky())
    loader = torch.utils.data.DataLoader(data, 100, shuffle=True)
    report = attached(net).calibrate(loader, num_steps=STEPS, progress=False)
    assert (report.samples, report.forwards) == (600, 18)
    assert report["1"].after == pytest.approx(TARGET, rel=0.01)


def test_run_takes_spike_trains():
    net, trains = nn.Sequential(nn.Linear(6, 5), leaky()), (torch.rand(STEPS, 64, 6) < 0.3).float()
    report = attached(net).calibrate(trains, run=lambda x: [net(step) for step in x])
    assert report["1"].after == pytest.approx(TARGET, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"scale": "much"}, "`scale` should be 'auto'"),
        ({"num_steps": 0}, "`num_steps` should be a positive integer"),
        ({"num_steps": 2, "run": print}, "`num_steps` should be left out with `run`"),
        ({"inputs": 3}, "`inputs` should be a batch"),
        ({"inputs": []}, "`inputs` should make the model call its neurons"),
    ],
)
def test_arguments_that_cannot_work_are_named(arguments, match):
    net = nn.Sequential(nn.Linear(6, 5), leaky())
    with pytest.raises(ArgumentError, match=match):
        attached(net).calibrate(**{"inputs": torch.rand(4, 6), **arguments})


def fast_sigmoid(slope: float = 25):
    return snn.Leaky(beta=0.9, init_hidden=True, spike_grad=surrogate.fast_sigmoid(slope=slope))


def rms_of_gradients(net: nn.Module, x: Tensor) -> float:
    """Of the first layer, for the sum of the spikes of the last."""
    utils.reset(net)
    sum(net(x) for _ in range(STEPS)).sum().backward()
    return float(net[1].weight.grad.square().mean().sqrt())


def test_gradients_reach_the_first_of_nine_layers(images):
    x, net = images[0][:32], dense(9, 32, fast_sigmoid)
    report = attached(net).calibrate(x, num_steps=STEPS, scale=1.0, progress=False)
    assert "gradients=True" in str(report)
    before = rms_of_gradients(net, x)
    net.zero_grad()
    report = attached(net).calibrate(x, num_steps=STEPS, scale=None, gradients=True, progress=False)
    assert "gradients=True" not in str(report)
    assert rms_of_gradients(net, x) > 30 * before


def test_a_neuron_keeps_its_family_of_surrogates(images):
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), fast_sigmoid(), nn.Linear(8, 8), leaky(),
        nn.Linear(8, 8), leaky(spike_grad=surrogate.straight_through_estimator()),
    )  # fmt: skip
    before = [net[place].spike_grad for place in (2, 4, 6)]
    biases = snapshot(net)
    report = attached(net).calibrate(images[0], num_steps=STEPS, gradients=True, progress=False)
    after = [net[place].spike_grad for place in (2, 4, 6)]
    assert [each.__qualname__ for each in after] == [each.__qualname__ for each in before]
    assert after[2] is before[2]
    assert report["2"].slopes[0] == 25 > report["2"].slopes[1]
    assert "no slope" in report["6"].note
    report.undo()
    assert [net[place].spike_grad for place in (2, 4, 6)] == before
    assert unchanged(net, biases)


def test_a_band_moves_only_what_is_outside_and_to_its_edge(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), leaky())
    seen, bias = Recount(net[2]), net[1].bias.detach().clone()
    with torch.no_grad():
        for _ in range(STEPS):
            net(images[0])
    is_inside = (seen.rate >= 0.02) & (seen.rate <= 0.1)
    assert 0 < is_inside.sum() < 16
    homeostasis = LinearHomeostasis(target=Band(0.02, 0.1), param="bias").attach(net)
    homeostasis.calibrate(images[0], num_steps=STEPS, progress=False)
    assert torch.equal(net[1].bias == bias, is_inside)


def test_hertz_are_reported_as_they_are_given(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), leaky())
    homeostasis = LinearHomeostasis(target=50.0, param="bias", dt=0.002).attach(net)
    cell = homeostasis.calibrate(images[0], num_steps=STEPS, progress=False)["2"]
    assert (cell.target, cell.after) == pytest.approx((50.0, 50.0), rel=0.01)


def test_a_population_shifts_as_one(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), leaky())
    bias = net[1].bias.detach().clone()
    homeostasis = LinearHomeostasis(target=0.1, param="bias", population=True).attach(net)
    report = homeostasis.calibrate(images[0], num_steps=STEPS, progress=False)
    assert (net[1].bias - bias).std() < 1e-6
    assert report["2"].after == pytest.approx(0.1, rel=0.01)


def test_each_neuron_comes_to_a_target_of_its_own(images):
    target = torch.linspace(0.05, 0.3, 16)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), leaky())
    homeostasis = LinearHomeostasis(target=target, param="bias").attach(net)
    homeostasis.calibrate(images[0], num_steps=STEPS, progress=False)
    seen = Recount(net[2])
    utils.reset(net)
    with torch.no_grad():
        for _ in range(STEPS):
            net(images[0])
    assert seen.rate.float() == pytest.approx(target, rel=0.02)


@pytest.mark.parametrize("shape", [(16,), (1, 16), ()], ids=str)
def test_thresholds_take_the_shift_in_their_own_shape(images, shape):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), leaky(threshold=torch.ones(shape)))
    weight = nn.init.uniform_(net[1].weight, 0.0, 0.1).clone()  # a negative input reaches no threshold
    homeostasis = attached(net, param="threshold")
    report = homeostasis.calibrate(images[0], num_steps=STEPS, scale=None, progress=False)
    assert report["2"].after == pytest.approx(TARGET, rel=0.01)
    assert report["2"].error == pytest.approx(0, abs=0.01)
    assert net[2].threshold.shape == torch.Size(shape)
    assert torch.equal(net[1].weight, weight)
    assert report["2"].after == pytest.approx(rates_of(net, images[0])[0])


def test_an_lstm_comes_to_its_target_by_its_threshold():
    net = nn.Sequential(snn.SLSTM(6, 6, init_hidden=True))
    report = attached(net, param="threshold").calibrate(torch.rand(64, 6), num_steps=STEPS, progress=False)
    assert report["0"].after == pytest.approx(TARGET, rel=0.02)
    assert 0 < net[0].threshold < 1


def test_synaptic_scaling_keeps_signs_and_zeros(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), leaky())
    with torch.no_grad():
        net[1].weight[:, ::3] = 0.0
    signs, bias = net[1].weight.sign(), net[1].bias.detach().clone()
    report = SynapticScaling(target=0.05).attach(net).calibrate(images[0], num_steps=STEPS, progress=False)
    assert report["2"].after == pytest.approx(0.05, rel=0.02)
    assert torch.equal(net[1].weight.sign(), signs)
    assert torch.equal(net[1].bias, bias)


# loops of their own, membranes as arguments or kept in lists, norms per step, residual sums, dropout,
# recurrence inside and outside of neurons, a readout, a whole sequence, no derivative on the way
MODELS = [
    "ExplicitMembranes", "NormPerStep", "ResidualNet", "ConvolutionalClass", "RecurrentNeurons",
    "RecurrentRegression", "OwnRecurrence", "ConvolutionalLSTM", "UNet", "Inhibited",
    "Quantised", "KeptMembrane", "FoldedIntoTheBatch", "OtherNeurons", "LateInput",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_published_kind_of_model_is_on_target(name):
    (case,) = (case for case in MODEL_CASES if case.name == name)
    net, x = case.build(), torch.cat([case.example() for _ in range(20)], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HomeostasisWarning)
        homeostasis = attached_by(case, net)
    report = homeostasis.calibrate(x, scale=None, progress=False)
    assert report.is_on_target, report
    assert all("predicts" not in cell.note for cell in report.cells)


def attached_by(case, net: nn.Module) -> LinearHomeostasis:
    homeostasis = LinearHomeostasis(0.01, TARGET, case.param)
    return homeostasis.attach(net, case.example(), **case.choice)


def test_a_bias_opens_the_relu_behind_it(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), leaky())
    with torch.no_grad():
        net[1].bias.fill_(-0.3)
    report = attached(net).calibrate(images[0], num_steps=STEPS, progress=False)
    assert report["3"].before < 0.02
    assert report["3"].after == pytest.approx(TARGET, rel=0.05)


def test_states_that_a_model_keeps_are_as_they_were():
    (case,) = (case for case in MODEL_CASES if case.name == "EdgesOfEventsLeftOut")
    net = case.build()
    homeostasis = attached_by(case, net)
    with torch.no_grad():
        net(case.example())
    states = net.states
    report = homeostasis.calibrate(case.example(), num_steps=20, progress=False)
    assert report.is_on_target, report
    assert net.states is states


def test_what_cannot_be_shifted_is_named():
    (case,) = (case for case in MODEL_CASES if case.name == "TiedWeights")
    net = case.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HomeostasisWarning)
        report = attached_by(case, net).calibrate(case.example(), progress=False)
    assert all("drives other neurons too" in cell.note for cell in report.cells)
    assert not report.is_on_target


def test_registered_cells_take_a_run_of_their_own(images):
    fc, lif = nn.Linear(64, 8), leaky()
    homeostasis = LinearHomeostasis(target=TARGET, param="bias")
    homeostasis.register_cell("hidden", Cell(fc, lif))
    with pytest.raises(ArgumentError, match="`run` should be given"):
        homeostasis.calibrate(images[0], num_steps=STEPS)

    def run(x: Tensor) -> None:
        for _ in range(STEPS):
            lif(fc(x.flatten(1)))

    report = homeostasis.calibrate(images[0], run=run, progress=False)
    assert report["hidden"].after == pytest.approx(TARGET, rel=0.01)


def test_not_a_number_is_not_taken_for_silence():
    net, x = nn.Sequential(nn.Linear(6, 5), leaky()), torch.rand(8, 6)
    x[0, 0] = torch.nan
    before = snapshot(net)
    with pytest.raises(NonFiniteError, match="what reaches the neuron of cell '1'"):
        attached(net).calibrate(x, num_steps=STEPS, progress=False)
    assert unchanged(net, before)


def test_a_target_is_needed_before_anything_runs():
    net = nn.Sequential(nn.Linear(6, 5), leaky())
    with pytest.raises(ArgumentError, match="`target` should be set for cell '1'"):
        LinearHomeostasis(param="bias").attach(net).calibrate(None, run=pytest.fail)


def test_few_samples_are_warned_of_in_the_report():
    net = nn.Sequential(nn.Linear(6, 5), leaky())
    report = attached(net).calibrate(torch.rand(10, 6), num_steps=STEPS, progress=False)
    assert "these 10 samples" in str(report)
    assert "these 10 samples" in report._repr_html_()


def test_a_weight_that_drives_another_neuron_is_not_scaled(images):
    net = dense(3)
    with torch.no_grad():
        net[3].weight.mul_(0.1)
    net[5].weight = net[3].weight
    weight = net[3].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HomeostasisWarning)
        report = attached(net).calibrate(images[0], num_steps=STEPS, progress=False)
    assert torch.equal(net[3].weight, weight)
    assert report.is_on_target, report


def test_a_free_membrane_in_float64_is_finite(images):
    net = nn.Sequential(nn.Linear(64, 64), leaky(), Double(), nn.Linear(64, 8), leaky()).double()
    x = images[0].flatten(1).double()
    report = attached(net).calibrate(x, num_steps=STEPS, scale=1.0, progress=False)
    assert report["1"].free_std == pytest.approx(1.0, rel=0.1)
    assert report.is_on_target, report


class Double(nn.Identity):
    """Brings spikes, which are float32, to the dtype of the next layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def test_the_spread_of_membranes_is_that_of_all_batches_together(images):
    x = images[0].flatten(1)
    x = x[x.mean(1).argsort()]  # batches differ in their means
    stds = []
    for inputs in (x, list(x.split(64))):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), leaky())
        report = attached(net).calibrate(inputs, num_steps=STEPS, scale=None, progress=False)
        stds.append(report["1"].free_std)
    assert stds[0] == pytest.approx(stds[1], rel=1e-5)


def test_no_recording_is_kept_while_the_next_is_made(images):
    net, alive = dense(2), []
    silence(net)

    def run(x: Tensor) -> None:
        gc.collect()
        alive.append(sum(type(each) is Tensor and each.shape == (256, 64) for each in gc.get_objects()))
        for _ in range(STEPS):
            net(x)

    report = attached(net).calibrate(images[0], run=run, progress=False)
    assert report.forwards == len(alive) == 6  # two of them after weights were scaled
    assert max(alive) < STEPS
