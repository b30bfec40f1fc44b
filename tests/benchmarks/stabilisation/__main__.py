"""How well rates are stabilised: five experiments, a page of tables and a figure for each.

    python tests/benchmarks/stabilisation            # writes results/a.md, results/a.png and so on
python tests/benchmarks/stabilisation --only a b
python tests/benchmarks/stabilisation --quick    # a glance at everything
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import brian
import carlsim
import depth
import network
import recurrent
import torch
from matplotlib.figure import Figure

EXPERIMENTS: dict[str, ModuleType] = {
    "a": carlsim,
    "b": brian,
    "c": network,
    "d": depth,
    "e": recurrent,
}


def main() -> None:
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        start = time.perf_counter()
        finding = EXPERIMENTS[name].run(options.seeds, options.quick)
        minutes = (time.perf_counter() - start) / 60
        page = f"{finding.markdown(f'{name}.png')}\n\n{origin(options.seeds, minutes)}\n"
        (options.output / f"{name}.md").write_text(page)
        figure = Figure(figsize=finding.size, layout="constrained")
        finding.draw(figure)
        figure.savefig(options.output / f"{name}.png", dpi=110)
        print(page)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How well rates are stabilised.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--quick", action="store_true", help="one seed, short runs: the figures mean nothing")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder")
    options = parser.parse_args()
    if options.quick:
        options.seeds = options.seeds[:1]
    return options


def origin(seeds: Sequence[int], minutes: float) -> str:
    return (
        f"Written by `python tests/benchmarks/stabilisation` in {minutes:.1f} minutes: seeds "
        f"{', '.join(map(str, seeds))}, torch {torch.__version__}. ± is the sample standard deviation over "
        "seeds."
    )


if __name__ == "__main__":
    main()
