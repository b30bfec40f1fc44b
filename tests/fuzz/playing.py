"""Plays a case by its number."""

import traceback
import warnings

import snntorch as snn
import torch

from fuzz.world import World
from snn_homeostasis import HomeostasisWarning

EVENTS = 12


def failure_of(seed: int) -> str | None:
    """Plays one case; returns what failed, what happened before, and how to see it again."""
    torch.set_default_dtype(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", HomeostasisWarning)
        world = None
        try:
            world = World(seed)
            world.play(EVENTS)
        except Exception as error:
            where = "".join(traceback.format_exception(error)[-2:])
            again = f"python -m tests.fuzz --cases 1 --seed {seed}"
            return f"Case {seed}: {error!r}\n{world}\n  again: {again}\n{where}"
        finally:
            snn.SpikingNeuron.instances.clear()
    return None
