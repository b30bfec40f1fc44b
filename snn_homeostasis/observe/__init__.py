"""Spikes to rates: what a neuron returns, the hook that reads it, the estimators."""
