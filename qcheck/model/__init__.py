"""The full-precision side: the base pipeline, the adapter, and the arms f0 and f1."""

from qcheck.model import quiet  # imported first: it silences libraries that log while they are imported

__all__ = ["quiet"]
