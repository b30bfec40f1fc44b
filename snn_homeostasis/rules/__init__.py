"""The rules: one short class each, with a `drive`."""

from .linear import LinearHomeostasis

__all__ = ["LinearHomeostasis"]
