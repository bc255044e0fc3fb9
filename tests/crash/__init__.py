"""Faults at every call that writes: a preloaded library makes one fail, and what is left must be whole."""
