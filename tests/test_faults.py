"""After an error or an interruption, parameters are as before or completely updated, and work goes on."""

import sys
from pathlib import Path

import pytest
import torch
from nets import hooks_of, leaky, linear, snapshot, spikes, unchanged
from snntorch import utils
from torch import nn

import snn_homeostasis
from snn_homeostasis import (
    ClampBounds,
    HomeostasisError,
    HomeostasisWarning,
    LinearHomeostasis,
    NonFiniteError,
    NoSpikesError,
    PowerBounds,
    one_step,
    spikes_of,
)

STRIDE = 11  # lines between two interruptions; prime to the lengths of loops
PACKAGE = str(Path(snn_homeostasis.__file__).parent)


@torch.no_grad()
def present(net: nn.Module, steps: int = 3) -> None:
    utils.reset(net)
    for _ in range(steps):
        net(2 * spikes(4, 6).to(net[0].weight.dtype))


def first_layers(dtype: torch.dtype = torch.float32, **settings):
    """Two cells that need no other cell to run, one of them in another precision."""
    torch.manual_seed(1)
    net = linear()
    homeostasis = LinearHomeostasis(0.02, 0.2, **settings).attach(net)
    homeostasis.register_cell("bias", homeostasis.cells["1"], param="bias", bounds=PowerBounds(-1.0, 1.0))
    return net, homeostasis


