"""The stabilisation benchmark, cut short: what it must hold in full is written in its own tables."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

for module in ("sklearn", "matplotlib", "tqdm", "inferno"):
    pytest.importorskip(module)

import brian  # noqa: E402
import carlsim  # noqa: E402
import digits  # noqa: E402
import network  # noqa: E402
import poisson  # noqa: E402
import recurrent  # noqa: E402
import signals  # noqa: E402
from digits import starts  # noqa: E402
from inferno.neural.modeling import Accumulator  # noqa: E402
from report import Table, mean_and_spread  # noqa: E402


@pytest.mark.filterwarnings("ignore:A threshold of cell")  # of silent nets, which one epoch does not wake
def test_all_experiments_run_in_short_mode(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stabilisation", "--quick", "--output", str(tmp_path)])
    runpy.run_path(str(Path(__file__).parent), run_name="__main__")
    for name in "abcde":
        assert (tmp_path / f"{name}.md").read_text().startswith(f"# {name}. ")
        assert (tmp_path / f"{name}.png").stat().st_size > 0
    assert ("mnist1d are left out" in (tmp_path / "d.md").read_text()) != signals.HAS_MNIST1D


@pytest.mark.parametrize("start", carlsim.STARTS)
def test_a_neuron_reaches_35_hz_within_seconds(start):
    run = carlsim.live(start, seed=0, learning=2, judged=2)
    assert run.before == 0 if start == "silent" else run.before > 100
    assert run.after == pytest.approx(35, abs=2.5)


def test_a_disturbed_neuron_returns_and_an_unregulated_one_does_not():
    regulated = brian.live(100, "this package", seed=0, seconds=1.0)
    plain = brian.live(100, "none", seed=0, seconds=1.0)
    assert sum(regulated.errors) < 0.25 * sum(plain.errors)


@pytest.mark.parametrize("start", ["silent", "saturated"])
def test_a_network_starts_far_from_its_target(start):
    data, net = digits.load(), network.NETS["6 dense layers"]()
    network.STARTS[start](net, data.train_x)
    rates = [rate.mean().item() for rate in digits.judged(net, data.test_x)]
    assert max(rates) == 0 if start == "silent" else min(rates) > 0.5


def test_a_silent_network_settles_by_our_rule():
    run = network.live((network.DENSE, "silent"), f"bias, windowed {network.MEMORY}", seed=0, rounds=30)
    assert run.settled is not None
    assert run.silent == 0


def test_a_saturated_network_stays_so_under_infernos_rule_and_comes_down_under_ours():
    scene = (network.DENSE, "saturated")
    assert network.live(scene, "inferno, bias", seed=0, rounds=15).final.min() > 0.9
    assert network.live(scene, "bias, cumulative", seed=0, rounds=15).final.max() < 0.5


def test_the_published_update_is_that_of_infernos_updater():
    value, k = torch.tensor([0.5, 0.5]), torch.tensor([0.25, -0.25])
    theirs = Accumulator()
    theirs.pos, theirs.neg = k.clamp_min(0), k.clamp_max(0)  # as its rule hands them over
    ours = network.as_published(value, k.clamp_min(0), k.clamp_max(0).abs())
    torch.testing.assert_close(ours, theirs.update(value))


def test_a_course_is_read_rightly():
    rates = torch.full((40, 2), digits.TARGET)
    rates[:10, 0] = 0  # silent, and on target from round 10 on
    rates[:20, 1], rates[20:25, 1] = 0.3, 0.05  # saturated, too low, on target from round 25 on
    run = network.Run("net", "start", "rule", rates, final=torch.tensor([0.11, 0.07]), silent=0)
    assert run.settled == 25
    assert run.overshoot == pytest.approx(0.5)
    assert run.residual == pytest.approx(0.3)
    fleeting = network.Run("net", "start", "rule", rates.flip(0), final=rates[-1], silent=0)
    assert fleeting.settled is None


def test_initialisations_do_what_they_say():
    data, net = digits.load(), digits.dense(2, 100, 10)
    starts.fluctuating(net, data.train_x)
    membranes = []
    handle = digits.neurons_of(net)[0].register_forward_pre_hook(lambda _, args: membranes.append(args[0]))
    digits.judged(net, data.train_x)
    handle.remove()
    rest = membranes[0] / (1 - digits.BETA)  # where a constant current would take the membrane
    assert rest.std().item() == pytest.approx(1.0, rel=0.1)


@pytest.mark.skipif(not signals.HAS_MNIST1D, reason="the extra `mnist1d` is not installed")
def test_signals_are_centred_and_have_all_labels_in_both_parts():
    data = signals.load()
    assert data.train_x.shape == (4000, 40)
    assert data.test_x.shape == (1000, 40)
    whole = torch.cat([data.train_x, data.test_x])
    assert (whole.mean().item(), whole.std().item()) == pytest.approx((0, 1), abs=1e-3)
    assert set(data.train_y.tolist()) == set(data.test_y.tolist()) == set(range(10))


def test_a_rate_loss_is_the_squared_relative_error():
    rates = [torch.tensor([[0.1, 0.0], [0.2, 0.1]]), torch.tensor([[0.05], [0.15]])]
    first, second = [(0.15 / 0.1 - 1) ** 2, (0.05 / 0.1 - 1) ** 2], [0.0]
    assert digits.rate_loss(rates, 0.1).item() == pytest.approx(sum(first) / 2 + sum(second), abs=1e-6)


def test_a_recurrent_net_starts_far_from_5_percent_and_calibrated_near_it():
    plain, calibrated = (recurrent.live(name, seed=0, epochs=0) for name in ("plain", "calibrated"))
    assert calibrated.error < 0.1 < 0.5 < plain.error


def test_the_farthest_layer_counts():
    run = recurrent.Run("plain", accuracy=1.0, rates=torch.tensor([0.06, 0.02, 0.05]), silent=0.0)
    assert run.error == pytest.approx(0.6)


def test_the_sliding_rate_counts_a_window():
    spikes = torch.zeros(3000)
    spikes[::10] = 1
    assert torch.equal(poisson.smooth(spikes), torch.full((2001,), 100.0))
    assert poisson.rate(spikes) == pytest.approx(100)


def test_a_table_is_markdown():
    table = Table(["seed", "rate [Hz]"], [[0, "35.0"]])
    assert table.markdown() == "| seed | rate [Hz] |\n| --- | --- |\n| 0 | 35.0 |"
    assert mean_and_spread([1.0, 3.0], ".1f") == "2.0 ± 1.4"
    assert mean_and_spread([1.0], ".1f") == "1.0"
