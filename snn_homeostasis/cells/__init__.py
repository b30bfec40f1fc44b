"""Cells: a layer with the neuron that it drives, and the settings of the rule for it."""

from .cell import Cell

__all__ = ["Cell"]
