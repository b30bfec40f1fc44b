"""Random cases against plain loops in float64: `python -m tests.fuzz --cases 500 --seed 0`."""
