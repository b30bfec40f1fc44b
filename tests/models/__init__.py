"""Models as users write them. Each states its cells, or its problems, by hand."""

from . import (  # noqa: F401
    branching,
    convolutional,
    dense,
    normalised,
    policies,
    recurrent,
    refused,
    sequences,
    signals,
    vision,
    ways,
)
from .registry import BATCH, MODEL_CASES, STEPS, Loop, ModelCase, leaky

__all__ = ["BATCH", "MODEL_CASES", "STEPS", "Loop", "ModelCase", "leaky"]
