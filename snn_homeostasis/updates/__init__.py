"""Updates: slots, bounds, and the change of a parameter."""
