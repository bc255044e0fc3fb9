"""The full-precision side: the base pipeline, the adapter, and the arms f0 and f1."""
