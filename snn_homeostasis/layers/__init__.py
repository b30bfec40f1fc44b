"""Layers: the receptive view of each kind, and its parameters."""
