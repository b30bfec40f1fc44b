"""Several processes that train one model: two gloo processes, started once for all scenarios."""

from __future__ import annotations

import functools
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
import snntorch as snn
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snn_homeostasis import (
    ArgumentError,
    Cell,
    ClampBounds,
    CumulativeRate,
    ExponentialRate,
    HomeostasisError,
    LinearHomeostasis,
    NonFiniteError,
    NoSpikesError,
    PowerBounds,
    ProcessMismatchError,
    SharpBounds,
    WindowedRate,
)

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

SIZE, STEPS, FEATURES = 2, 4, 6
WAIT = timedelta(seconds=20)  # of a collective
DEADLINE = 120  # of all scenarios together, in seconds
SCENARIOS: dict[str, Callable[[int], None]] = {}


def scenario(*cases: tuple) -> Callable:
    """Registers a function of the rank, and further arguments, as a test in every process."""

    def register(function: Callable) -> Callable:
        for case in cases or [()]:
            name = "-".join([function.__name__, *(str(each) for each in case)])
            SCENARIOS[name] = functools.partial(function, *case)
        return function

    return register


# --- the processes ---------------------------------------------------------------------------


def in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for number, run in enumerate(SCENARIOS.values()):
        report = Path(folder, f"{number}.{rank}")
        torch.manual_seed(0)
        store = dist.FileStore(f"{folder}/store{number}", SIZE)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE, timeout=WAIT)
        try:
            run(rank)
            report.write_text("passed")
        except BaseException:
            report.write_text(traceback.format_exc())
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=in_process, args=(rank, str(folder))) for rank in range(SIZE)]
    for process in processes:
        process.start()
    end = time.monotonic() + DEADLINE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", SCENARIOS)


def test_scenario(reports: Path, name: str) -> None:
    number = list(SCENARIOS).index(name)
    for rank in range(SIZE):
        report = reports / f"{number}.{rank}"
        expected = "passed" if (name, rank) != ("a_process_that_dies", 1) else ""
        said = report.read_text() if report.exists() else ""
        assert said == expected, f"process {rank}: {said or 'did not come to it'}"


# --- models and data -------------------------------------------------------------------------


class Double(nn.Identity):
    """Spikes are float32 whatever the model is."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


class Net(nn.Module):
    """A step net with its loop over time inside; float64, so that no spike hangs on rounding."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers).double()

    def forward(self, x: Tensor) -> Tensor:
        for neuron in self.layers:
            if isinstance(neuron, snn.Leaky):
                neuron.reset_mem()
        return sum(self.layers(step) for step in x.unbind(1))


def leaky() -> snn.Leaky:
    return snn.Leaky(beta=0.9, init_hidden=True)


def dense() -> Net:
    torch.manual_seed(1)
    return Net(nn.Linear(FEATURES, 8), leaky(), Double(), nn.Linear(8, 3), leaky(), Double())


def conv() -> Net:
    torch.manual_seed(1)
    front = nn.Unflatten(1, (1, FEATURES)), nn.Conv1d(1, 4, 3), leaky(), Double()
    return Net(*front, nn.Flatten(), nn.Linear(16, 3), leaky(), Double())


def batch_of(*sizes: int, seed: int) -> list[Tensor]:
    """Inputs ``[B, T, features]`` of every process."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.rand(sum(sizes), STEPS, FEATURES, generator=generator, dtype=torch.float64)
    return list(x.split(sizes))


SYNC = "forward_sync_buffers" if hasattr(DistributedDataParallel, "forward_sync_buffers") else None


def ddp(net: nn.Module, sync: bool = False) -> DistributedDataParallel:
    return DistributedDataParallel(net, broadcast_buffers=sync)


def require_replicas(net: nn.Module) -> None:
    """Parameters are equal to the bit in all processes."""
    mine = torch.cat([param.detach().flatten() for param in net.parameters()])
    everyone = [torch.empty_like(mine) for _ in range(SIZE)]
    dist.all_gather(everyone, mine)
    assert all(torch.equal(mine, other) for other in everyone)


def require_close(net: nn.Module, reference: nn.Module) -> None:
    for (name, mine), wanted in zip(net.named_parameters(), reference.parameters(), strict=True):
        value = mine.full_tensor() if hasattr(mine, "full_tensor") else mine
        error = (value - wanted).abs().max().item()
        assert error < 1e-6, f"{name}: {error}"


def train(net: nn.Module, x: Tensor, total: int, parts: int, optimizer: torch.optim.Optimizer) -> None:
    """A step toward sparse output; gradients of ``parts`` processes average to those of the joint mean."""
    optimizer.zero_grad()
    (net(x).square().sum() * parts / total).backward()
    optimizer.step()


# --- equal to one process --------------------------------------------------------------------

EPOCHS = {
    "even": [(4, 4)] * 5,
    "uneven": [(5, 2)] * 5,
    "last_uneven": [(4, 4)] * 3 + [(4, 1), (2, 1)],
    "last_empty": [(4, 4)] * 3 + [(4, 0), (0, 3)],
    "first_empty": [(3, 0), (3, 3), (3, 3), (3, 1), (3, 0)],
}
RATES = {
    "cumulative": CumulativeRate,
    "exponential": functools.partial(ExponentialRate, 15.0),
    "windowed": functools.partial(WindowedRate, 10),
}
BOUNDS = {
    "free": None,
    "clamped": ClampBounds(-0.5, 0.5),
    "soft": PowerBounds(-1.0, 1.0, (1.0, 2.0)),
    "sharp": SharpBounds(-0.5, 0.5),
}


@scenario(
    ("even", "cumulative", "free", "weight", "dense"),
    ("uneven", "cumulative", "soft", "weight", "dense"),
    ("last_uneven", "cumulative", "free", "weight", "dense"),
    ("last_uneven", "exponential", "soft", "bias", "dense"),
    ("last_empty", "cumulative", "soft", "weight", "dense"),
    ("last_empty", "exponential", "clamped", "bias", "conv"),
    ("first_empty", "cumulative", "free", "weight", "conv"),
    ("uneven", "windowed", "soft", "bias", "dense"),
    ("even", "windowed", "sharp", "weight", "conv"),
)
def equal_to_one_process(epoch: str, rate: str, bounds: str, param: str, build: str, rank: int) -> None:
    reference, net = globals()[build](), globals()[build]()
    wrapped = ddp(net)
    rule = functools.partial(LinearHomeostasis, 0.02, 0.2, param, rate=RATES[rate], bounds=BOUNDS[bounds])
    one, many = rule(process_group=None).attach(reference), rule().attach(wrapped)
    optimizers = [torch.optim.SGD(model.parameters(), 1e-3) for model in (reference, net)]
    for iteration in range(50):
        sizes = EPOCHS[epoch][iteration % len(EPOCHS[epoch])]
        x = batch_of(*sizes, seed=iteration)
        train(reference, torch.cat(x), sum(sizes), 1, optimizers[0])
        train(wrapped, x[rank], sum(sizes), SIZE, optimizers[1])
        one.step()
        many.step()
        require_replicas(net)
        for mine, wanted in zip(many.rates().values(), one.rates().values(), strict=True):
            torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=0)
    require_close(net, reference)
