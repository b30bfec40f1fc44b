"""One `step` is `forward` and then `update`, and both are the rule in plain loops.

A step of a linear rule takes the mean over the batch first, where no bound needs the two parts.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CommandedCell, case, pairwise
from oracle import BOUNDS, Oracle, SpikeCounter, as_array
from torch import nn

from snn_homeostasis import CumulativeRate, Homeostasis, LinearHomeostasis, Settings

STEPS, UPDATES, PLASTICITY = 5, 3, 0.05
CASES = ["linear", "linear-positions", "conv2d", "conv2d-flatten", "transposed2d", "transposed2d-groups"]
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
REDUCTIONS = {"mean": (torch.mean, np.mean), "sum": (torch.sum, np.sum)}
# the shape of a target, from the number of samples and the shape of the neurons
TARGETS = {
    "number": lambda batch, shape: None,
    "neurons": lambda batch, shape: shape,
    "channels": lambda batch, shape: (shape[0], *(1 for _ in shape[1:])),
    "positions": lambda batch, shape: (1, *shape[1:]),
    "samples": lambda batch, shape: (batch, *(1 for _ in shape)),
    "everything": lambda batch, shape: (batch, *shape),
}
WAYS = {
    "step": lambda homeostasis: homeostasis.step(),
    "forward, update": lambda homeostasis: (homeostasis.forward(), homeostasis.update()),
}


def a_target(name: str, batch: int, shape: tuple[int, ...]) -> float | torch.Tensor:
    size = TARGETS[name](batch, shape)
    return 0.25 if size is None else 0.1 + 0.5 * torch.rand(size, dtype=torch.float64)


@torch.no_grad()
def present(neuron: nn.Module, batch: int, shape: tuple[int, ...]) -> None:
    """Drives the neuron alone: a rule looks at spikes, not at what the layer puts out."""
    for _ in range(STEPS):
        neuron(2 * torch.randn(batch, *shape, dtype=torch.float64))


def exact_value(parameter: torch.Tensor, residue: torch.Tensor | None) -> np.ndarray:
    """The value with what rounding to half precision has taken from it."""
    return as_array(parameter) + (0.0 if residue is None else as_array(residue))


@pytest.mark.parametrize(
    ("id", "kind", "batch", "target", "reduction", "dtype", "bounds", "way"),
    pairwise(CASES, ["weight", "bias"], [1, 3], TARGETS, REDUCTIONS, DTYPES, ["none", "power"], WAYS),
)
def test_every_way_to_step_is_the_rule_in_plain_loops(id, kind, batch, target, reduction, dtype, bounds, way):
    each, built = case(id), case(id).build()
    (reduction, reduce), (bounds, bound) = REDUCTIONS[reduction], BOUNDS[bounds]
    built.layer.to(DTYPES[dtype])
    target = a_target(target, batch, each.shape)
    homeostasis = LinearHomeostasis(PLASTICITY, target, kind, reduction, rate=CumulativeRate, bounds=bounds)
    unit = homeostasis.register_cell("cell", built.cell())
    counter, parameter = SpikeCounter(each, built.neuron), built.parameter(kind)
    oracle = Oracle(each, kind, parameter.shape, plasticity=PLASTICITY, reduce=reduce)
    expected = first = as_array(parameter)
    for _ in range(UPDATES):
        present(built.neuron, batch, each.shape)
        WAYS[way](homeostasis)
        expected = expected + bound(expected, *oracle.parts(counter.rate, as_array(target)))
        assert np.allclose(exact_value(parameter, unit.slot.residue), expected, rtol=0, atol=2e-6)
    assert parameter.dtype == DTYPES[dtype]
    assert np.abs(expected - first).max() > 1e-3


class Sign(Homeostasis):
    """A rule whose drive is not linear in the rate."""

    def drive(self, rate, target):
        return (target - rate).sign()


class SignOfLinear(LinearHomeostasis):
    """The same as a subclass of a linear rule."""

    def drive(self, rate, target):
        return super().drive(rate, target).sign()


RULES = {"new": lambda: Sign(Settings(0.5, target=0.4)), "subclass": lambda: SignOfLinear(0.5, 0.4)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", WAYS)
def test_a_rule_that_is_not_linear_sees_each_sample(way, rule):
    commanded, homeostasis = CommandedCell(), RULES[rule]()
    homeostasis.register_cell("a", commanded.cell)
    commanded.fire(1, 0, 0)
    WAYS[way](homeostasis)
    # of the mean rate, 1/3, the drive is 1; of the samples it is -1, 1, 1
    assert commanded.weight == pytest.approx([0.5 / 3])


@pytest.mark.parametrize("way", WAYS)
def test_a_step_adds_to_what_the_rule_and_the_user_gave(way):
    commanded = CommandedCell()
    homeostasis = LinearHomeostasis(0.5, 0.5)
    homeostasis.register_cell("a", commanded.cell)
    commanded.fire(0)
    homeostasis()
    commanded.cell.updater.weight = torch.tensor(0.25), torch.tensor(0.125)
    WAYS[way](homeostasis)
    assert commanded.weight == [0.5 + 0.5 + 0.25 - 0.125]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_an_empty_batch_leaves_the_step_as_it_was(way, reduction):
    commanded = CommandedCell()
    homeostasis = LinearHomeostasis(0.5, 0.5, batch_reduction=REDUCTIONS[reduction][0])
    homeostasis.register_cell("a", commanded.cell)
    commanded.fire(0, 0)
    commanded.fire()
    WAYS[way](homeostasis)
    assert commanded.weight == [0.5 if reduction == "mean" else 1.0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_a_loaded_estimate_steps_before_the_next_spike(way, reduction):
    saved, loaded = (LinearHomeostasis(0.5, 0.5, batch_reduction=REDUCTIONS[reduction][0]) for _ in range(2))
    first, second = CommandedCell(), CommandedCell()
    saved.register_cell("a", first.cell)
    loaded.register_cell("a", second.cell)
    first.fire(0, 0)
    second.fire(1)
    loaded.load_state_dict(saved.state_dict())
    WAYS[way](loaded)
    assert second.weight == [0.5 if reduction == "mean" else 1.0]


@pytest.mark.parametrize("way", WAYS)
def test_targets_may_differ_among_samples_that_do_not(way):
    commanded = CommandedCell(2)
    homeostasis = LinearHomeostasis(0.5, torch.tensor([[0.25, 0.5], [0.5, 0.5]]))
    homeostasis.register_cell("a", commanded.cell)
    commanded.fire(1, 1)
    WAYS[way](homeostasis)
    assert commanded.weight == [(-1.5 - 0.5) / 2, -0.5]
