"""Monitoring: what is seen of the cells, as figures, tables, histories and pictures. It only looks."""

from .history import RateHistory
from .plots import plot_rates, plot_summary
from .reports import Reports
from .table import Table
from .watch import Watch

__all__ = ["RateHistory", "Reports", "Table", "Watch", "plot_rates", "plot_summary"]
