"""What is seen of the cells: metrics, summaries, watches, histories and pictures."""

import pickle
import sys

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    Band,
    Cell,
    HomeostasisError,
    LinearHomeostasis,
    RateHistory,
    plot_rates,
    plot_summary,
)

STEPS = 6


def leaky(**settings):
    return snn.Leaky(beta=0.9, init_hidden=True, **settings)


def dense():
    net = nn.Sequential(nn.Linear(5, 8), leaky())
    with torch.no_grad():
        net[0].bias[:3], net[0].bias[-2:] = -9.0, 9.0
    return net, torch.rand(STEPS, 4, 5), (4, 8)


def convolutional():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), leaky())
    with torch.no_grad():
        net[0].bias[0], net[0].bias[1] = -9.0, 9.0
    return net, torch.rand(STEPS, 4, 2, 6, 6), (4, 3, 4, 4)


def graded():
    net, inputs, shape = dense()
    net[1] = leaky(graded_spikes_factor=2.5)
    return net, inputs, shape


NETS = {"dense": dense, "convolutional": convolutional, "graded": graded}


def counted(spikes, target):
    """Rate, silent and saturated share and error of ``[T, B, *N]``, neuron by neuron."""
    by_neuron = (spikes != 0).double().flatten(2).permute(2, 0, 1)
    rates = [each.mean().item() for each in by_neuron]
    return {
        "rate": sum(rates) / len(rates),
        "silent": sum(each.sum() == 0 for each in by_neuron).item() / len(rates),
        "saturated": sum(bool((each == 1).all()) for each in by_neuron) / len(rates),
        "error": sum(abs(target - rate) / target for rate in rates) / len(rates),
    }


@pytest.mark.parametrize("name", NETS)
def test_metrics_equal_a_hand_count(name):
    torch.manual_seed(0)
    net, inputs, shape = NETS[name]()
    homeostasis = LinearHomeostasis(0.01, 0.3, "bias").attach(net)
    spikes = torch.stack([net(x) for x in inputs]).detach()
    assert spikes.shape[1:] == shape
    wanted = counted(spikes, 0.3)
    assert 0 < wanted["silent"] < 1
    assert 0 < wanted["saturated"] < 1
    metrics = homeostasis.metrics()
    assert metrics == pytest.approx({f"1/{key}": value for key, value in wanted.items()} | wanted, rel=1e-6)


def test_metrics_of_sequence_neurons_equal_a_hand_count():
    torch.manual_seed(0)
    net = snn.LeakyParallel(5, 8)
    homeostasis = LinearHomeostasis(0.01, 0.3).attach(nn.Sequential(net))
    spikes = net(torch.randn(20, 4, 5) * 3).detach()
    assert homeostasis.metrics() == pytest.approx(
        {f"0/{key}": value for key, value in counted(spikes, 0.3).items()} | counted(spikes, 0.3), rel=1e-6
    )


def test_all_neurons_count_once_over_all_cells():
    net = nn.Module()
    net.fc1, net.fc2, net.lif, net.other = nn.Linear(4, 6), nn.Linear(4, 6), leaky(), leaky(threshold=1e9)
    homeostasis = LinearHomeostasis(0.01, 0.3, "bias")
    homeostasis.register_cell("a", Cell(net.fc1, net.lif))
    homeostasis.register_cell("b", Cell(net.fc2, net.lif))
    homeostasis.register_cell("c", Cell(nn.Linear(4, 18), net.other))
    net.lif(torch.full((2, 6), 9.0))
    net.other(torch.zeros(2, 18))
    metrics = homeostasis.metrics()
    assert metrics["a/saturated"] == metrics["b/saturated"] == metrics["c/silent"] == 1
    assert metrics["saturated"] == 0.25
    assert metrics["silent"] == 0.75


def test_metrics_without_target_have_no_error():
    net, inputs, _ = dense()
    homeostasis = LinearHomeostasis(0.01, None, "bias").attach(net)
    net(inputs[0])
    assert {name for name in homeostasis.metrics() if "error" in name} == set()


def test_metrics_before_spikes_are_empty():
    assert LinearHomeostasis(0.01, 0.1, "bias").attach(dense()[0]).metrics() == {}


