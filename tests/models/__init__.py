"""Models as users write them, each with its true cells, or what has to be said of it, by hand."""

from . import branching, convolutional, dense, normalised, recurrent, refused, sequences, ways  # noqa: F401
from .registry import BATCH, STEPS, ZOO, Animal, Loop, leaky

__all__ = ["BATCH", "STEPS", "ZOO", "Animal", "Loop", "leaky"]
