"""Layers with one delay per synapse."""
