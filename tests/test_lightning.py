"""The Lightning callback: steps, logs, resumes, and leaves validation alone (extra ``lightning``)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nets import leaky
from snntorch import utils
from torch import nn
from torch.nn.functional import cross_entropy

from snn_homeostasis import ArgumentError, LinearHomeostasis

lightning = pytest.importorskip("lightning.pytorch")
from snn_homeostasis.lightning import HomeostasisCallback  # noqa: E402  needs Lightning

pytestmark = pytest.mark.filterwarnings("default")  # Lightning warns of its own code

STEPS, BATCHES, BATCH = 5, 6, 4


class Module(lightning.LightningModule):
    """Counts spikes over a sequence; validates after each epoch."""

    def __init__(self, optimizers=1):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), leaky(), nn.Linear(8, 3), leaky())
        self.count = optimizers
        self.automatic_optimization = optimizers == 1

    def forward(self, x):
        utils.reset(self.net)
        return sum(self.net(x) for _ in range(STEPS))

    def training_step(self, batch, index):
        loss = cross_entropy(self(batch[0]), batch[1])
        if not self.automatic_optimization:
            optimizer = self.optimizers()[index % 2]
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch, index):
        self(100 * batch[0])

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net.parameters(), 0.1) for _ in range(self.count)]


def loader():
    inputs = 2 * torch.rand(BATCHES * BATCH, 6)
    labels = torch.randint(3, (len(inputs),))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), BATCH)


def attached(module):
    return LinearHomeostasis(0.02, 0.2, "bias").attach(module.net)


def trainer(folder, *callbacks, **settings):
    return lightning.Trainer(
        **{"max_epochs": 2, "log_every_n_steps": 1} | settings,
        accelerator="cpu",
        devices=1,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=lightning.loggers.CSVLogger(folder),
    )


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 12), (2, 6), (4, 4)])
def test_it_steps_once_after_each_step_of_the_optimizer(tmp_path, accumulated, steps):
    made = []

    def make(module):
        homeostasis = attached(module)
        homeostasis.register_step_post_hook(made.append)
        return homeostasis

    callback = HomeostasisCallback(make)
    trainer(tmp_path, callback, accumulate_grad_batches=accumulated).fit(Module(), loader(), loader())
    assert len(made) == steps
    assert callback.homeostasis.units["1"].rate.steps == 2 * BATCHES * STEPS  # validation is not counted


@pytest.mark.parametrize(("name", "steps"), [("SGD", 6), ("SGD-1", 6), (None, 12)])
def test_it_follows_one_of_several_optimizers_by_name(tmp_path, name, steps):
    module, made = Module(optimizers=2), []
    homeostasis = attached(module)
    homeostasis.register_step_post_hook(made.append)
    trainer(tmp_path, HomeostasisCallback(homeostasis, name)).fit(module, loader())
    assert len(made) == steps


def test_an_unknown_optimizer_is_named(tmp_path):
    with pytest.raises(ArgumentError, match=r"be one of SGD\. Found `optimizer = 'Adam'`"):
        trainer(tmp_path, HomeostasisCallback(attached, "Adam")).fit(Module(), loader())


def test_it_logs_metrics(tmp_path):
    run = trainer(tmp_path, HomeostasisCallback(attached))
    run.fit(Module(), loader())
    run.logger.save()
    logged = Path(run.logger.log_dir, "metrics.csv").read_text().splitlines()
    assert {"1/rate", "3/silent", "error"} <= set(logged[0].split(","))
    assert len(logged) == 1 + 2 * BATCHES


def test_it_goes_on_from_a_checkpoint_to_the_same_parameters(tmp_path):
    torch.manual_seed(0)
    data, start = loader(), Module().state_dict()
    ends = []
    for stops in ([4], [2, 4]):
        checkpoint = None
        for epochs in stops:
            module, callback = Module(), HomeostasisCallback(attached)
            module.load_state_dict(start)
            run = trainer(tmp_path, callback, max_epochs=epochs)
            run.fit(module, data, data, ckpt_path=checkpoint)
            checkpoint = tmp_path / "last.ckpt"
            run.save_checkpoint(checkpoint)
        ends.append((module.state_dict(), callback.homeostasis.state_dict()))
    for once, resumed in zip(*ends, strict=True):
        assert once.keys() == resumed.keys()
        for name, value in once.items():
            torch.testing.assert_close(resumed[name], value, msg=name)


def test_it_leaves_no_hook_on_the_optimizer(tmp_path):
    run = trainer(tmp_path, HomeostasisCallback(attached))
    run.fit(Module(), loader())
    assert not run.optimizers or not run.optimizers[0]._optimizer_step_post_hooks


SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch
from test_lightning import HomeostasisCallback, Module, attached, lightning, loader
torch.set_num_threads(1)
if __name__ == "__main__":
    torch.manual_seed(0)
    module, callback = Module(), HomeostasisCallback(attached)
    strategy = lightning.strategies.DDPStrategy(
        process_group_backend="gloo", start_method="fork", broadcast_buffers=False
    )
    run = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy=strategy, callbacks=[callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    before = module.net[0].bias.detach().clone()
    run.fit(module, loader())
    assert not torch.equal(module.net[0].bias, before)
    print("ended")
"""


def test_it_runs_in_two_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parent
    ended = subprocess.run(
        [sys.executable, script, str(root), str(root.parent)], capture_output=True, text=True, timeout=300
    )
    assert "ended" in ended.stdout, ended.stderr[-3000:]
