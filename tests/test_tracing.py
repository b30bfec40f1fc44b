"""`find_cells` with an example: the stated cells or a clear error, and an unchanged model."""

import contextlib
import dataclasses
import functools
import random
import warnings
from collections import deque

import numpy as np
import pytest
import snntorch as snn
import torch
from models import MODEL_CASES, STEPS, Loop, leaky
from models.branching import Inhibited, Residual
from models.dense import Blocks, ExplicitMembranes, quickstart
from models.normalised import GroupNorm, NormAlone, NormPerStep
from models.refused import OneNeuronForTwoLayers
from models.registry import images, one_step, steps
from operations import cost_of
from snntorch import utils
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    HomeostasisWarning,
    LinearHomeostasis,
    UnpairedNeuronError,
    find_cells,
)

FOUND = [case for case in MODEL_CASES if not case.problems]
UNKNOWN = [case for case in MODEL_CASES if case.problems]


def attached(case, model, plasticity=0.05, target=0.2, **kwargs):
    """A homeostasis on the model of a case, and the warnings that it gives."""
    kwargs = {"param": case.param, **case.choice, **kwargs}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        homeostasis = LinearHomeostasis(plasticity, target).attach(model, case.example(), **kwargs)
    return homeostasis, [str(each.message) for each in caught if each.category is HomeostasisWarning]


def called(model, example):
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def reset(model):
    for module in model.modules():
        if getattr(module, "init_hidden", False):
            module.reset_mem()


def summed(output):
    return sum(each.sum() for each in (output if isinstance(output, tuple) else [output]))


def test_there_are_forty_models_of_distinct_names():
    assert len(MODEL_CASES) >= 40
    assert len({case.name for case in MODEL_CASES}) == len(MODEL_CASES)


@pytest.mark.parametrize("case", FOUND, ids=str)
def test_finds_the_true_cells(case):
    choice = {key: value for key, value in case.choice.items() if key != "param"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HomeostasisWarning)
        found = find_cells(case.build(), case.example(), **choice)
    assert {tuple(filter(None, (each.layer, each.neuron, each.norm))) for each in found} == set(case.cells)
    assert len(found) == len({each.name for each in found}) == len(case.cells)


@pytest.mark.parametrize("case", FOUND, ids=str)
def test_gives_the_stated_warnings_and_no_others(case):
    _, messages = attached(case, case.build())
    assert len(messages) == len(case.warnings)
    for phrase in case.warnings:
        assert any(phrase in message for message in messages), messages


@pytest.mark.parametrize("case", UNKNOWN, ids=str)
def test_error_names_what_cannot_be_known(case):
    model = case.build()
    with pytest.raises(UnpairedNeuronError) as error:
        LinearHomeostasis(0.1, 0.1).attach(model, case.example())
    for phrase in (*case.problems, "attach(model, pairs={'neuron': 'layer'})"):
        assert phrase in str(error.value)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("case", [case for case in FOUND if case.why_not is None], ids=str)
