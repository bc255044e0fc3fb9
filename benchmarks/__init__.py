"""Measurements of qcheck itself; each module says what it measures and how it is run."""
