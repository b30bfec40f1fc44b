"""Prints what a calibration reaches, and what training makes of it, in Markdown.

python -m tests.benchmarks.calibration                 # all of it, an hour or two
python -m tests.benchmarks.calibration rates           # the rates alone, some minutes
python -m tests.benchmarks.calibration accuracy --seeds 0 1 --only "12 layers"
"""

import argparse

import torch

from ..tables import machine
from .accuracy import accuracy_table
from .rates import rates_table


def main() -> None:
    parser = argparse.ArgumentParser(description="What a calibration reaches.")
    parser.add_argument("tables", nargs="*", default=["rates", "accuracy"], help="rates, accuracy or both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", default="", help="rows of the accuracy table whose name has this in it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), end="\n\n")
    if "rates" in args.tables:
        print(rates_table(args.seeds), end="\n\n", flush=True)
    if "accuracy" in args.tables:
        print(accuracy_table(args.seeds, args.only), flush=True)


if __name__ == "__main__":
    main()
