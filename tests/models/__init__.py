"""Models as users write them. Each states its cells, or its problems, by hand."""

from . import branching, convolutional, dense, normalised, recurrent, refused, sequences, ways  # noqa: F401
from .registry import BATCH, MODEL_CASES, STEPS, Loop, ModelCase, leaky

__all__ = ["BATCH", "MODEL_CASES", "STEPS", "Loop", "ModelCase", "leaky"]
