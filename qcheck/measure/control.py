"""Controls: whether the measurement pipeline is sound, and whether the quantizer changed anything."""

from collections.abc import Iterable, Sequence

import numpy as np

from qcheck.measure.effect import Energies
from qcheck.measure.registry import measures
from qcheck.measure.sample import EXACT, decibels
from qcheck.result.measurement import Measurement
from qcheck.spec import measurement
from qcheck.spec.arm import Arm


def noise(outputs: Iterable[np.ndarray], against: Iterable[np.ndarray]) -> np.ndarray:
    """Relative error power |a - b|^2 / |b|^2 [T] over probes, of guided outputs, n of [T, C, h, w]."""
    error = signal = np.zeros(1)
    for output, reference in zip(outputs, against, strict=True):
        error = error + np.square(np.float64(output) - reference).sum((1, 2, 3))
        signal = signal + np.square(np.float64(reference)).sum((1, 2, 3))
    relative: np.ndarray = error / signal
    return relative


@measures("export_control", when="control")
def export_control(relative: np.ndarray, timesteps: Sequence[float]) -> Measurement:
    """The exported reference against the reference: the lowest SQNR over strata, from error powers [T]."""
    return _lowest("export_control", relative, timesteps)


@measures("compute_control", when="control")
def compute_control(relative: np.ndarray, timesteps: Sequence[float]) -> Measurement:
    """The reference in the compute type against the reference: the lowest SQNR over strata, from error powers [T]."""
    return _lowest("compute_control", relative, timesteps)


def _lowest(name: str, relative: np.ndarray, timesteps: Sequence[float]) -> Measurement:
    """The lowest SQNR in dB; it is deterministic, so the bounds equal the value."""
    values = np.minimum(decibels(np.ones_like(relative), relative), EXACT)
    worst = int(np.argmin(np.where(np.isfinite(values), values, -np.inf)))
    value, unit = float(values[worst]), measurement.find(name).of("adapted").unit
    where = f"timestep {timesteps[worst]:g}"
    return Measurement(name=name, arm="adapted", unit=unit, value=value, low=value, high=value, where=where)


_SAME = 1e-10  # of the output's power, 100 dB: float32 rounding, far below the error of any format


@measures("noop_control", when="control")
def noop(e: Energies) -> list[Measurement]:
    """Share of probes on which an arm's quantized output equals the full-precision one at every stratum.

    1 means that nothing was quantized, and then every other gate would pass. Values that are not finite are not equal.
    """
    arms: tuple[tuple[Arm, np.ndarray, np.ndarray], ...] = (("base", e.error0, e.f0), ("adapted", e.error1, e.f1))
    measurements, unit = [], measurement.find("noop_control").unit
    for arm, error, signal in arms:
        share = float((error <= _SAME * signal).all(1).mean())
        measurements.append(Measurement(name="noop_control", arm=arm, unit=unit, value=share, low=share, high=share))
    return measurements
