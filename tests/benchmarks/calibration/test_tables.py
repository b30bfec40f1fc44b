"""The benchmark of calibration, cut short, and what its rivals and its data are."""

import runpy
import sys

import pytest
import torch

for module in ("sklearn", "cpuinfo"):
    pytest.importorskip(module)

from ..stabilisation import digits  # noqa: E402
from . import accuracy, manifolds, randman  # noqa: E402


@pytest.mark.parametrize("table", ["rates", "accuracy", "randman"])
def test_each_table_is_printed_in_short_mode(table, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["calibration", table, "--quick"])
    runpy.run_module(f"{__package__}.__main__", run_name="__main__")
    assert "| --- |" in capsys.readouterr().out


def test_rows_have_names_of_their_own_and_all_limits_are_used():
    names = [row.name for row in accuracy.rows()]
    assert len(set(names)) == len(names)
    assert set(accuracy.LEAST) <= set(names)


@pytest.mark.parametrize("way", accuracy.FROM_SPOILED | accuracy.BY_HAND)
def test_a_rival_brings_a_silent_net_toward_its_rates(way):
    data, net = digits.load(), digits.dense(2, 32)
    accuracy.STARTS["silent"](net, data.train_x)
    (accuracy.FROM_SPOILED | accuracy.BY_HAND)[way].before(net, data.train_x[: accuracy.IMAGES])
    for rate in digits.judged(net, data.test_x):
        assert rate.mean().item() == pytest.approx(digits.TARGET, rel=0.5)


def test_every_input_spikes_once_whatever_the_class():
    data = manifolds.load(seed=0)
    spikes = manifolds.spike_trains(data.train_x)
    assert torch.equal(spikes.sum(0), torch.ones(data.train_x.shape))
    assert torch.equal(spikes.argmax(0), data.train_x)
    assert data.train_x.amin(0).eq(0).any()
    assert data.train_x.amax(0).eq(manifolds.STEPS - 1).any()


def test_the_same_seed_gives_the_same_manifolds():
    first, second, other = (manifolds.load(seed) for seed in (0, 0, 1))
    assert torch.equal(first.train_x, second.train_x)
    assert not torch.equal(first.train_x, other.train_x)


def test_weights_alone_leave_biases_bit_equal():
    data = manifolds.load(seed=0)
    net = digits.dense(1, digits.WIDTH, manifolds.CLASSES, inputs=manifolds.INPUTS)
    biases = [layer.bias.clone() for layer in digits.layers_of(net)]
    weight = net[1].weight.clone()
    randman.WAYS["weights"].before(net, data.train_x[: accuracy.IMAGES])
    assert all(map(torch.equal, biases, [layer.bias for layer in digits.layers_of(net)]))
    factors = net[1].weight / weight
    assert torch.allclose(factors, factors.mean())
    assert factors.mean() > 2
