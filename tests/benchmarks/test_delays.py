"""What delays cost in time, against a plain layer and against inferno's, and in memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from snn_homeostasis import DelayedLinear

from .timing import side_by_side

T, BATCH, SIZE, LONGEST = 100, 32, 256, 16
FORWARD_AND_BACKWARD = """
import sys, torch
from snn_homeostasis import DelayedLinear

def run(x):
    layer.reset()
    y = layer.sequence(x) if form == "sequence" else torch.stack([layer.step(each) for each in x])
    y.square().mean().backward()
    layer.zero_grad()

def megabytes(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name))

form, (steps, batch, size, longest) = sys.argv[1], map(int, sys.argv[2:])
torch.set_num_threads(1)
layer = DelayedLinear(size, size, longest)
x = (torch.rand(steps, batch, size) < 0.1).float()
run(x[:1, :1])
before = megabytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts from here
run(x)
print(megabytes("VmHWM") - before)
"""


def over(call, inputs):
    """Applies the call to one input after the other; together they take long enough to measure."""
    return lambda: [call(each) for each in inputs]


def spikes():
    return (torch.rand(T, BATCH, SIZE) < 0.1).float()


@pytest.mark.benchmark(timer=time.thread_time)
def test_a_step(benchmark):
    neural = pytest.importorskip("inferno.neural")
    plain, layer, x = nn.Linear(SIZE, SIZE), DelayedLinear(SIZE, SIZE, LONGEST), spikes()
    theirs = neural.LinearDense(
        SIZE,
        SIZE,
        1.0,
        synapse=neural.DeltaCurrent.partialconstructor(1.0),
        bias=True,
        delay=float(LONGEST),
        batch_size=BATCH,
        delay_init=lambda _: layer.delay.detach(),
    )
    with torch.no_grad():
        calls = {
            "plain": over(plain, x[:20]),
            "control": over(plain, x[:20]),
            "step": over(layer, x[:20]),
            "inferno": over(theirs, x[:1].bool()),
        }
        timings = side_by_side(calls)
        benchmark(layer, x[0])
    against_inferno = 20 * timings.ratio("inferno", "step")
    against_linear = timings.ratio("step")
    benchmark.extra_info.update(
        times_faster_than_inferno=against_inferno,
        times_a_linear=against_linear,
        control=timings.ratio("control"),
    )
    assert against_inferno >= 50
    assert against_linear <= 25


@pytest.mark.benchmark(timer=time.thread_time)
def test_a_sequence(benchmark):
    layer, x = DelayedLinear(SIZE, SIZE, LONGEST), spikes()
    with torch.no_grad():
        timings = side_by_side({"step": over(layer.step, x), "sequence": lambda: layer.sequence(x)})
        benchmark(layer.sequence, x)
    against_steps = timings.ratio("sequence", "step")
    benchmark.extra_info.update(times_the_steps=against_steps)
    assert against_steps <= 1


@pytest.mark.benchmark(timer=time.thread_time)
def test_forward_and_backward(benchmark):
    plain, layer, x = nn.Linear(SIZE, SIZE), DelayedLinear(SIZE, SIZE, LONGEST), spikes()

    def trained(call):
        layer.reset()
        call().square().mean().backward()

    calls = {
        "plain": lambda: trained(lambda: torch.stack([plain(each) for each in x])),
        "step": lambda: trained(lambda: torch.stack([layer.step(each) for each in x])),
        "sequence": lambda: trained(lambda: layer.sequence(x)),
    }
    timings = side_by_side(calls, rounds=7)
    benchmark.pedantic(calls["step"], rounds=3)
    benchmark.extra_info.update(
        step_times_a_linear=timings.ratio("step"),
        sequence_times_the_steps=timings.ratio("sequence", "step"),
        milliseconds_per_step={name: 1e3 * timings.median(name) / T for name in calls},
    )


@pytest.mark.benchmark
@pytest.mark.parametrize("form", ["step", "sequence"])
def test_memory_of_forward_and_backward(benchmark, form):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is read from /proc")
    sizes = map(str, (T, BATCH, SIZE, LONGEST))

    def megabytes():
        command = [sys.executable, "-c", FORWARD_AND_BACKWARD, form, *sizes]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    extra = benchmark.pedantic(megabytes, rounds=1)
    benchmark.extra_info.update(extra_megabytes=extra)
    assert extra <= 100
