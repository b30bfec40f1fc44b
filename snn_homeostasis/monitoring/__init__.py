"""Monitoring: the rates of the cells as figures, tables, histories and pictures. It changes nothing."""

from .activity import EVERY_STEP
from .history import RateHistory
from .plots import plot_rates, plot_summary
from .reports import Reports
from .table import Table
from .watch import Watch

__all__ = ["EVERY_STEP", "RateHistory", "Reports", "Table", "Watch", "plot_rates", "plot_summary"]
