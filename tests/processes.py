"""Scenarios: functions that run in two gloo processes at once, started once for all of a file."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from unittest import mock

import snntorch as snn
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

SIZE, STEPS, FEATURES = 2, 4, 6
WAIT = timedelta(seconds=60)  # how long a collective waits for the other process
DEADLINE = 150  # seconds for one scenario; more than two waits, of which the second sees the first fail
STORE: list[dist.Store] = []


class Scenarios(dict[str, Callable[[int], None]]):
    """The scenarios of a file by name; a decorator that adds a function of the rank, and its cases."""

    def __call__(self, *cases: tuple) -> Callable:
        """Registers a function of the rank, and further arguments, as a test in every process."""

        def register(function: Callable) -> Callable:
            for case in cases or [()]:
                name = "-".join([function.__name__, *(str(each) for each in case)])
                self[name] = functools.partial(function, *case)
            return function

        return register


def start_group(rank: int, name: str, store: dist.Store = None) -> None:
    """Makes the default process group; later ones take the store of the first."""
    STORE[:] = [store or STORE[0]]
    own = dist.PrefixStore(name, STORE[0])
    dist.init_process_group("gloo", store=own, rank=rank, world_size=SIZE, timeout=WAIT)


def in_process(rank: int, folder: str, module: str) -> None:
    """Runs the scenarios of a module, one after the other."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)  # only `train` runs a backward
    warnings.simplefilter("error")
    # torch warns of its own code when it traces
    warnings.filterwarnings("ignore", ".*Function.*should not be instantiated", DeprecationWarning)
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor", UserWarning)
    store = dist.FileStore(f"{folder}/store", SIZE)
    scenarios = importlib.import_module(module).scenario
    for number, run in enumerate(scenarios.values()):
        torch.manual_seed(0)
        report = "passed"
        try:
            start_group(rank, f"scenario {number}", store)
            run(rank)
        except BaseException:
            report = traceback.format_exc()
        partial = Path(folder, f"{number}.{rank}.partial")
        partial.write_text(report)
        partial.rename(partial.with_suffix(""))  # a report is there as a whole, or not at all
        # no process starts the next scenario before all have ended this one; in the last, one may die
        if number + 1 < len(scenarios):
            store.set(f"{number}.{rank}", "done")
            store.wait([f"{number}.{each}" for each in range(SIZE)], 2 * WAIT)
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def started(module: str, folder: Path) -> Iterator[Reports]:
    """Starts the processes."""
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=in_process, args=(rank, str(folder), module)) for rank in range(SIZE)]
    for process in processes:
        process.start()
    try:
        yield Reports(folder, processes)
    finally:
        for process in processes:
            process.kill()
            process.join()


class Reports:
    """The reports of the processes, which run the scenarios while the tests wait for each in turn."""

    def __init__(self, folder: Path, processes: list) -> None:
        self.folder, self.processes = folder, processes

    def of(self, number: int, rank: int) -> str:
        """Waits for the report of one process; the deadline starts when the test asks."""
        report, end = self.folder / f"{number}.{rank}", time.monotonic() + DEADLINE
        while not report.exists():
            if not self.processes[rank].is_alive():
                return report.read_text() if report.exists() else "the process has ended"
            if time.monotonic() > end:
                return f"its deadline of {DEADLINE} s has passed"
            time.sleep(0.02)
        return report.read_text()


# --- models and data -------------------------------------------------------------------------


class Double(nn.Identity):
    """Spikes are float32 whatever the dtype of the model."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


class Net(nn.Module):
    """Loops over time inside; in float64, so that no spike depends on rounding."""

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


SYNC = "broadcast_buffers"
if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
    SYNC = "forward_sync_buffers"


def ddp(net: nn.Module, sync: bool = False, **kwargs) -> DistributedDataParallel:
    return DistributedDataParallel(net, **{SYNC: sync}, **kwargs)


def require_replicas(net: nn.Module) -> None:
    """Checks that the parameters of all processes are equal to the bit."""
    mine = torch.cat([param.detach().flatten() for param in net.parameters()])
    everyone = [torch.empty_like(mine) for _ in range(SIZE)]
    dist.all_gather(everyone, mine)
    assert all(torch.equal(mine, other) for other in everyone)


def require_close(net: nn.Module, reference: nn.Module) -> None:
    for (name, mine), wanted in zip(net.named_parameters(), reference.parameters(), strict=True):
        value = mine.full_tensor() if hasattr(mine, "full_tensor") else mine
        error = (value - wanted).abs().max().item()
        assert error < 1e-6, f"{name}: {error}"


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def require_untouched(net: nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())


def shard(net: Net, *, inner: bool = False, dim: int = 0) -> Net:
    """Calls `fully_shard`: the pieces of a parameter are uneven, and some are empty."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    mesh = init_device_mesh("cpu", (SIZE,))
    place = functools.partial(fully_shard, mesh=mesh)
    if dim:
        place = functools.partial(place, shard_placement_fn=lambda param: Shard(min(dim, param.ndim - 1)))
    for layer in net.layers if inner else ():
        if any(True for _ in layer.parameters(recurse=False)):
            place(layer)
    return place(net)


def collectives(run: Callable[[], object]) -> list[str]:
    """The names of the collectives that a call makes."""
    names = ["all_reduce", "all_gather", "all_gather_object", "broadcast", "reduce_scatter", "barrier"]
    calls: list[str] = []

    def counted(name: str, function: Callable) -> Callable:
        return lambda *args, **kwargs: (calls.append(name), function(*args, **kwargs))[1]

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(dist, name, counted(name, getattr(dist, name))))
        run()
    return calls
