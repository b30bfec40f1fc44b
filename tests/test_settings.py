"""Settings: checked whenever they are set, and part of a checkpoint."""

import math
import re

import pytest
import torch
from cases import CommandedCell
from nets import leaky
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ClampBounds,
    FallingPlasticity,
    LinearHomeostasis,
    PowerBounds,
    SharpBounds,
)

NO_PLASTICITIES = [0.0, 0, -0.1, math.nan, math.inf, True, "fast", [0.1], {"1": 0.1}, float]


@pytest.mark.parametrize("plasticity", NO_PLASTICITIES, ids=repr)
def test_a_bad_plasticity_is_refused_wherever_it_is_given(plasticity):
    commanded, homeostasis = CommandedCell(), LinearHomeostasis(0.1, 0.2)
    unit = homeostasis.register_cell("a", commanded.cell)
    message = re.escape(f"a finite number > 0, or a FallingPlasticity. Found `plasticity = {plasticity!r}`.")
    for give in (
        lambda: LinearHomeostasis(plasticity, 0.1),
        lambda: homeostasis.register_cell("b", commanded.cell, param="bias", plasticity=plasticity),
        lambda: homeostasis.attach(nn.Sequential(nn.Linear(6, 3), leaky()), plasticity=plasticity),
        lambda: setattr(unit.state, "plasticity", plasticity),
    ):
        with pytest.raises(ArgumentError, match=message):
            give()
    assert list(homeostasis.cells) == ["a"]
    assert unit.state.plasticity == 0.1


@pytest.mark.parametrize("sign", [0, 2, None, "-"])
def test_a_sign_is_one_or_minus_one(sign):
    with pytest.raises(ArgumentError, match="`sign` should be 1 or -1"):
        Cell(nn.Linear(6, 3), leaky(), sign=sign)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("param", "delay", "has no such Parameter"),
        ("param", "speed", "should be one of"),
        ("batch_reduction", "mean", "should be a function"),
        ("target", 0.0, "should be > 0"),
    ],
)
def test_a_bad_change_of_a_setting_changes_nothing(name, value, found):
    commanded, homeostasis = CommandedCell(), LinearHomeostasis(0.1, 0.2)
    state = homeostasis.register_cell("a", commanded.cell).state
    before = getattr(state, name)
    with pytest.raises(ArgumentError, match=found):
        setattr(state, name, value)
    assert getattr(state, name) == before


class Inhibited(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.inhibition, self.lif = nn.Linear(6, 8), nn.Linear(6, 8), leaky()

    def forward(self, x):
        return self.lif(self.fc(x) - self.inhibition(x))


@pytest.mark.filterwarnings("ignore::snn_homeostasis.HomeostasisWarning")
def test_an_inhibiting_layer_keeps_its_sign_when_the_plasticity_changes():
    net = Inhibited()
    with torch.no_grad():
        for layer in (net.fc, net.inhibition):
            layer.weight.zero_()
            layer.bias.zero_()
    homeostasis = LinearHomeostasis(0.1, 0.2, "bias").attach(net, torch.rand(4, 6))
    for unit in homeostasis.units.values():
        unit.state.plasticity = 0.5
    with torch.no_grad():
        net(torch.zeros(4, 6))
    homeostasis.step()
    assert net.fc.bias.tolist() == [0.5] * 8
    assert net.inhibition.bias.tolist() == [-0.5] * 8


# --- checkpoints -----------------------------------------------------------------------------

CHANGES = {
    "plasticity": 0.7,
    "falling plasticity": FallingPlasticity(0.3, half=5, limit=0.5),
    "natural plasticity": FallingPlasticity(half=math.inf, limit=math.inf),
    "target": 0.3,
    "param": "bias",
    "batch_reduction": torch.sum,
}
BOUNDS = [
    None,
    ClampBounds(-0.5, 0.5),
    ClampBounds(max=0.5),
    SharpBounds(min=-0.25),
    PowerBounds(-1.0, 1.0, power=(1.0, 2.0)),
    PowerBounds(max=0.1, power=(2.0, 2.0)),
    PowerBounds(-1.0, 1.0, power=0.5, scaled=True),
]


def one_cell(**settings):
    commanded = CommandedCell(2)
    homeostasis = LinearHomeostasis(**{"plasticity": 0.1, "target": 0.2} | settings)
    homeostasis.register_cell("a", commanded.cell)
    return commanded, homeostasis


def used(*, stepped: bool, **settings):
    """A homeostasis that a checkpoint is loaded into, fresh or after its first step."""
    commanded, homeostasis = one_cell(**settings)
    if stepped:
        commanded.fire(1, 0, 1)
        homeostasis.step()
    return commanded, homeostasis


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_resumed(name, stepped):
    change, name = CHANGES[name], name.rpartition(" ")[2]
    commanded, homeostasis = one_cell()
    setattr(homeostasis.units["a"].state, name, change)
    commanded.fire(1, 0)
    other, resumed = used(stepped=stepped)
    resumed.load_state_dict(homeostasis.state_dict(), strict=True)
    assert getattr(resumed.units["a"].state, name) == change
    for each in (commanded, other):
        with torch.no_grad():
            each.layer.weight.zero_()
            each.layer.bias.zero_()
    homeostasis.step()
    resumed.step()
    assert (other.weight, other.bias) == (commanded.weight, commanded.bias)


TARGETS = [None, 0.3, torch.tensor([0.25, 0.5])]


@pytest.mark.parametrize("present", TARGETS, ids=["none", "number", "tensor"])
@pytest.mark.parametrize("saved", TARGETS, ids=["none", "number", "tensor"])
def test_a_target_of_any_kind_replaces_any_other(saved, present):
    _, homeostasis = one_cell(target=saved)
    _, resumed = one_cell(target=present)
    resumed.load_state_dict(homeostasis.state_dict(), strict=True)
    target = resumed.units["a"].state.target
    assert torch.equal(target, saved) if isinstance(saved, torch.Tensor) else target == saved


@pytest.mark.parametrize("bounds", BOUNDS, ids=repr)
@pytest.mark.parametrize("present", [None, ClampBounds(-2.0, 2.0)], ids=repr)
def test_bounds_are_resumed(bounds, present):
    _, homeostasis = one_cell(bounds=bounds)
    _, resumed = one_cell(bounds=present)
    resumed.load_state_dict(homeostasis.state_dict(), strict=True)
    assert resumed.cells["a"].updater.weight.bounds == bounds


def test_code_of_the_user_is_not_saved_and_stays():
    def own(param, pos, neg):
        return pos

    def largest(part, dim):
        return part.amax(dim)

    _, homeostasis = one_cell(bounds=lambda param, pos, neg: neg, batch_reduction=torch.amin)
    _, resumed = one_cell(bounds=own, batch_reduction=largest)
    resumed.load_state_dict(homeostasis.state_dict(), strict=True)
    assert resumed.cells["a"].updater.weight.bounds is own
    assert resumed.units["a"].state.batch_reduction is largest


def test_a_checkpoint_of_settings_is_tensors_alone():
    _, homeostasis = one_cell(bounds=ClampBounds(-1.0, 1.0))
    assert all(isinstance(value, torch.Tensor) for value in homeostasis.state_dict().values())


def test_a_checkpoint_without_settings_is_refused():
    _, homeostasis = one_cell()
    saved = {key: value for key, value in homeostasis.state_dict().items() if "plasticity" not in key}
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*plasticity"):
        homeostasis.load_state_dict(saved)
