"""Tools that people train with: the real ones, each skipped where it is not installed (extra ``tools``)."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Recount, leaky, snapshot, unchanged
from snntorch import utils
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from snn_homeostasis import ArgumentError, ClampBounds, HomeostasisError, LinearHomeostasis

# the tools warn of their own code, each release of other things
pytestmark = pytest.mark.filterwarnings("default")

FEATURES, CLASSES, STEPS, SAMPLES, BATCH = 6, 3, 5, 24, 4
BATCHES = SAMPLES // BATCH


class Net(nn.Module):
    """Loops over time inside, and returns counts of spikes."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(FEATURES, 8), leaky(), nn.Linear(8, CLASSES), leaky()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self.layers)
        return sum(self.layers(x) for _ in range(STEPS))


def data() -> torch.utils.data.TensorDataset:
    inputs, labels = 2 * torch.rand(SAMPLES, FEATURES), torch.randint(CLASSES, (SAMPLES,))
    return torch.utils.data.TensorDataset(inputs, labels)


def loader() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(data(), BATCH)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.1)


def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for x, y in loader():
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()


# --- optimizers in wrappers ------------------------------------------------------------------


def accelerated(optimizer: torch.optim.Optimizer) -> object:
    return pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(optimizer)


def private(optimizer: torch.optim.Optimizer) -> object:
    wrapper = pytest.importorskip("opacus").optimizers.DPOptimizer
    return wrapper(optimizer, noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=BATCH)


def lightning(optimizer: torch.optim.Optimizer) -> object:
    return pytest.importorskip("lightning").pytorch.core.optimizer.LightningOptimizer(optimizer)


def fabric(optimizer: torch.optim.Optimizer) -> object:
    return pytest.importorskip("lightning").Fabric(accelerator="cpu").setup_optimizers(optimizer)


WRAPPERS = {each.__name__: each for each in (accelerated, private, lightning, fabric)}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapper_and_what_it_wraps_are_one_optimizer(wrap):
    net = Net()
    optimizer = sgd(net)
    wrapper = WRAPPERS[wrap](optimizer)
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net).follow(wrapper)
    for again in (wrapper, optimizer):
        with pytest.raises(ArgumentError, match="Found a second `follow` of the same SGD"):
            homeostasis.follow(again)
    homeostasis.remove()
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("wrap", ["accelerated", "lightning", "fabric"])
def test_wrappers_of_wrappers_are_followed(wrap):
    net = Net()
    optimizer = sgd(net)
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net).follow(WRAPPERS[wrap](private(optimizer)))
    with torch.no_grad():
        net(data()[:BATCH][0])
    before = snapshot(net)
    optimizer.step()
    assert not unchanged(net, before)
    homeostasis.remove()


def test_a_wrapper_that_goes_on_after_its_optimizer_is_refused():
    schedulefree, net = pytest.importorskip("schedulefree"), Net()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net)
    for wrapper in (schedulefree.ScheduleFreeWrapper, schedulefree.ScheduleFreeWrapperReference):
        with pytest.raises(ArgumentError, match=f"Found `optimizer = {wrapper.__name__}`") as caught:
            homeostasis.follow(wrapper(sgd(net)))
        caught.match(r"call `step\(\)` of the homeostasis after each step of the wrapper")


