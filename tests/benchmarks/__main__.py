"""Prints the tables of speed, in Markdown.

python -m tests.benchmarks                  # all of them, some minutes
python -m tests.benchmarks shown update     # some
python -m tests.benchmarks --device cuda    # on a GPU
"""

import argparse

import torch

from .tables import TABLES, machine


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed, measured side by side.")
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="all by default")
    parser.add_argument("--device", default="cpu", help="where the models run; cpu by default")
    args = parser.parse_args()
    names = args.tables or TABLES
    torch.set_default_device(args.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(machine(), end="\n\n")
    for name in names:
        print(TABLES[name](), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
