"""Ratios measured side by side; run them with ``python -m pytest -o addopts= tests/benchmarks``."""
