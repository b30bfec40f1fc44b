"""Cells found by following data: right or a clear error for every model of the zoo, and no trace left."""

import contextlib
import dataclasses
import random
import warnings
from collections import deque

import numpy as np
import pytest
import snntorch as snn
import torch
from models import STEPS, ZOO, Loop, leaky
from models.branching import Inhibited, Residual
from models.dense import Blocks, ExplicitMembranes, quickstart
from models.normalised import GroupNorm, NormAlone, NormPerStep
from models.refused import OneNeuronForTwoLayers
from models.registry import images, one_step, steps
from snntorch import utils
from torch import nn

from snn_homeostasis import (
    ArgumentError,
    HomeostasisWarning,
    LinearHomeostasis,
    UnpairedNeuronError,
    find_cells,
)

FOUND = [animal for animal in ZOO if not animal.problems]
UNKNOWN = [animal for animal in ZOO if animal.problems]


def attached(animal, model, plasticity=0.05, target=0.2, **kwargs):
    """A homeostasis on a model of the zoo, and the warnings that it gave."""
    kwargs = {"param": animal.param, **animal.choice, **kwargs}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        homeostasis = LinearHomeostasis(plasticity, target).attach(model, animal.example(), **kwargs)
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


def test_the_zoo_is_large():
    assert len(ZOO) >= 40
    assert len({animal.name for animal in ZOO}) == len(ZOO)


@pytest.mark.parametrize("animal", FOUND, ids=str)
def test_finds_the_true_cells(animal):
    choice = {key: value for key, value in animal.choice.items() if key != "param"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HomeostasisWarning)
        found = find_cells(animal.build(), animal.example(), **choice)
    assert {tuple(filter(None, (each.layer, each.neuron, each.norm))) for each in found} == set(animal.cells)
    assert len(found) == len({each.name for each in found}) == len(animal.cells)


@pytest.mark.parametrize("animal", FOUND, ids=str)
def test_warns_of_what_is_peculiar_and_of_nothing_else(animal):
    _, messages = attached(animal, animal.build())
    assert len(messages) == len(animal.warnings)
    for phrase in animal.warnings:
        assert any(phrase in message for message in messages), messages


@pytest.mark.parametrize("animal", UNKNOWN, ids=str)
def test_says_what_it_cannot_know(animal):
    model = animal.build()
    with pytest.raises(UnpairedNeuronError) as error:
        LinearHomeostasis(0.1, 0.1).attach(model, animal.example())
    for phrase in (*animal.problems, "attach(model, pairs={'neuron': 'layer'})"):
        assert phrase in str(error.value)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("animal", [animal for animal in FOUND if animal.why_not is None], ids=str)