def test_targets_per_neuron_and_per_sample_give_the_mean_error():
    net, inputs, shape = dense()
    homeostasis = LinearHomeostasis(0.01, torch.full(shape, 0.5), "bias").attach(net)
    spikes = torch.stack([net(x) for x in inputs]).detach()
    assert homeostasis.metrics()["1/error"] == pytest.approx(counted(spikes, 0.5)["error"], rel=1e-6)


def test_summary_has_a_row_per_cell_before_any_spike():
    net, inputs, _ = dense()
    homeostasis = LinearHomeostasis(0.01, 0.1, "bias").attach(net)
    head, row = str(homeostasis.summary()).splitlines()
    assert row.split() == ["1", "Linear", "→", "Leaky", "bias", "0.1", "–", "–", "–", "–", "0.01", "0"]
    net(inputs[0])
    assert "–" not in str(homeostasis.summary())
    assert len(head.split("  ")) >= 8


def test_summary_is_html_in_a_notebook_and_escapes():
    homeostasis = LinearHomeostasis(0.01, 0.1, "bias")
    homeostasis.register_cell("<b>", Cell(nn.Linear(3, 2), leaky()))
    html = homeostasis.summary()._repr_html_()
    assert html.startswith("<table>")
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


def test_repr_is_short_and_says_the_pairs():
    homeostasis = LinearHomeostasis(0.01, 0.1, "bias").attach(dense()[0])
    assert repr(homeostasis).splitlines() == ["LinearHomeostasis(1 cell):", "  1: Linear → Leaky, bias"]


@pytest.mark.parametrize("training", [True, False])
def test_watching_counts_in_any_mode_and_apart_from_the_rule(training):
    torch.manual_seed(0)
    net, inputs, _ = dense()
    homeostasis = LinearHomeostasis(0.01, 0.3, "bias").attach(net)
    net(inputs[0])
    before = {name: value.clone() for name, value in homeostasis.state_dict().items()}
    hooks = len(net[1]._forward_hooks)
    net.train(training)
    with homeostasis.pause(), homeostasis.watching() as seen:
        spikes = torch.stack([net(x) for x in inputs]).detach()
    net(torch.full((4, 5), 99.0))
    assert {key.removeprefix("1/"): value for key, value in seen.metrics().items()} == pytest.approx(
        counted(spikes, 0.3), rel=1e-6
    )
    assert len(net[1]._forward_hooks) == hooks
    if not training:
        after = homeostasis.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_watching_ends_also_after_an_error():
    net, _, _ = dense()
    homeostasis = LinearHomeostasis(0.01, 0.3, "bias").attach(net)
    hooks = len(net[1]._forward_hooks)
    with pytest.raises(KeyError), homeostasis.watching():
        raise KeyError
    assert len(net[1]._forward_hooks) == hooks


def rounds(homeostasis, net, inputs, count):
    for _ in range(count):
        homeostasis.clear()
        for x in inputs:
            net(x)
        homeostasis.step()


def test_history_records_what_metrics_say_at_each_step():
    net, inputs, _ = dense()
    homeostasis = LinearHomeostasis(0.1, 0.3, "bias").attach(net)
    history, seen = RateHistory(homeostasis), []
    for _ in range(5):
        rounds(homeostasis, net, inputs, 1)
        seen.append(homeostasis.metrics())
    columns = history.to_dict()
    assert columns.pop("step") == [1, 2, 3, 4, 5]
    assert columns == {name: [metrics[name] for metrics in seen] for name in seen[0]}


def test_history_keeps_evenly_spaced_records_in_bounded_memory():
    net, inputs, _ = dense()
    homeostasis = LinearHomeostasis(0.1, 0.3, "bias").attach(net)
    history = RateHistory(homeostasis, every=3, size=8)
    rounds(homeostasis, net, inputs[:1], 100)
    steps = history.to_dict()["step"]
    assert steps == list(range(12, 97, 12))


def test_history_of_many_steps_and_cells_is_small():
    homeostasis = LinearHomeostasis(0.1, 0.3, "bias")
    for i in range(5):
        cell = Cell(nn.Linear(2, 2), leaky())
        homeostasis.register_cell(f"cell {i}", cell)
        cell.neuron.module(torch.ones(1, 2))
    history = RateHistory(homeostasis)
    for _ in range(2100):
        homeostasis.update()
    assert len(history) < history.size == 2048
    assert len(pickle.dumps(history.state_dict())) < 5e5