def test_rates_move_to_the_target_in_a_training_loop(case):
    model = case.build()
    homeostasis, _ = attached(case, model, plasticity=0.2 if case.param == "bias" else 0.06)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    distances = []
    for calls in (2, *[1] * 19):
        homeostasis.clear()
        reset(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler warns
            loss = sum(summed(called(model, case.example())) for _ in range(calls))
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        homeostasis.step()
        rates = torch.stack([rate.mean() for rate in homeostasis.rates().values()])
        distances.append(rates - 0.2)
    first, last = distances[0].abs(), torch.stack(distances[-6:]).mean(0).abs()
    assert (last < torch.maximum(0.5 * first, torch.tensor(0.05))).all(), (first, last)


# ---- an unchanged model


def state_of(model):
    """All that a run could change, by value, identity and version."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "values": [tensor.detach().clone() for _, tensor in tensors],
        "tensors": [(name, id(tensor), tensor._version) for name, tensor in tensors],
        "grads": [None if each.grad is None else each.grad.clone() for each in model.parameters()],
        "attributes": [
            {name: (id(value), contents_of(value)) for name, value in vars(module).items()}
            for module in model.modules()
        ],
        "random": [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()],
    }


def contents_of(value):
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [id(each) for each in values]


def assert_same(now, before):
    if isinstance(before, torch.Tensor):
        assert torch.equal(now, before)
    elif isinstance(before, list):
        assert len(now) == len(before)
        for each, other in zip(now, before, strict=True):
            assert_same(each, other)
    elif isinstance(before, dict):
        assert now.keys() == before.keys()
        assert_same(list(now.values()), list(before.values()))
    else:
        assert now == before


def probe(model, case):
    choice = {key: value for key, value in case.choice.items() if key != "param"}
    with warnings.catch_warnings(), contextlib.suppress(UnpairedNeuronError):
        warnings.simplefilter("ignore", HomeostasisWarning)
        find_cells(model, case.example(), **choice)


RUNNABLE = [case for case in MODEL_CASES if case.name not in ("compiled", "lazy", "unbatched")]


@pytest.mark.parametrize("case", RUNNABLE, ids=str)
def test_run_changes_nothing_in_the_middle_of_training(case):
    model = case.build()
    loss = summed(called(model, case.example()))
    if loss.requires_grad:
        loss.backward()
    example, seed = case.example(), torch.get_rng_state()
    case = dataclasses.replace(case, example=lambda: example)
    before = state_of(model)
    probe(model, case)
    assert_same(state_of(model), before)
    assert torch.equal(torch.get_rng_state(), seed)


@pytest.mark.parametrize("case", RUNNABLE[::2], ids=str)
def test_next_forward_is_bit_equal(case):
    def sums(is_probed):
        torch.manual_seed(3)
        model, example = case.build(), case.example()
        called(model, example)
        if is_probed:
            seed = torch.get_rng_state()
            probe(model, case)
            torch.set_rng_state(seed)  # the probe draws an example
        reset(model)
        reached = [summed(called(model, example)), summed(called(model, example))]
        return [*reached, *model.parameters(), *model.buffers()]

    assert_same(sums(is_probed=True), sums(is_probed=False))


class Raising(Loop):
    """Changes all that it can, then raises."""

    def __init__(self):
        super().__init__()
        self.fc, self.bn, self.lif = nn.Linear(4, 5), nn.BatchNorm1d(5), leaky()
        self.count, self.seen, self.trace = 0, {"inputs": []}, torch.zeros(3)
        self.line, self.table, self.dice = deque([torch.zeros(2)]), np.zeros(3), torch.Generator()
        self.register_buffer("mean", torch.zeros(4))

    def step(self, x):
        self.lif(self.bn(self.fc(torch.dropout(x, 0.5, True))))
        with torch.no_grad():
            self.fc.weight.mul_(2.0)
            self.mean.add_(1.0)
            self.trace.add_(1.0)
            self.line[0].add_(1.0)
        self.line.append(x)
        self.table += 1
        torch.rand(1, generator=self.dice)
        self.count += 1
        self.seen["inputs"].append(x)
        self.late = nn.Linear(2, 2)
        self.register_buffer("other", torch.ones(2))
        self.fc.register_forward_hook(print)
        self.eval()
        random.random(), np.random.rand(), torch.rand(1)
        self.fc.weight.sum().backward()
        x.mul_(0.0)
        raise KeyError("in the middle")


def test_failed_run_changes_nothing():
    model, example = Raising(), torch.rand(2, 3, 4)
    before, kept, dice = state_of(model), example.clone(), model.dice.get_state()
    with pytest.raises(KeyError, match="in the middle") as error:
        find_cells(model, example)
    assert "Raised by the model while it ran on `example`" in error.value.__notes__[0]
    assert_same(state_of(model), before)
    assert model.seen == {"inputs": []}
    assert model.trace.eq(0).all()
    assert len(model.line) == 1
    assert model.line[0].eq(0).all()
    assert (model.table == 0).all()
    assert torch.equal(model.dice.get_state(), dice)
    assert torch.equal(example, kept)


def test_works_in_inference_mode_and_without_gradients():
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            model = Residual()
            found = find_cells(model, images())
        assert [each.layer for each in found] == ["conv", "shortcut", "fc"]
        assert not any(buffer.is_inference() for buffer in model.buffers()) or context is torch.inference_mode


def test_works_in_eval_mode():
    assert len(find_cells(Residual().eval(), images())) == 3


def test_attached_homeostasis_does_not_count_the_run():
    model = ExplicitMembranes()
    homeostasis = LinearHomeostasis(0.1, 0.1).attach(model, steps())
    model(steps())
    LinearHomeostasis(0.1, 0.1, "bias").attach(model, steps())
    assert {unit.rate.steps for unit in homeostasis.units.values()} == {STEPS}


def test_example_may_have_another_batch_size():
    net = quickstart()
    net(torch.rand(7, 6))
    assert len(find_cells(net, torch.rand(2, 6))) == 2


def test_neurons_of_other_models_keep_their_membranes():
    other = leaky()
    other(torch.rand(2, 3))
    membrane = other.mem
    model = quickstart()
    model.register_forward_pre_hook(lambda *_: utils.reset(model))  # resets the neurons of all models
    find_cells(model, one_step())
    assert other.mem is membrane


class Plastic(nn.Module):
    """Learns by a local rule in its forward, which needs `no_grad`."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 6), leaky()

    def forward(self, x):
        spikes = self.lif(self.fc(x))
        self.fc.weight += 0.01 * spikes.T @ x
        return spikes


def test_finds_cells_of_a_model_made_for_no_grad():
    model = Plastic()
    weight = model.fc.weight.clone()
    with torch.no_grad(), pytest.warns(HomeostasisWarning, match="taken on trust"):
        assert [each.layer for each in find_cells(model, one_step())] == ["fc"]
    assert torch.equal(model.fc.weight, weight)
    with pytest.raises(RuntimeError, match="in-place"):
        find_cells(model, one_step())


def test_generator_forward_runs_to_its_end():
    class Generating(ExplicitMembranes):
        def forward(self, x):
            yield from super().forward(x)

    assert len(find_cells(Generating(), steps())) == 2


MANY_OPERATIONS = [case for case in FOUND if case.name not in ("TimeFirst", "compiled")][::3]


@pytest.mark.parametrize("case", MANY_OPERATIONS, ids=str)
def test_attach_is_one_run_and_costs_at_most_15(case):
    model, example, calls = case.build(), case.example(), []
    called(model, example)
    run = cost_of(functools.partial(called, model, example))
    model = case.build()
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    attaching = cost_of(functools.partial(attached, case, model))
    assert len(calls) == 1
    assert len(attaching.names) <= 15 * len(run.names)


# ---- choices


def test_any_path_of_a_shared_module_selects_it():
    model = ExplicitMembranes()
    model.again, model.same = model.lif2, model.fc2
    assert [each.name for each in find_cells(model, steps(), exclude="same")] == ["lif1"]
    found = find_cells(model, steps(), pairs={"again": "same"})
    assert [(each.neuron, each.layer) for each in found] == [("lif1", "fc1"), ("lif2", "fc2")]


def test_warns_of_layers_without_the_param():
    model = Residual()
    model.shortcut.bias = None
    with pytest.warns(HomeostasisWarning, match="Left out: `shortcut`, with no bias"):
        homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(model, images())
    assert list(homeostasis.cells) == ["lif:conv", "out"]


def test_pairs_replace_one_neuron_and_the_rest_is_found():
    model = OneNeuronForTwoLayers()
    model.side, model.out = nn.Linear(6, 3), leaky()
    model.step = lambda x: model.out(model.side(OneNeuronForTwoLayers.step(model, x)))
    found = find_cells(model, steps(), pairs={"lif": ["fc1", "fc2"]})
    assert [(each.name, each.layer) for each in found] == [
        ("lif:fc1", "fc1"), ("lif:fc2", "fc2"), ("out", "side"),
    ]  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN, ids=str)
