"""Inputs with labels, in two parts."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

__all__ = ["Data", "batches", "load"]


class Data(NamedTuple):
    """Inputs ``[samples, ...]``, and their labels."""

    train_x: Tensor
    test_x: Tensor
    train_y: Tensor
    test_y: Tensor


def load() -> Data:
    """scikit-learn's digits: images ``[samples, 1, 8, 8]`` from 0 to 1."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(x, torch.tensor(labels), test_size=1 / 3, random_state=0, stratify=labels)
    return Data(*parts)


def batches(x: Tensor, rounds: int, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random samples for some rounds."""
    return x[torch.randint(len(x), (rounds, size), generator=generator)].unbind()
