"""Controls: is the instrument sound? One arm against itself through another runner."""

from collections.abc import Iterable

import numpy as np

from qcheck.measurement import Measurement
from qcheck.metric.statistics import decibels


def noise(outputs: Iterable[np.ndarray], against: Iterable[np.ndarray]) -> np.ndarray:
    """Relative error power |a - b|^2 / |b|^2 [T] over probes, of guided outputs, n of [T, C, h, w]."""
    error = signal = np.zeros(1)
    for ours, theirs in zip(outputs, against, strict=True):
        error = error + np.square(np.float64(ours) - theirs).sum((1, 2, 3))
        signal = signal + np.square(np.float64(theirs)).sum((1, 2, 3))
    found: np.ndarray = error / signal
    return found


def measure(name: str, relative: np.ndarray, timesteps: tuple[float, ...]) -> Measurement:
    """The lowest SQNR over strata in dB of relative error powers [T]; deterministic, so the bounds are the value."""
    values = np.minimum(decibels(np.ones_like(relative), relative), 200.0)
    worst = int(np.argmin(np.where(np.isfinite(values), values, -np.inf)))
    value = float(values[worst])
    where = f"timestep {timesteps[worst]:g}"
    return Measurement(name=name, arm="adapted", unit="dB", value=value, low=value, high=value, where=where)
