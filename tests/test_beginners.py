"""Beginners' mistakes: each has a sentence that says what was meant."""

import copy
import pickle
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from nets import NETS, linear, snapshot, unchanged
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ClampBounds,
    ExponentialRate,
    HomeostasisWarning,
    LinearHomeostasis,
    PowerBounds,
    WindowedRate,
    find_cells,
)

TWICE = r"`step` should be called once for each observation. Found no spikes since the last call"
FROZEN = r"`step` should be called while the model is in training mode. Found it in eval mode"
DOUBLE = r"A model should be regulated once by its bias. Found that two objects with the same rule step"


@torch.no_grad()
def present(net: nn.Module) -> None:
    NETS["linear"].present(net)


def regulated(net: nn.Module, param: str = "bias", **settings) -> LinearHomeostasis:
    return LinearHomeostasis(0.01, 0.2, param, **settings).attach(net)


def sgd(net: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), 0.0)


# --- a step twice --------------------------------------------------------------------------------


def test_a_second_step_on_one_observation_warns_once():
    net = linear()
    homeostasis = regulated(net)
    present(net)
    homeostasis.step()
    before = snapshot(net)
    with pytest.warns(HomeostasisWarning, match=TWICE):
        homeostasis.step()
    assert not unchanged(net, before)  # it may be meant
    homeostasis.step()


@pytest.mark.parametrize("is_first", [False, True], ids=["after the optimizer", "before it"])
def test_a_step_beside_follow_warns(is_first):
    net = linear()
    optimizer = sgd(net)
    homeostasis = regulated(net).follow(optimizer)
    calls = [homeostasis.step, optimizer.step] if is_first else [optimizer.step, homeostasis.step]
    present(net)
    calls[0]()
    with pytest.warns(
        HomeostasisWarning, match="where `follow\\(optimizer\\)` calls it, call it nowhere else"
    ):
        calls[1]()


@torch.no_grad()
def steps_that_may_repeat(net, homeostasis):
    """Each of these has something new to answer, or is asked for in its own words."""
    homeostasis.step(cells=["1"])
    homeostasis.step(cells=["3", "5"])
    homeostasis.step(0.3)
    homeostasis.step(0.4)
    homeostasis()
    homeostasis.update()
    present(net)
    homeostasis.step()
    homeostasis.load_state_dict(homeostasis.state_dict())
    homeostasis.step()
    present(net)
    homeostasis.step(cells=["1"])
    homeostasis.step()  # the others have not had it
    with homeostasis.pause():
        homeostasis.step()


def test_steps_with_something_new_do_not_warn():
    net = linear()
    homeostasis = regulated(net)
    present(net)
    steps_that_may_repeat(net, homeostasis)


def test_a_step_that_failed_may_be_repeated():
    net = linear()
    homeostasis = regulated(net, bounds=lambda param, pos, neg: pos.new_zeros(7))
    present(net)
    with pytest.raises(ArgumentError):
        homeostasis.step()
    for unit in homeostasis.units.values():
        unit.slot.bounds = None
    homeostasis.step()


def test_a_warning_that_is_an_error_comes_before_anything_moves():
    net = linear()
    homeostasis = regulated(net)
    present(net)
    homeostasis.step()
    before = snapshot(net)
    with pytest.raises(HomeostasisWarning, match=TWICE):  # warnings are errors here
        homeostasis.step()
    assert unchanged(net, before)
    assert not any(unit.pending for unit in homeostasis.units.values())
    homeostasis.step()  # it is said once
    assert not unchanged(net, before)


def test_a_model_regulated_twice_is_said_before_anything_moves():
    net = linear()
    first, second = regulated(net), regulated(net)
    present(net)
    first.step()
    before = snapshot(net)
    with pytest.raises(HomeostasisWarning, match=DOUBLE):
        second.step()
    assert unchanged(net, before)
    second.step()
    assert not unchanged(net, before)


# --- a frozen step -------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", ["model", "all"])
@pytest.mark.parametrize("follow", [False, True])
def test_a_step_of_a_frozen_model_warns_once(frozen, follow):
    net = linear()
    optimizer = sgd(net)
    homeostasis = regulated(net).follow(optimizer) if follow else regulated(net)
    step = optimizer.step if follow else homeostasis.step
    present(net)
    step()
    (net if frozen == "model" else nn.ModuleList([net, homeostasis])).eval()
    before = snapshot(net)
    present(net)
    with pytest.warns(HomeostasisWarning, match=FROZEN):
        step()
    step()
    assert unchanged(net, before)


def test_a_homeostasis_that_was_frozen_on_purpose_is_silent():
    net = linear()
    homeostasis = regulated(net)
    homeostasis.eval()
    present(net)
    homeostasis.step()


def test_a_model_that_is_frozen_in_part_is_silent():
    net = linear()
    homeostasis = regulated(net)
    net[1].eval()
    present(net)
    homeostasis.step()


# --- regulated twice -----------------------------------------------------------------------------


class OtherRule(LinearHomeostasis):
    """A rule of another class."""


def test_two_objects_with_one_rule_and_param_warn_once():
    net = linear()
    first, second = regulated(net), regulated(net)
    present(net)
    first.step()
    with pytest.warns(HomeostasisWarning, match=DOUBLE + " cell '1', '3', '5'"):
        second.step()
    present(net)
    first.step()
    second.step()