def test_rates_move_to_the_target_in_a_training_loop(animal):
    model = animal.build()
    homeostasis, _ = attached(animal, model, plasticity=0.1 if animal.param == "bias" else 0.03)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    distances = []
    for _ in range(40):
        homeostasis.clear()
        reset(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the compiler
            loss = sum(summed(called(model, animal.example())) for _ in range(2))
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        homeostasis.step()
        rates = torch.stack([rate.mean() for rate in homeostasis.rates().values()])
        distances.append(rates - 0.2)
    first, last = distances[0].abs(), torch.stack(distances[-10:]).mean(0).abs()
    assert (last < torch.maximum(0.5 * first, torch.tensor(0.05))).all(), (first, last)


# ---- no trace


def state_of(model):
    """All that a run might change, by value, by identity and by version."""
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


def probed(model, animal):
    choice = {key: value for key, value in animal.choice.items() if key != "param"}
    with warnings.catch_warnings(), contextlib.suppress(UnpairedNeuronError):
        warnings.simplefilter("ignore", HomeostasisWarning)
        find_cells(model, animal.example(), **choice)


RUNNABLE = [animal for animal in ZOO if animal.name not in ("compiled", "lazy", "unbatched")]


@pytest.mark.parametrize("animal", RUNNABLE, ids=str)
def test_everything_is_as_it_was_in_the_middle_of_training(animal):
    model = animal.build()
    loss = summed(called(model, animal.example()))
    if loss.requires_grad:
        loss.backward()
    example, seed = animal.example(), torch.get_rng_state()
    animal = dataclasses.replace(animal, example=lambda: example)
    before = state_of(model)
    probed(model, animal)
    assert_same(state_of(model), before)
    assert torch.equal(torch.get_rng_state(), seed)


@pytest.mark.parametrize("animal", RUNNABLE, ids=str)
def test_the_next_forward_is_bit_equal(animal):
    def sums(probe):
        torch.manual_seed(3)
        model, example = animal.build(), animal.example()
        called(model, example)
        if probe:
            seed = torch.get_rng_state()
            probed(model, animal)
            torch.set_rng_state(seed)  # an example was drawn
        reset(model)
        reached = [summed(called(model, example)), summed(called(model, example))]
        return [*reached, *model.parameters(), *model.buffers()]

    assert_same(sums(probe=True), sums(probe=False))


class Raising(Loop):
    """Changes all that it can, then fails."""

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


def test_everything_is_as_it_was_after_an_exception():
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


def test_in_eval_mode_too():
    assert len(find_cells(Residual().eval(), images())) == 3


def test_a_homeostasis_that_is_there_does_not_count_the_run():
    model = ExplicitMembranes()
    homeostasis = LinearHomeostasis(0.1, 0.1).attach(model, steps())
    model(steps())
    LinearHomeostasis(0.1, 0.1, "bias").attach(model, steps())
    assert {unit.rate.steps for unit in homeostasis.units.values()} == {STEPS}


def test_batch_of_the_example_may_differ_from_the_last_one():
    net = quickstart()
    net(torch.rand(7, 6))
    assert len(find_cells(net, torch.rand(2, 6))) == 2


def test_neurons_of_other_models_keep_their_membranes():
    other = leaky()
    other(torch.rand(2, 3))
    membrane = other.mem
    model = quickstart()
    model.register_forward_pre_hook(lambda *_: utils.reset(model))  # it resets every neuron there is
    find_cells(model, one_step())
    assert other.mem is membrane


class Plastic(nn.Module):
    """Learns by a local rule in its forward, and is made for `no_grad`."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 6), leaky()

    def forward(self, x):
        spikes = self.lif(self.fc(x))
        self.fc.weight += 0.01 * spikes.T @ x
        return spikes


def test_a_model_made_for_no_grad():
    model = Plastic()
    weight = model.fc.weight.clone()
    with torch.no_grad(), pytest.warns(HomeostasisWarning, match="taken on trust"):
        assert [each.layer for each in find_cells(model, one_step())] == ["fc"]
    assert torch.equal(model.fc.weight, weight)
    with pytest.raises(RuntimeError, match="in-place"):
        find_cells(model, one_step())


def test_a_forward_that_is_a_generator_is_run_to_its_end():
    class Generating(ExplicitMembranes):
        def forward(self, x):
            yield from super().forward(x)

    assert len(find_cells(Generating(), steps())) == 2


# ---- choices


def test_second_names_of_modules_mean_the_modules():
    model = ExplicitMembranes()
    model.again, model.same = model.lif2, model.fc2
    assert [each.name for each in find_cells(model, steps(), exclude="same")] == ["lif1"]
    found = find_cells(model, steps(), pairs={"again": "same"})
    assert [(each.neuron, each.layer) for each in found] == [("lif1", "fc1"), ("lif2", "fc2")]


def test_says_which_layers_have_nothing_to_regulate():
    model = Residual()
    model.shortcut.bias = None
    with pytest.warns(HomeostasisWarning, match="Left out: `shortcut`, with no bias"):
        homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(model, images())
    assert list(homeostasis.cells) == ["lif:conv", "out"]


def test_pairs_settle_a_neuron_and_the_rest_is_found():
    model = OneNeuronForTwoLayers()
    model.side, model.out = nn.Linear(6, 3), leaky()
    model.step = lambda x: model.out(model.side(OneNeuronForTwoLayers.step(model, x)))
    found = find_cells(model, steps(), pairs={"lif": ["fc1", "fc2"]})
    assert [(each.name, each.layer) for each in found] == [
        ("out", "side"), ("lif:fc1", "fc1"), ("lif:fc2", "fc2"),
    ]  # fmt: skip


@pytest.mark.parametrize("animal", UNKNOWN, ids=str)
def test_what_cannot_be_known_can_be_left_out(animal):
    neurons = [
        name for name, module in animal.build().named_modules() if isinstance(module, snn.SpikingNeuron)
    ]
    words = r"leave a cell|scripted|no values|no spiking|not registered"
    with pytest.raises((ArgumentError, UnpairedNeuronError), match=words):
        find_cells(animal.build(), animal.example(), exclude=neurons)


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
def test_include_and_exclude(choice, layers):
    assert [each.layer for each in find_cells(Residual(), images(), **choice)] == layers


def test_a_choice_of_modules_around():
    found = find_cells(Blocks(), steps(), include="blocks.1")
    assert [each.name for each in found] == ["blocks.1.lif"]


@pytest.mark.parametrize("name", ["include", "exclude"])
@pytest.mark.parametrize("choice", ["convolution", nn.Conv3d])
def test_a_choice_that_fits_nothing_is_an_error(name, choice):
    with pytest.raises(ArgumentError, match=f"`{name}` should name paths or types of modules"):
        find_cells(Residual(), images(), **{name: choice})


def test_norms_of_single_steps_are_cells_for_the_bias_alone():
    homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(NormPerStep(), steps())
    assert len(homeostasis.cells) == 2 * STEPS
    with pytest.warns(HomeostasisWarning, match="cancels most"):
        homeostasis = LinearHomeostasis(0.1, 0.1, "weight").attach(NormPerStep(), steps())
    assert list(homeostasis.cells) == ["lif1", "lif2"]


def test_a_layer_of_negative_sign_is_regulated_the_other_way_round():
    with pytest.warns(HomeostasisWarning):
        homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(Inhibited(), steps())
    plasticities = {name: unit.state.plasticity for name, unit in homeostasis.units.items()}
    assert plasticities == {"lif:fc": 0.1, "lif:inhibition": -0.1}


def test_distributed_data_parallel_is_looked_into(tmp_path):
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


def test_a_deep_model_is_no_recursion_and_holds_no_dead_marks():
    depth = 300
    net = nn.Sequential(*(each for _ in range(depth) for each in (nn.Linear(3, 3), leaky())))
    assert len(find_cells(net, torch.rand(2, 3))) == depth
