"""Measurements on traces: value, unit, interval and place. They depend on no verdict and no model.

A measurement is one function, registered under its name in data/measurements.toml; importing this package registers
every one.
"""

from qcheck.measure import (
    classifier,
    control,
    distribution,
    effect,
    endpoint,
    lattice,
    picture,
    spectrum,
    trajectory,
)

__all__ = [
    "classifier",
    "control",
    "distribution",
    "effect",
    "endpoint",
    "lattice",
    "picture",
    "spectrum",
    "trajectory",
]