def test_unknown_neurons_can_be_excluded(case):
    neurons = [name for name, module in case.build().named_modules() if isinstance(module, snn.SpikingNeuron)]
    words = r"leave a cell|scripted|no values|no spiking|not registered"
    with pytest.raises((ArgumentError, UnpairedNeuronError), match=words):
        find_cells(case.build(), case.example(), exclude=neurons)


def test_pairs_keep_the_norm_that_was_found():
    (cell,) = find_cells(NormAlone(), steps(), pairs={"lif": "norm"})
    assert (cell.layer, cell.norm) == ("norm", None)
    cells = find_cells(GroupNorm(), images(), pairs={"lif": "conv", "out": "fc"})
    assert [(each.layer, each.norm) for each in cells] == [("conv", "norm"), ("fc", "bn")]


@pytest.mark.parametrize(
    ("choice", "layers"),
    [
        ({"include": "fc"}, ["fc"]),
        ({"include": ["lif", "fc"]}, ["conv", "shortcut", "fc"]),
        ({"include": nn.Conv2d}, ["conv", "shortcut"]),
        ({"include": nn.Conv2d, "exclude": "shortcut"}, ["conv"]),
        ({"exclude": [nn.Linear]}, ["conv", "shortcut"]),
        ({"exclude": ["lif"]}, ["fc"]),
    ],
)
def test_include_and_exclude_select_cells(choice, layers):
    assert [each.layer for each in find_cells(Residual(), images(), **choice)] == layers


