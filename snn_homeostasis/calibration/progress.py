"""A bar that shows how far a calibration is, where tqdm is installed."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progressing"]


@contextmanager
def progressing(total: int, is_wanted: bool) -> Iterator[Callable[[], object]]:
    """Yields what to call after each of ``total`` parts; it does nothing without tqdm."""
    try:
        tqdm = importlib.import_module("tqdm").tqdm if is_wanted else None
    except ImportError:
        tqdm = None
    if tqdm is None:
        yield lambda: None
        return
    with tqdm(total=total, desc="calibrating", unit="neuron", leave=False) as bar:
        yield bar.update
