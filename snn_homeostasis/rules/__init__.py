"""The rules: one short class each, with a `drive`."""

from .linear import LinearHomeostasis
from .scaling import SynapticScaling

__all__ = ["LinearHomeostasis", "SynapticScaling"]