def test_include_takes_a_module_around_the_cells():
    found = find_cells(Blocks(), steps(), include="blocks.1")
    assert [each.name for each in found] == ["blocks.1.lif"]


@pytest.mark.parametrize("name", ["include", "exclude"])
@pytest.mark.parametrize("choice", ["convolution", nn.Conv3d])
def test_choice_without_a_match_raises(name, choice):
    with pytest.raises(ArgumentError, match=f"`{name}` should name paths or types of modules"):
        find_cells(Residual(), images(), **{name: choice})


def test_norms_per_step_are_cells_only_for_the_bias():
    homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(NormPerStep(), steps())
    assert len(homeostasis.cells) == 2 * STEPS
    with pytest.warns(HomeostasisWarning, match="cancels most"):
        homeostasis = LinearHomeostasis(0.1, 0.1, "weight").attach(NormPerStep(), steps())
    assert list(homeostasis.cells) == ["lif1", "lif2"]


def test_an_inhibiting_layer_has_its_sign_beside_the_plasticity():
    with pytest.warns(HomeostasisWarning):
        homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(Inhibited(), steps())
    units = homeostasis.units
    assert {name: unit.cell.sign for name, unit in units.items()} == {"lif:fc": 1, "lif:inhibition": -1}
    assert {unit.state.plasticity for unit in units.values()} == {0.1}


def test_finds_cells_inside_distributed_data_parallel(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(quickstart())
        found = find_cells(model, one_step())
    finally:
        torch.distributed.destroy_process_group()
    assert [(each.layer, each.neuron) for each in found] == [
        ("module.0", "module.1"),
        ("module.2", "module.3"),
    ]


def test_traces_three_hundred_layers_without_recursion():
    depth = 300
    net = nn.Sequential(*(each for _ in range(depth) for each in (nn.Linear(3, 3), leaky())))
    assert len(find_cells(net, torch.rand(2, 3))) == depth
