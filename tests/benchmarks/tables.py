"""The figures as Markdown: one table for each question, and a line about the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from cpuinfo import get_cpu_info  # comes with pytest-benchmark

from snn_homeostasis import PowerBounds

from . import overheads
from .models import MODELS, Model
from .parts import parts_of_a_step
from .timing import Timings

__all__ = ["TABLES", "machine"]

SHOWN = [
    "bare hook",
    "hook",
    "floor, once per sequence",
    "once per sequence",
    "floor, each step",
    "each step",
    "ClampBounds, each step",
    "bias, each step",
    "bias of the batch, each step",
    "naive, once per sequence",
    "naive, each step",
]
TRAINED = ["once per sequence", "rate loss", "l1_rate_sparsity"]
T = TypeVar("T")
COLUMNS = [(name, batch) for name in MODELS for batch in overheads.BATCHES]


def machine() -> str:
    """Describes the machine that measures."""
    device = torch.get_default_device()
    is_cpu = device.type == "cpu"
    name = get_cpu_info()["brand_raw"] if is_cpu else torch.cuda.get_device_name(device)
    return (
        f"{name}, {os.cpu_count()} cores of which one is used, load {os.getloadavg()[0]:.1f}; "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(timings: Timings, name: str) -> str:
    return "void" if timings.is_void else f"{100 * timings.overhead(name):+.1f}"


def times(timings: Timings, name: str, other: str | None = None) -> str:
    return "void" if timings.is_void else f"{timings.ratio(name, other):.2f}"


def by_column(
    measure: Callable[[Model, int], T], columns: Sequence[tuple[str, int]] = COLUMNS
) -> dict[str, T]:
    """Measures each model at each batch; keys are the heads of the columns."""
    return {f"{name} {batch}": measure(MODELS[name], batch) for name, batch in columns}


def overhead_table(measure: Callable[[Model, int], Timings], names: Sequence[str]) -> str:
    """Per cent over the plain net; one column for each model and batch."""
    found = by_column(measure)
    rows = [["plain, ms", *(f"{1e3 * each.median(each.base):.1f}" for each in found.values())]]
    rows.append(["control, %", *(f"{100 * each.control:+.1f}" for each in found.values())])
    rows += [[f"{name}, %", *(percent(each, name) for each in found.values())] for name in names]
    return table(["over the plain net", *found], rows)


def inferno_table() -> str:
    if not overheads.HAS_INFERNO:
        return "inferno is not installed."
    found = {batch: overheads.infernos(batch) for batch in overheads.BATCHES}
    rows = [["plain, ms", *(f"{1e3 * each.median(each.base):.1f}" for each in found.values())]]
    rows.append(["control, %", *(f"{100 * each.control:+.1f}" for each in found.values())])
    for name in ("once per sequence", "each step"):
        rows.append([f"{name}, %", *(percent(each, name) for each in found.values())])
        rows.append([f"{name}, ms added", *(f"{1e3 * each.added(name):.2f}" for each in found.values())])
    return table(["inferno over its own plain net", *(f"fc {batch}" for batch in found)], rows)


def update_table() -> str:
    found = by_column(overheads.updated)
    found["4096 × 4096"] = overheads.stepped(4096)
    rows = [["floor, µs", *(f"{1e6 * each.median('floor'):.0f}" for each in found.values())]]
    rows.append(["control", *(f"{1 + each.control:.2f}" for each in found.values())])
    rows += [[name, *(times(each, name) for each in found.values())] for name in ("update", "naive")]
    return table(["step() over its floor, times", *found], rows)


def parts_table() -> str:
    found = by_column(parts_of_a_step)
    names = next(iter(found.values()))
    rows = [[f"{name}, µs", *(f"{1e6 * each[name]:.0f}" for each in found.values())] for name in names]
    return table(["in step()", *found], rows)


def bounds_table() -> str:
    bounds = {
        "none": None,
        **{f"PowerBounds(power={mu:g})": PowerBounds(-1.0, 1.0, power=mu) for mu in (1.0, 2.0, 0.5, 0.7)},
    }
    sizes = (1000, 4096)
    found = {name: [overheads.bounded(size, each) for size in sizes] for name, each in bounds.items()}
    rows = [[name, *(times(each, "update") for each in both)] for name, both in found.items()]
    return table(["update over weight.add_, times", *(f"{size} × {size}" for size in sizes)], rows)


def compiled_table() -> str:
    found = by_column(overheads.compiled, COLUMNS[:2])
    rows = [["control, %", *(f"{100 * each.control:+.1f}" for each in found.values())]]
    rows.append(["eager, added ms", *(f"{1e3 * each.added('eager'):.2f}" for each in found.values())])
    rows.append(
        [
            "compiled, added ms",
            *(f"{1e3 * each.added('compiled', 'compiled plain'):.2f}" for each in found.values()),
        ]
    )
    return table(["recording", *found], rows)


TABLES: dict[str, Callable[[], str]] = {
    "shown": lambda: overhead_table(overheads.shown, SHOWN),
    "trained": lambda: overhead_table(overheads.trained, TRAINED),
    "inferno": inferno_table,
    "update": update_table,
    "parts": parts_table,
    "bounds": bounds_table,
    "compiled": compiled_table,
}