@pytest.mark.parametrize("kind", ["AdamWScheduleFree", "RAdamScheduleFree"])
def test_optimizers_without_a_schedule_are_followed(kind):
    schedulefree, net = pytest.importorskip("schedulefree"), Net()
    optimizer = getattr(schedulefree, kind)(net.parameters(), 0.01)
    optimizer.train()
    bounds = ClampBounds(-0.3, 0.3)
    homeostasis = LinearHomeostasis(0.02, 0.2, bounds=bounds).attach(net).follow(optimizer)
    for x, y in loader():

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(net(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert net.layers[0].weight.abs().max() <= 0.3  # the rule comes last
    assert homeostasis.units["layers.1"].rate.steps == STEPS  # since the last step


# --- accelerate ------------------------------------------------------------------------------


def test_accelerate_steps_once_per_accumulated_gradient():
    accelerate, net = pytest.importorskip("accelerate"), Net()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    net, optimizer, batches = accelerator.prepare(net, sgd(net), loader())
    LinearHomeostasis(0.02, 0.2).attach(net, data()[:BATCH][0]).follow(optimizer)
    recount, moved = Recount(net.layers[1]), []
    for x, y in batches:
        before = snapshot(net)
        with accelerator.accumulate(net):
            accelerator.backward(cross_entropy(net(x), y))
            optimizer.step()
            optimizer.zero_grad()
        moved.append(not unchanged(net, before))
    assert moved == [False, True] * (BATCHES // 2)
    assert recount.steps == BATCHES * STEPS


def test_accelerate_saves_and_loads_the_state(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    states = []
    for folder in (None, tmp_path):
        accelerator = accelerate.Accelerator(cpu=True)
        net = accelerator.prepare(Net())
        homeostasis = LinearHomeostasis(0.02, 0.2).attach(net, data()[:BATCH][0])
        accelerator.register_for_checkpointing(homeostasis)
        if folder is None:
            with torch.no_grad():
                net(data()[:BATCH][0])
            homeostasis.step()
            accelerator.save_state(tmp_path)
        else:
            accelerator.load_state(folder)
        states.append({**net.state_dict(), **homeostasis.state_dict()})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@torch.no_grad()
def test_weights_that_accelerate_takes_away_are_refused():
    accelerate = pytest.importorskip("accelerate")
    inputs = data()[:BATCH][0]
    for attach_first in (False, True):
        net, homeostasis = Net(), LinearHomeostasis(0.02, 0.2)
        if attach_first:
            homeostasis.attach(net, inputs)
        accelerate.cpu_offload(net, torch.device("cpu"))
        with pytest.raises(HomeostasisError, match=r"meta|no values"):
            homeostasis.attach(net, inputs) if not attach_first else (net(inputs), homeostasis.step())


# --- Opacus ----------------------------------------------------------------------------------


def make_private(net: nn.Module, **kwargs: object) -> tuple:
    engine = pytest.importorskip("opacus").PrivacyEngine(accountant="rdp")
    return engine.make_private(
        module=net,
        optimizer=sgd(net),
        data_loader=loader(),
        noise_multiplier=0.5,
        max_grad_norm=1.0,
        **kwargs,
    )


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("param", ["weight", "bias"])
def test_opacus_trains_a_regulated_model(when, param):
    net, homeostasis, inputs = Net(), LinearHomeostasis(0.02, 0.2, param), data()[:BATCH][0]
    if when == "before":
        homeostasis.attach(net, inputs)
    model, optimizer, batches = make_private(net)
    if when == "after":
        homeostasis.attach(model, inputs)
    homeostasis.follow(optimizer)
    for x, y in batches:  # Poisson sampling: batches of any size
        before = snapshot(net)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        assert not unchanged(net, before)
    assert [name.removeprefix("_module.") for name in homeostasis.cells] == ["layers.1", "layers.3"]


def test_opacus_steps_once_per_logical_batch():
    net = Net()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net, data()[:BATCH][0])
    _, optimizer, batches = make_private(net, poisson_sampling=False)
    manager = pytest.importorskip("opacus.utils.batch_memory_manager").BatchMemoryManager
    homeostasis.follow(optimizer)
    moved = []
    with manager(data_loader=batches, max_physical_batch_size=BATCH // 2, optimizer=optimizer) as halves:
        for x, y in halves:
            before = snapshot(net)
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
            moved.append(not unchanged(net, before))
    assert moved == [False, True] * BATCHES


# --- peft ------------------------------------------------------------------------------------


def adapted(net: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(net, peft.LoraConfig(target_modules=["layers.0", "layers.2"], r=2))


def test_an_adapter_around_regulated_layers_is_no_matter():
    net = Net()
    homeostasis = LinearHomeostasis(0.02, 0.2, "bias").attach(net, data()[:BATCH][0])
    biases = [net.layers[0].bias, net.layers[2].bias]
    before = [bias.detach().clone() for bias in biases]
    model = adapted(net)
    with torch.no_grad():
        model(data()[:BATCH][0])
    homeostasis.step()
    assert not any(map(torch.equal, biases, before))


def test_frozen_layers_below_an_adapter_are_named():
    with pytest.raises(ArgumentError, match="frozen"):
        LinearHomeostasis(0.02, 0.2, "bias").attach(adapted(Net()), data()[:BATCH][0])


# --- torchao ---------------------------------------------------------------------------------


@torch.no_grad()
def test_biases_of_quantised_layers_are_regulated():
    quantization, net = pytest.importorskip("torchao.quantization"), Net()
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    inputs = data()[:BATCH][0]
    with pytest.raises(HomeostasisError, match="weight"):
        LinearHomeostasis(0.02, 0.2, "weight").attach(net, inputs)
    homeostasis, before = LinearHomeostasis(0.02, 0.2, "bias").attach(net, inputs), net.layers[0].bias.clone()
    net(inputs)
    homeostasis.step()
    assert not torch.equal(net.layers[0].bias, before)


@torch.no_grad()
def test_weights_that_are_quantised_later_are_refused():
    quantization, net = pytest.importorskip("torchao.quantization"), Net()
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net, data()[:BATCH][0])
    quantization.quantize_(net.layers[2], quantization.Int8WeightOnlyConfig())
    net(data()[:BATCH][0])
    before = net.layers[0].weight.clone()
    with pytest.raises(HomeostasisError, match="weight"):
        homeostasis.step()
    assert torch.equal(net.layers[0].weight, before)


def test_fake_quantised_training_is_regulated():
    qat, net = pytest.importorskip("torchao.quantization.qat"), Net()
    quantize_ = pytest.importorskip("torchao.quantization").quantize_
    fake = qat.IntxFakeQuantizeConfig(torch.int4, group_size=2)
    quantize_(net, qat.QATConfig(weight_config=fake, step="prepare"))
    optimizer = sgd(net)
    homeostasis = LinearHomeostasis(0.02, 0.2).attach(net, data()[:BATCH][0]).follow(optimizer)
    train(net, optimizer)
    assert list(homeostasis.rates()) == ["layers.1", "layers.3"]


# --- Lightning -------------------------------------------------------------------------------


def module(keeps: bool) -> nn.Module:
    """A LightningModule that holds its homeostasis, if it keeps one, and follows its optimizer."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            if keeps:
                self.homeostasis = LinearHomeostasis(0.02, 0.2).attach(self.net, data()[:BATCH][0])

        def training_step(self, batch: tuple, index: int) -> Tensor:
            return cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: tuple, index: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = sgd(self.net)
            if keeps:
                self.homeostasis.follow(optimizer)
            return optimizer

    return Module()


def trainer(folder: object, **kwargs: object) -> object:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    lightning = pytest.importorskip("lightning")
    return lightning.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **kwargs)


def own_callback() -> object:
    """A callback as a user writes it: attaches, steps after each batch, saves and loads."""

    class Keep(pytest.importorskip("lightning").Callback):
        def setup(self, trainer: object, module: nn.Module, stage: str) -> None:
            self.homeostasis = LinearHomeostasis(0.02, 0.2).attach(module.net, data()[:BATCH][0])

        def on_train_batch_end(self, *args: object) -> None:
            self.homeostasis.step()

        def state_dict(self) -> dict:
            return self.homeostasis.state_dict()

        def load_state_dict(self, state: dict) -> None:
            self.homeostasis.load_state_dict(state)

    return Keep()


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("kept", ["by the module", "by a callback"])
def test_lightning_observes_training_and_no_validation(kept, accumulated, tmp_path):
    net = module(keeps=kept == "by the module")
    callbacks = [] if hasattr(net, "homeostasis") else [own_callback()]
    fit = trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulated, callbacks=callbacks)
    start = net.net.layers[0].weight.detach().clone()
    fit.fit(net, loader(), loader())  # with a sanity check, and a validation after each epoch
    homeostasis = callbacks[0].homeostasis if callbacks else net.homeostasis
    assert homeostasis.units["layers.1"].active
    assert homeostasis.training
    assert not torch.equal(net.net.layers[0].weight, start)
    before = snapshot(net.net)
    with torch.no_grad():
        net.net(data()[:BATCH][0])
    homeostasis.step()
    assert not unchanged(net.net, before)


@pytest.mark.parametrize("kept", ["by the module", "by a callback"])
def test_lightning_resumes_from_a_checkpoint(kept, tmp_path):
    nets = []
    torch.manual_seed(0)
    batches = loader()
    for stops in ((2,), (1, 2)):
        saved = None
        for epochs in stops:
            torch.manual_seed(0)
            net = module(keeps=kept == "by the module")
            callbacks = [] if hasattr(net, "homeostasis") else [own_callback()]
            fit = trainer(tmp_path, max_epochs=epochs, callbacks=callbacks, enable_checkpointing=False)
            fit.fit(net, batches, ckpt_path=saved)
            saved = tmp_path / "saved.ckpt"
            fit.save_checkpoint(saved)
        nets.append(net)
    assert unchanged(nets[0].net, snapshot(nets[1].net))


# --- torch.distributed.checkpoint ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*in a single process:UserWarning")
def test_a_distributed_checkpoint_of_one_process_loads_in_whole(tmp_path):
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    saved = LinearHomeostasis(0.02, 0.2).attach(net := Net(), data()[:BATCH][0])
    with torch.no_grad():
        net(data()[:BATCH][0])
    saved()
    checkpoint.save({"homeostasis": saved.state_dict()}, checkpoint_id=tmp_path)
    same = copy.deepcopy(saved.state_dict())
    for value in same.values():
        value.zero_()
    checkpoint.load({"homeostasis": same}, checkpoint_id=tmp_path)
    loaded = LinearHomeostasis(0.02, 0.2).attach(Net(), data()[:BATCH][0])
    loaded.load_state_dict(same)
    for mine, wanted in zip(loaded.rates().values(), saved.rates().values(), strict=True):
        assert torch.equal(mine, wanted)
    fresh = LinearHomeostasis(0.02, 0.2).attach(Net(), data()[:BATCH][0])
    part = fresh.state_dict()  # what a new one has: no tensors yet
    checkpoint.load({"homeostasis": part}, checkpoint_id=tmp_path)
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict(part)