class InterruptAt:
    """Raises KeyboardInterrupt at the n-th line that the package runs, as a signal could."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __enter__(self) -> "InterruptAt":
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error: object) -> bool:
        sys.settrace(None)
        torch.set_grad_enabled(True)  # an interrupted `with` of Python need not reach its exit
        return error[0] is KeyboardInterrupt

    def trace(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.trace


def lines_of(call, prepare) -> int:
    """The number of lines of the package that a call runs."""
    prepared, counter = prepare(), InterruptAt(0)
    with counter:
        call(*prepared)
    return -counter.left


def enter_pause(net, homeostasis) -> None:
    net.pause = homeostasis.pause()
    net.pause.__enter__()


def test_an_interrupted_pause_freezes_no_cell():
    for line in range(1, lines_of(enter_pause, first_layers) + 1):
        net, homeostasis = first_layers()
        with InterruptAt(line):
            enter_pause(net, homeostasis)
        vars(net).pop("pause", None)  # which leaves it
        present(net, steps=2)
        assert {unit.rate.steps for unit in homeostasis.units.values()} == {2}, line


def register(net, homeostasis) -> None:
    homeostasis.register_cell("new", homeostasis.cells["3"], param="bias", bounds=PowerBounds(-1.0, 1.0))


def test_an_interrupted_registration_is_done_or_not_done():
    for line in range(1, lines_of(register, first_layers) + 1, 3):  # all of them take 20 seconds
        net, homeostasis = first_layers()
        with InterruptAt(line):
            register(net, homeostasis)
        is_done = "new" in homeostasis.cells
        assert (homeostasis.cells["3"].updater.bias.bounds is not None) == is_done, line
        if not is_done:
            register(net, homeostasis)
        present(net, steps=2)
        assert homeostasis.units["new"].rate.steps == 2, line
        assert list(homeostasis.registered) == list(homeostasis.units), line


@pytest.mark.parametrize(("bounds", "pending"), [(None, False), (ClampBounds(-0.5, 0.5), True)])
def test_an_interrupted_step_is_done_or_not_done(bounds, pending):
    def prepared():
        net, homeostasis = first_layers(bounds=bounds)
        present(net)
        if pending:
            homeostasis(target=0.6)
        return net, homeostasis

    net, homeostasis = prepared()
    before = snapshot(net)
    homeostasis.step()
    after = snapshot(net)
    lines, done = 0, set()
    while True:
        lines += STRIDE
        net, homeostasis = prepared()
        with InterruptAt(lines) as interrupt:
            homeostasis.step()
        if interrupt.left > 0:
            break
        assert unchanged(net, before) or unchanged(net, after)
        done.add(unchanged(net, after))
        if unchanged(net, before):
            homeostasis.step()
        else:
            homeostasis.update()
        assert unchanged(net, after)
    assert done == {False, True}


@pytest.mark.filterwarnings("ignore:`step` should be called once")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_an_interrupted_step_keeps_value_and_residue_together(dtype):
    def prepared():
        torch.manual_seed(1)
        net = nn.Sequential(*linear()[:2]).to(dtype)
        homeostasis = LinearHomeostasis(1e-4, 0.2).attach(net)
        for _ in range(2):
            present(net)
            homeostasis.step()
        return net, homeostasis

    net, homeostasis = prepared()
    homeostasis.step()
    wanted = snapshot(net), homeostasis.units["1"].slot.residue
    for line in range(20, 400, STRIDE):
        net, homeostasis = prepared()
        before = snapshot(net), homeostasis.units["1"].slot.residue.clone()
        with InterruptAt(line):
            homeostasis.step()
        residue = homeostasis.units["1"].slot.residue
        is_done = unchanged(net, wanted[0]) and torch.equal(residue, wanted[1])
        assert is_done or (unchanged(net, before[0]) and torch.equal(residue, before[1]))


def test_an_interruption_between_forward_and_step_is_harmless():
    net, homeostasis = first_layers()
    twin, undisturbed = first_layers()
    with InterruptAt(1):
        homeostasis(cells=[])
    for each in (net, twin):
        torch.manual_seed(0)
        present(each)
    with InterruptAt(40):
        homeostasis.forward()
    homeostasis.step()
    undisturbed.step()
    assert unchanged(net, snapshot(twin))


def test_an_exception_in_a_sequence_keeps_what_was_observed():
    net, homeostasis = first_layers()
    handle = net[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        present(net)
    handle.remove()
    before = snapshot(net)
    with pytest.raises(NoSpikesError, match="'3'"):
        homeostasis.step()
    assert unchanged(net, before)
    present(net)
    homeostasis.step()
    assert homeostasis.units["1"].rate.steps == 4
    assert homeostasis.units["3"].rate.steps == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_data_that_is_not_finite_changes_nothing(bad):
    net, homeostasis = first_layers()
    present(net)
    before = snapshot(net)
    with torch.no_grad():
        net(torch.full((4, 6), bad))
        net(torch.full((4, 6), bad))
        poisoned = not net[1].mem.isfinite().all()
    if poisoned:
        with pytest.raises(NonFiniteError, match="'1' \\(membrane\\)"):
            homeostasis.step()
        assert unchanged(net, before)
    homeostasis.clear()
    present(net)
    homeostasis.step()
    assert not unchanged(net, before)
    assert all(param.isfinite().all() for param in net.parameters())


def test_a_poisoned_membrane_is_seen_after_a_reset():
    net, homeostasis = first_layers()
    with torch.no_grad():
        net(torch.full((4, 6), torch.nan))
    utils.reset(net)
    with pytest.raises(NonFiniteError, match="membrane"):
        homeostasis.step()


def test_a_cleared_estimate_is_refused_and_grows_again():
    net, homeostasis = first_layers()
    present(net)
    homeostasis.clear()
    before = snapshot(net)
    with pytest.raises(NoSpikesError, match="the estimate was cleared"):
        homeostasis.step()
    assert unchanged(net, before)
    present(net)
    homeostasis.step()
    assert not unchanged(net, before)


def test_an_update_beyond_half_precision_is_refused():
    net = nn.Sequential(*linear()[:2]).half()
    homeostasis = LinearHomeostasis(7e4, 0.2).attach(net)
    present(net)
    before = snapshot(net)
    with pytest.raises(NonFiniteError, match="'1' \\(update\\)"):
        homeostasis.step()
    assert unchanged(net, before)
    assert not homeostasis.units["1"].slot.pending


def test_a_bound_that_fails_leaves_everything_as_it_was():
    net, homeostasis = first_layers()
    present(net)

    def fails(param, pos, neg):
        raise RuntimeError("no bound today")

    homeostasis.cells["3"].updater.weight.bounds = fails
    before = snapshot(net)
    with pytest.raises(RuntimeError, match="no bound today"):
        homeostasis.step()
    assert unchanged(net, before)
    assert not any(unit.slot.pending for unit in homeostasis.units.values())
    homeostasis.cells["3"].updater.weight.bounds = None
    homeostasis.step()
    assert not unchanged(net, before)


def test_an_attach_that_fails_registers_nothing():
    net = nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 3), nn.BatchNorm1d(3), leaky())
    homeostasis = LinearHomeostasis(0.02, 0.2)
    with pytest.raises(HomeostasisWarning, match="BatchNorm1d cancels"):  # warnings are errors here
        homeostasis.attach(net)
    assert not homeostasis.cells
    assert not hooks_of(net)


def frozen(net: nn.Module, homeostasis: LinearHomeostasis) -> None:
    net[4].requires_grad_(False)


def without_bias(net: nn.Module, homeostasis: LinearHomeostasis) -> None:
    net[2].bias = None


def tied(net: nn.Module, homeostasis: LinearHomeostasis) -> None:
    net[2].bias = net[0].bias  # a warning, which is an error here


def known(net: nn.Module, homeostasis: LinearHomeostasis) -> None:
    homeostasis.attach(net, include="5")


REFUSED = [
    (frozen, {}),
    (without_bias, {}),
    (tied, {}),
    (known, {}),
    (None, {"target": {"7": 0.1}}),
    (None, {"plasticity": -1.0}),
]


@pytest.mark.parametrize(("spoil", "overrides"), REFUSED)
def test_a_refused_attach_leaves_no_hook_while_its_error_lives(spoil, overrides):
    net, homeostasis = linear(), LinearHomeostasis(0.02, 0.2, "bias")
    if spoil is not None:
        spoil(net, homeostasis)
    hooks, cells = hooks_of(net), list(homeostasis.cells)
    with pytest.raises((HomeostasisError, HomeostasisWarning)) as caught:
        homeostasis.attach(net, **overrides)
    assert caught.value.__traceback__ is not None
    assert hooks_of(net) == hooks
    assert list(homeostasis.cells) == cells


class OwnNeuron(nn.Module):
    """A user's neuron, which keeps its membrane as a plain attribute."""

    def forward(self, x):
        self.mem = x
        return (x > 0.5).float()


def test_a_poisoned_membrane_of_a_registered_neuron_is_seen():
    spikes_of.register(OwnNeuron)(lambda neuron, output: one_step(output))
    net = nn.Sequential(nn.Linear(6, 3), OwnNeuron())
    homeostasis = LinearHomeostasis(0.02, 0.2, "bias").attach(net)
    with torch.no_grad():
        net(torch.full((4, 6), torch.nan))
    with pytest.raises(NonFiniteError, match="membrane"):
        homeostasis.step()


@pytest.mark.parametrize("before", ["nothing", "eval", "cleared"])
def test_an_empty_batch_is_said_to_be_empty(before):
    net, homeostasis = first_layers()
    if before != "nothing":
        net.train(before != "eval")
        present(net)
        net.train()
        homeostasis.clear()
        utils.reset(net)
    kept = snapshot(net)
    net(torch.empty(0, 6))
    with pytest.raises(NoSpikesError, match=r"'1'.*its batch was empty"):
        homeostasis.step()
    assert unchanged(net, kept)
    present(net)
    homeostasis.step()
    assert not unchanged(net, kept)
