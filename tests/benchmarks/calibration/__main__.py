"""Prints what a calibration reaches, and what training makes of it, in Markdown.

python -m tests.benchmarks.calibration                 # all of it, some hours
python -m tests.benchmarks.calibration rates           # the rates alone, some minutes
python -m tests.benchmarks.calibration accuracy --seeds 0 1 --only "12 layers"
python -m tests.benchmarks.calibration randman --seeds 0 1 2
python -m tests.benchmarks.calibration --quick         # a glance: the figures mean nothing
"""

import argparse
import functools

import torch

from ..tables import machine
from .accuracy import accuracy_table
from .randman import randman_table
from .rates import rates_table


def main() -> None:
    options = parse()
    tables = {
        "rates": rates_table,
        "accuracy": functools.partial(accuracy_table, only=options.only),
        "randman": randman_table,
    }
    torch.set_num_threads(1)
    print(machine(), end="\n\n")
    for name in options.tables or tables:
        print(tables[name](options.seeds, quick=options.quick), end="\n\n", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a calibration reaches.")
    parser.add_argument(
        "tables", nargs="*", choices=["rates", "accuracy", "randman", []], help="all by default"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", default="", help="rows of the accuracy table whose name begins so")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, shallow nets")
    options = parser.parse_args()
    if options.quick:
        options.seeds = options.seeds[:1]
    return options


if __name__ == "__main__":
    main()
