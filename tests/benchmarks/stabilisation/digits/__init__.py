"""Shared by the experiments with networks: data, plain snntorch nets, their starts, spikes and training."""

from .data import Data, batches, load
from .nets import BETA, convolutional, dense, layers_of, neuron, neurons_of
from .spikes import STEPS, TARGET, constant, judged, rate_loss, rates_of, rates_over, silent
from .training import (
    CLASSES,
    LEARNING_RATE,
    WIDTH,
    Penalty,
    Rule,
    accuracy,
    calibrate,
    constant_plasticity,
    no_penalty,
    train,
    two_lines,
)

__all__ = [
    "BETA",
    "CLASSES",
    "LEARNING_RATE",
    "STEPS",
    "TARGET",
    "WIDTH",
    "Data",
    "Penalty",
    "Rule",
    "accuracy",
    "batches",
    "calibrate",
    "constant",
    "constant_plasticity",
    "convolutional",
    "dense",
    "judged",
    "layers_of",
    "load",
    "neuron",
    "neurons_of",
    "no_penalty",
    "rate_loss",
    "rates_of",
    "rates_over",
    "silent",
    "train",
    "two_lines",
]