@pytest.mark.parametrize("leave", ["drop", "remove", "never step"])
def test_an_object_in_the_place_of_another_is_silent(leave):
    net = linear()
    first = regulated(net)
    present(net)
    if leave != "never step":
        first.step()
    if leave == "remove":
        first.remove()
    if leave == "drop":  # as a notebook does that runs a cell again
        first = regulated(net)
        present(net)
        first.step()
        return
    second = regulated(net)
    present(net)
    second.step()


def test_other_params_rules_and_cells_may_share_a_model():
    net = linear()
    rules = [regulated(net), regulated(net, "weight"), OtherRule(0.01, 0.2, "bias").attach(net)]
    rules.append(LinearHomeostasis(0.01, 0.2, "bias"))
    rules[-1].register_cell("skip", Cell(net[0], net[3]))
    for _ in range(2):
        present(net)
        for each in rules:
            each.step()


def test_a_copy_is_no_second_rule_of_the_model():
    net = linear()
    holder = nn.ModuleList([net, regulated(net)])
    twin = copy.deepcopy(holder)
    for each in (holder, twin):
        present(each[0])
        each[1].step()


# --- an optimizer that is followed ---------------------------------------------------------------


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))], ids=["copy", "pickle"]
)
def test_a_copied_optimizer_is_not_followed(copier):
    net = linear()
    optimizer = sgd(net)
    regulated(net).follow(optimizer)
    twin = copier(optimizer)
    present(net)
    before = snapshot(net)
    twin.step()
    assert unchanged(net, before)
    optimizer.step()
    assert not unchanged(net, before)


def test_the_state_of_a_followed_optimizer_is_as_without():
    net = linear()
    optimizer = sgd(net)
    regulated(net).follow(optimizer)
    assert optimizer.state_dict() == sgd(net).state_dict()
    optimizer.load_state_dict(sgd(net).state_dict())
    present(net)
    before = snapshot(net)
    optimizer.step()
    assert not unchanged(net, before)


# --- what is meant by an argument ----------------------------------------------------------------


HZ = "It is a rate in spikes per step"
WRONG = {
    "percent": (lambda net: LinearHomeostasis(0.1, "10%"), "`target = '10%'`", HZ),
    "list": (lambda net: LinearHomeostasis(0.1, [0.1, 0.2]), "`target = [0.1, 0.2]`", "take a tensor"),
    "dict": (
        lambda net: LinearHomeostasis(0.1, {"1": 0.1}),
        "`target = {'1': 0.1}`",
        "attach(model, target={",
    ),
    "zero λ": (lambda net: LinearHomeostasis(0, 0.1), "`plasticity = 0`", "To freeze, call `eval()`"),
    "negative λ": (
        lambda net: LinearHomeostasis(-1, 0.1),
        "`plasticity = -1`",
        "the cell with `sign=-1`",
    ),
    "model first": (lambda net: LinearHomeostasis(net, 0.1), "`plasticity = Seq", "attach(model)"),
    "modules": (
        lambda net: LinearHomeostasis(0.1, 0.1).attach([net[0]]),
        "`model = [Linear",
        "nn.Sequential",
    ),
    "class": (lambda net: LinearHomeostasis(0.1, 0.1).attach(nn.Linear), "<class", "Build it first"),
    "name": (lambda net: LinearHomeostasis(0.1, 0.1).attach("net"), "`model = 'net'`", "Build it first"),
    "no cells": (lambda net: LinearHomeostasis(0.1, 0.1).step(), "Found no cell", "Call `attach(model)`"),
    "scheduler": (
        lambda net: regulated(net).follow(torch.optim.lr_scheduler.StepLR(sgd(net), 1)),
        "`optimizer = StepLR`",
        "Follow the optimizer of the model",
    ),
    "a neuron as cells": (
        lambda net: regulated(net)(cells=net[1]),
        "`cells = Leaky()`",
        "Check the spelling",
    ),
    "a number as cells": (lambda net: regulated(net)(cells=1), "`cells = 1`", "Check the spelling"),
    "a class as bounds": (
        lambda net: LinearHomeostasis(0.1, 0.1, bounds=ClampBounds),
        "`bounds = <class",
        "ClampBounds(-1.0, 1.0)",
    ),
    "a range as bounds": (
        lambda net: LinearHomeostasis(0.1, 0.1, bounds=(0, 1)),
        "`bounds = (0, 1)`",
        "ClampBounds(-1.0, 1.0)",
    ),
    "a list of powers": (lambda net: PowerBounds(0, 1, [1, 2]), "`power = [1, 2]`", "SharpBounds"),
    "a word as tau": (lambda net: ExponentialRate("10"), "`tau = '10'`", "ten times 1 / target"),
    "a truth as tau": (lambda net: ExponentialRate(True), "`tau = True`", "ten times 1 / target"),
    "find": (lambda net: find_cells([net]), "`model = [Seq", ""),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_sentence_says_what_was_meant(wrong):
    net = linear()
    call, found, remedy = WRONG[wrong]
    with pytest.raises(ArgumentError) as caught:
        call(net)
    assert re.search(r"`?\w+`? should ", str(caught.value))
    assert found in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, Fraction])
def test_an_estimator_takes_any_real_number(kind):
    sequence = (torch.rand(5, 2, 3) < 0.5).float()
    pairs = [(ExponentialRate(kind(4)), ExponentialRate(4.0))]
    if kind is np.int64:
        pairs.append((WindowedRate(kind(4)), WindowedRate(4)))
    for one, other in pairs:
        one.update(sequence)
        other.update(sequence)
        assert torch.equal(one.rate, other.rate)
