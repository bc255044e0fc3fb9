"""The full-precision side: the base pipeline, the adapter, and the arms f0 and f1."""

from qcheck.model import quiet  # before any library that talks is imported

__all__ = ["quiet"]
