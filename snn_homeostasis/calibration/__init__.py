"""Calibration: every cell at its target before training, in a handful of forwards."""

from .calibrating import Calibrating
from .report import CalibratedCell, CalibrationReport

__all__ = ["CalibratedCell", "Calibrating", "CalibrationReport"]
