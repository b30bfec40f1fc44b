"""Plays random cases against plain loops, and prints those that fail.

python -m tests.fuzz --cases 500 --seed 0
python -m tests.fuzz --cases 1 --seed 1234    # the case 1234 alone
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the modules that all tests share

from fuzz.playing import failure_of


def main() -> int:
    parser = argparse.ArgumentParser(description="Random cases against plain loops in float64.")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(arguments.seed, arguments.seed + arguments.cases)
    failures = [failure for seed in seeds if (failure := failure_of(seed))]
    print(*failures, sep="\n\n", end="\n\n" if failures else "")
    print(f"{len(failures)} of {len(seeds)} cases failed.")
    return len(failures) > 0


if __name__ == "__main__":
    sys.exit(main())
