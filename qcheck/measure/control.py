"""Controls: is the instrument sound, and did the quantizer do anything?"""

from collections.abc import Iterable

import numpy as np

from qcheck.measure.effect import Energies
from qcheck.measure.sample import decibels
from qcheck.result.measurement import Measurement
from qcheck.spec.arm import Arm


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


_SAME = 1e-10  # of the output's power, 100 dB: float32 noise, far below what any format leaves


def noop(e: Energies) -> list[Measurement]:
    """noop_control: share of probes on which an arm's quantized output is the full-precision one at every stratum.

    1 says that nothing was quantized, and then everything else would pass. What is not finite is not the same.
    """
    arms: tuple[tuple[Arm, np.ndarray, np.ndarray], ...] = (("base", e.error0, e.f0), ("adapted", e.error1, e.f1))
    found = []
    for arm, error, signal in arms:
        share = float((error <= _SAME * signal).all(1).mean())
        found.append(Measurement(name="noop_control", arm=arm, unit="ratio", value=share, low=share, high=share))
    return found
