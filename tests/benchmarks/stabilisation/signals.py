"""mnist1d: ten shapes as signals of 40 samples, shifted, scaled, sheared and with noise; made offline."""

import functools
import importlib.util

import torch
from digits import Data

HAS_MNIST1D = importlib.util.find_spec("mnist1d") is not None


@functools.cache
def load() -> Data:
    """Signals ``[samples, 40]`` with mean 0 and standard deviation 1 over all, and their labels."""
    from mnist1d.data import make_dataset  # an extra

    made = make_dataset()
    names = ("x", "x_test", "y", "y_test")
    train_x, test_x, train_y, test_y = (torch.tensor(made[name]) for name in names)
    return Data(train_x.float(), test_x.float(), train_y, test_y)