def test_history_goes_on_after_a_restart():
    net, inputs, _ = dense()
    homeostasis = LinearHomeostasis(0.1, 0.3, "bias").attach(net)
    history = RateHistory(homeostasis, every=2)
    rounds(homeostasis, net, inputs, 5)
    saved = pickle.loads(pickle.dumps(history.state_dict()))
    history.close()
    resumed = RateHistory(homeostasis)
    resumed.load_state_dict(saved)
    rounds(homeostasis, net, inputs, 3)
    assert resumed.to_dict()["step"] == [2, 4, 6, 8]
    assert history.to_dict()["step"] == [2, 4]


def test_history_fills_the_past_of_a_new_cell_with_nan():
    net, inputs, _ = dense()
    homeostasis = LinearHomeostasis(0.1, 0.3, "bias").attach(net)
    history = RateHistory(homeostasis)
    rounds(homeostasis, net, inputs, 1)
    late = Cell(nn.Linear(2, 2), leaky())
    homeostasis.register_cell("late", late)
    homeostasis.clear()
    net(inputs[0])
    late.neuron.module(torch.ones(4, 2))
    homeostasis.step()
    rates = history.to_dict()["late/rate"]
    assert rates[0] != rates[0]
    assert rates[1] == rates[1]


def test_a_dropped_history_records_nothing_more():
    homeostasis = LinearHomeostasis(0.1, 0.3, "bias").attach(dense()[0])
    history = RateHistory(homeostasis)
    assert len(homeostasis._step_post_hooks) == 1
    del history
    assert len(homeostasis._step_post_hooks) == 0


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": 1.5}, {"size": 1}])
def test_history_refuses_numbers_that_cannot_work(wrong):
    homeostasis = LinearHomeostasis(0.1, 0.3, "bias").attach(dense()[0])
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        RateHistory(homeostasis, **wrong)


def test_step_post_hooks_run_after_each_update_until_removed():
    net, inputs, _ = dense()
    homeostasis = LinearHomeostasis(0.1, 0.3, "bias").attach(net)
    seen = []
    handle = homeostasis.register_step_post_hook(seen.append)
    rounds(homeostasis, net, inputs, 1)
    homeostasis()
    assert seen == [homeostasis]
    homeostasis.update()
    handle.remove()
    rounds(homeostasis, net, inputs, 1)
    assert seen == [homeostasis, homeostasis]


def test_plots_show_rates_targets_and_shares():
    pytest.importorskip("matplotlib").use("agg")
    net, inputs, _ = dense()
    homeostasis = LinearHomeostasis(0.1, 0.3, "bias").attach(net)
    history = RateHistory(homeostasis)
    with pytest.raises(ArgumentError, match="history"):
        plot_rates(history)
    rounds(homeostasis, net, inputs, 4)
    columns, panels = history.to_dict(), plot_rates(history).axes
    rate, target = panels[0].get_lines()
    assert list(rate.get_ydata()) == columns["1/rate"]
    assert set(target.get_ydata()) == {0.3}
    for panel, share in zip(panels[1:], ("silent", "saturated"), strict=True):
        (line,) = panel.get_lines()
        assert list(line.get_ydata()) == [100 * value for value in columns[f"1/{share}"]]
    (axes,) = plot_summary(homeostasis).axes
    assert sum(bar.get_height() for bar in axes.patches) == 8


def test_plots_draw_the_edges_of_bands_and_know_hz():
    pytest.importorskip("matplotlib").use("agg")
    net, inputs, _ = dense()
    homeostasis = LinearHomeostasis(0.1, Band(20.0, 40.0), "bias", dt=1e-3).attach(net)
    history = RateHistory(homeostasis)
    rounds(homeostasis, net, inputs, 2)
    rates = plot_rates(history).axes[0]
    assert rates.get_ylabel() == "rate [Hz]"
    assert [line.get_ydata()[0] for line in rates.get_lines()[1:]] == [20.0, 40.0]
    (axes,) = plot_summary(homeostasis).axes
    assert [line.get_xdata()[0] for line in axes.get_lines()] == [20.0, 40.0]


def test_plots_name_the_missing_extra(monkeypatch):
    net, inputs, _ = dense()
    homeostasis = LinearHomeostasis(0.1, 0.3, "bias").attach(net)
    history = RateHistory(homeostasis)
    rounds(homeostasis, net, inputs, 1)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (lambda: plot_rates(history), lambda: plot_summary(homeostasis)):
        with pytest.raises(HomeostasisError, match=r"snn-homeostasis\[plots\]"):
            draw()
