"""How well rates are stabilised: four experiments, their tables and a figure.

python tests/benchmarks/stabilisation            # writes RESULTS.md and results.png beside itself
python tests/benchmarks/stabilisation --quick    # a glance at everything
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import brian
import carlsim
import depth
import network
import torch
from matplotlib.figure import Figure
from report import Finding

EXPERIMENTS: dict[str, ModuleType] = {"a": carlsim, "b": brian, "c": network, "d": depth}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    start = time.perf_counter()
    findings = [EXPERIMENTS[name].run(options.seeds, options.quick) for name in options.only]
    minutes = (time.perf_counter() - start) / 60
    options.output.mkdir(parents=True, exist_ok=True)
    document = write(findings, options.seeds, minutes)
    (options.output / "RESULTS.md").write_text(document)
    paint(findings).savefig(options.output / "results.png", dpi=110)
    print(document)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How well rates are stabilised.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--quick", action="store_true", help="one seed, short runs: the figures mean nothing")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds = options.seeds[:1]
    return options


def write(findings: Sequence[Finding], seeds: Sequence[int], minutes: float) -> str:
    head = (
        "# Stabilisation benchmark\n\nWritten by `python tests/benchmarks/stabilisation`; seeds "
        f"{', '.join(map(str, seeds))}, torch {torch.__version__}, {minutes:.0f} minutes on "
        f"{os.cpu_count()} cores. ± is the sample standard deviation over seeds.\n\n![The four "
        "experiments](results.png)"
    )
    return "\n\n".join([head, *(finding.markdown() for finding in findings)]) + "\n"


def paint(findings: Sequence[Finding]) -> Figure:
    figure = Figure(figsize=(16, 5 * ((len(findings) + 1) // 2)), layout="constrained")
    panels = figure.subfigures((len(findings) + 1) // 2, min(2, len(findings)), squeeze=False).flat
    for finding, panel in zip(findings, panels, strict=False):
        finding.draw(panel)
    return figure


if __name__ == "__main__":
    main()
