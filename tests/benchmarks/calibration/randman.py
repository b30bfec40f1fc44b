"""Where rates are not the problem: test accuracy on classes that differ in spike times alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from snn_homeostasis import Band

from ..stabilisation import digits
from ..stabilisation.report import mean_and_spread
from ..tables import table
from . import manifolds
from .accuracy import IMAGES, Way
from .manifolds import spike_trains

__all__ = ["randman_table"]

EPOCHS, DEPTHS = 8, (1, 2)

calibrate = functools.partial(digits.calibrate, present=spike_trains)
ONE_SPIKE = 1 / manifolds.STEPS  # in a sequence, as each input has
ANY_RATE = Band(None, 1.0)  # with it `calibrate` has no reason to move a bias
WAYS = {
    "plain": Way(),
    "two lines": Way(None, digits.two_lines),
    "rates": Way(functools.partial(calibrate, scale=None)),
    "weights": Way(functools.partial(calibrate, target=ANY_RATE, scale=1.0)),
    "weights and rates": Way(functools.partial(calibrate, scale=1.0)),
    "weights and rates, two lines": Way(functools.partial(calibrate, scale=1.0), digits.two_lines),
    "two lines, one spike": Way(None, functools.partial(digits.two_lines, target=ONE_SPIKE)),
    "weights and rates, one spike": Way(functools.partial(calibrate, target=ONE_SPIKE, scale=1.0)),
}


def trained(way: Way, depth: int, seed: int, quick: bool = False) -> float:
    """The accuracy on the test samples, in per cent."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = manifolds.load(seed, 20, 10) if quick else manifolds.load(seed)
    net = digits.dense(depth, digits.WIDTH, manifolds.CLASSES, inputs=manifolds.INPUTS)
    if way.before is not None:
        picked = torch.randperm(len(data.train_x), generator=generator)[:IMAGES]
        way.before(net, data.train_x[picked])
    digits.train(net, data, 1 if quick else EPOCHS, generator, way.rule, present=spike_trains)
    output = digits.judged(net, data.test_x, spike_trains)[-1]
    return 100 * digits.accuracy(output, data.test_y)


def randman_table(seeds: Sequence[int], quick: bool) -> str:
    """Mean and sample standard deviation over the seeds; each has data of its own."""
    depths = DEPTHS[:1] if quick else DEPTHS
    rows = []
    for name, way in WAYS.items():
        found = [[trained(way, depth, seed, quick) for seed in seeds] for depth in depths]
        rows.append([name, *(mean_and_spread(each, ".1f") for each in found)])
        print(rows[-1], flush=True)
    return table(["treatment", *(f"{depth} hidden: accuracy, %" for depth in depths)], rows)
