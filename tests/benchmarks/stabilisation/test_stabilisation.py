"""The stabilisation benchmark, cut short: what it must hold in full is written in its own tables."""

import pytest
import torch

for module in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(module)

import brian  # noqa: E402
import carlsim  # noqa: E402
import poisson  # noqa: E402
from report import Table, mean_and_spread  # noqa: E402


@pytest.mark.parametrize("start", carlsim.STARTS)
def test_a_neuron_reaches_35_hz_within_seconds(start):
    run = carlsim.live(start, seed=0, learning=3, judged=4)
    assert run.before == 0 if start == "silent" else run.before > 100
    assert run.after == pytest.approx(35, abs=1.5)


def test_a_disturbed_neuron_returns_and_an_unregulated_one_does_not():
    regulated = brian.live(100, "this package", seed=0, seconds=2.0)
    plain = brian.live(100, "none", seed=0, seconds=2.0)
    assert max(regulated.returns) < 0.5
    assert sum(regulated.errors) < 0.25 * sum(plain.errors)


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
