"""Layers with one trainable delay for each weight, and their place in a cell.

`layers` holds the layers and `base` what they share. `interpolation` turns weights and delays into
a kernel over time, and `kernels` keeps it from step to step. `connections` shows the delays to a cell.
"""

from .base import DelayedLayer
from .connections import delay_channels, is_delay, is_trainable_delay
from .layers import DelayedConv2d, DelayedLinear

__all__ = [
    "DelayedConv2d",
    "DelayedLayer",
    "DelayedLinear",
    "delay_channels",
    "is_delay",
    "is_trainable_delay",
]
