"""What is measured: each function times one question and returns the timings."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from snn_homeostasis import ClampBounds, LinearHomeostasis
from snn_homeostasis.updates import UpdateBounds

from .models import MODELS, Model, idle, leaky, present, train
from .timing import CONTROL, Call, Timings, repeated, side_by_side
from .yardsticks import (
    PLASTICITY,
    TARGET,
    BareCount,
    BareUpdate,
    BatchBias,
    Inferno,
    Naive,
    l1_sparsity,
    rate_loss,
)

__all__ = [
    "BATCHES",
    "attached",
    "bounded",
    "compiled",
    "grown",
    "infernos",
    "rounds_for",
    "shown",
    "stepped",
    "trained",
    "updated",
]

T = TypeVar("T")
BATCHES = (1, 32, 128)
HAS_INFERNO = importlib.util.find_spec("inferno") is not None


def rounds_for(batch: int, most: int = 60) -> int:
    """The number of rounds: a small batch makes a short sequence, and a short one needs more rounds."""
    return {1: most, 32: max(30, most // 2)}.get(batch, 20)


def attached(net: nn.Module, param: str = "weight", bounds: UpdateBounds | None = None) -> LinearHomeostasis:
    return LinearHomeostasis(PLASTICITY, TARGET, param, bounds=bounds).attach(net)


def bare(net: nn.Module) -> BareUpdate:
    """The floor: counts spikes, sums the counts and adds a row, without a rule."""
    return BareUpdate(net, BareCount(net))


def kept(net: nn.Module, rule: T) -> T:
    """Keeps a rule alive as long as its net, without making it a submodule."""
    net.rule = (rule,)
    return rule


def shown(model: Model, batch: int) -> Timings:
    """A sequence without gradients: the plain net, our package and the yardsticks, at both cadences."""
    inputs = model.inputs(batch)

    def with_rule(rule: Callable[[nn.Module], object]) -> Callable[..., Call]:
        def call(*, each: bool = False, after: bool = False) -> Call:
            net = model.new()
            step = getattr(kept(net, rule(net)), "step", idle)
            return present(net, inputs, step if each else idle, step if after else idle)

        return call

    ours, naive = with_rule(attached), with_rule(Naive)
    floor = with_rule(bare)
    calls = {
        "plain": present(model.new(), inputs),
        CONTROL: present(model.new(), inputs),
        "bare hook": with_rule(BareCount)(),
        "hook": ours(),
        "floor, once per sequence": floor(after=True),
        "once per sequence": ours(after=True),
        "floor, each step": floor(each=True),
        "each step": ours(each=True),
        "ClampBounds, each step": with_rule(lambda net: attached(net, bounds=ClampBounds(-1.0, 1.0)))(
            each=True
        ),
        "bias, each step": with_rule(lambda net: attached(net, "bias"))(each=True),
        "bias of the batch, each step": with_rule(BatchBias)(),
        "naive, once per sequence": naive(after=True),
        "naive, each step": naive(each=True),
    }
    return side_by_side(calls, rounds=rounds_for(batch))


def infernos(batch: int) -> Timings:
    """The same sequence through inferno's own layers, with inferno's rule."""
    inputs = MODELS["fc"].inputs(batch)

    def net(regulated: bool = True, every: bool = False, once: bool = False) -> Call:
        return Inferno(batch, regulated=regulated).present(inputs, every=every, once=once)

    calls = {
        "plain": net(regulated=False),
        CONTROL: net(regulated=False),
        "once per sequence": net(once=True),
        "each step": net(every=True),
    }
    return side_by_side(calls, rounds=20)


def trained(model: Model, batch: int) -> Timings:
    """A training step: forward, backward, Adam."""
    inputs = model.inputs(batch)

    def ours() -> Call:
        net = model.new()
        return train(net, inputs, after=attached(net).step)

    def penalised(penalty: Callable[[nn.Module], Callable[[], Tensor]]) -> Call:
        net = model.new()
        return train(net, inputs, penalty(net))

    calls = {
        "plain": train(model.new(), inputs),
        CONTROL: train(model.new(), inputs),
        "once per sequence": ours(),
        "rate loss": penalised(rate_loss),
        "l1_rate_sparsity": penalised(l1_sparsity),
    }
    return side_by_side(calls, rounds=rounds_for(batch, most=40))


def updated(model: Model, batch: int) -> Timings:
    """One ``step()`` right after a step of the net, over the floor of an update at that moment."""
    x = model.inputs(batch, steps=1)[0]
    calls: dict[str, Call] = {}
    before: dict[str, Call] = {}

    def add(name: str, prepare: Callable[[nn.Sequential], Call]) -> None:
        net = model.new()
        calls[name] = prepare(net)
        before[name] = torch.no_grad()(lambda: net(x))

    add("floor", lambda net: bare(net).step)
    add(CONTROL, lambda net: bare(net).step)
    add("update", lambda net: attached(net).step)
    add("naive", lambda net: Naive(net).step)
    return side_by_side(calls, before=before, rounds=rounds_for(batch, most=200))


def stepped(size: int) -> Timings:
    """One ``step()`` of a square Linear over its floor."""
    model = Model(lambda: nn.Sequential(nn.Linear(size, size), leaky()), (size,))
    return updated(model, 1)


def bounded(size: int, bounds: UpdateBounds | None) -> Timings:
    """An update of a square weight through bounds, over a bare ``weight.add_`` of a row."""

    def updating() -> Call:
        net = nn.Sequential(nn.Linear(size, size), leaky())
        nn.init.uniform_(net[0].weight, -0.5, 0.5)
        homeostasis = attached(net, bounds=bounds)
        parts = torch.full((size, 1), 1e-4), torch.full((size, 1), 1e-4)

        def call() -> None:
            homeostasis.cells["1"].updater.weight = parts
            homeostasis.update()

        return call

    def adding() -> Call:
        weight, row = torch.rand(size, size), torch.full((size, 1), 1e-9)
        return lambda: weight.add_(row)

    times = max(2, 20_000_000 // size**2)
    calls = {"add_": adding(), CONTROL: adding(), "update": updating()}
    return side_by_side({name: repeated(call, times) for name, call in calls.items()}, rounds=30)


def grown(build: Callable[[], nn.Sequential], batch: int, size: int) -> Timings:
    """A sequence through one net, plain and with a step at its end."""
    model = Model(build, (size,))
    inputs = model.inputs(batch)
    net = model.new()
    calls = {
        "plain": present(model.new(), inputs),
        CONTROL: present(model.new(), inputs),
        "once per sequence": present(net, inputs, after=attached(net).step),
    }
    return side_by_side(calls, rounds=30)


def compiled(model: Model, batch: int) -> Timings:
    """A sequence of a compiled net and of an eager one, each with recording and without."""
    inputs = model.inputs(batch)

    def net(*, fast: bool, recorded: bool) -> Call:
        net = model.new()
        if recorded:
            kept(net, attached(net))
        # on a GPU the whole step, hook and all, is one CUDA graph
        mode = None if inputs.device.type == "cpu" else "reduce-overhead"
        return present(torch.compile(net, mode=mode) if fast else net, inputs)

    calls = {
        "plain": net(fast=False, recorded=False),
        CONTROL: net(fast=False, recorded=False),
        "eager": net(fast=False, recorded=True),
        "compiled plain": net(fast=True, recorded=False),
        "compiled": net(fast=True, recorded=True),
    }
    return side_by_side(calls, rounds=rounds_for(batch))
