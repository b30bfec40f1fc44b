"""Spikes to rates: what a neuron returns, the hook that reads it, the estimators."""

from .estimator import RateEstimator
from .hook import SpikeHook, SpikeListener
from .neurons import (
    all_neurons,
    check_neuron,
    is_neuron,
    one_step,
    reset_membranes,
    spikes_of,
    threshold_name,
    threshold_without_reset,
)
from .presynaptic import PresynapticHook
from .rates import CumulativeRate, ExponentialRate, RecentRate, WindowedRate

__all__ = [
    "CumulativeRate",
    "ExponentialRate",
    "PresynapticHook",
    "RateEstimator",
    "RecentRate",
    "SpikeHook",
    "SpikeListener",
    "WindowedRate",
    "all_neurons",
    "check_neuron",
    "is_neuron",
    "one_step",
    "reset_membranes",
    "spikes_of",
    "threshold_name",
    "threshold_without_reset",
]
