"""Controls: whether the measurement pipeline is sound, and whether the quantizer changed anything."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from qcheck.device.arithmetic import decibels
from qcheck.measure.effect import Energies
from qcheck.measure.registry import measures
from qcheck.measure.sample import EXACT
from qcheck.result.measurement import Measurement
from qcheck.spec import measurement
from qcheck.spec.arm import Arm, Side


def noise(outputs: Iterable[np.ndarray], against: Iterable[np.ndarray]) -> np.ndarray:
    """Relative error power |a - b|^2 / |b|^2 [T] over probes, of guided outputs, n of [T, C, h, w]."""
    error = signal = np.zeros(1)
    for output, reference in zip(outputs, against, strict=True):
        error = error + np.square(np.float64(output) - reference).sum((1, 2, 3))
        signal = signal + np.square(np.float64(reference)).sum((1, 2, 3))
    relative: np.ndarray = error / signal
    return relative


@dataclass(frozen=True)
class Control:
    """A run of f1 another way: its relative error power [K] at K of the strata, their indices and timesteps."""

    name: str
    error: np.ndarray
    places: tuple[int, ...]
    timesteps: tuple[float, ...]


def judged_error(e: Energies) -> np.ndarray:
    """Relative power |E1|^2 / |f1|^2 [T] of the error that is judged, over probes."""
    relative: np.ndarray = e.error1.sum(0) / e.f1.sum(0)
    return relative


@measures("export_control", when="control")
@measures("compute_control", when="control")
def resolve(control: Control, judged: np.ndarray, least: float, margin: float) -> tuple[Measurement, float]:
    """A control in dB, signal over its error, and the number it has to reach, at the stratum where it is worst off.

    That is ``least``, or, where a stratum does not reach it, ``margin`` dB under the ``judged`` relative error power
    [T]: an adapter that amplifies rounding is judged as long as its quantization error is far above that. The control
    is deterministic, so the bounds equal the value.
    """
    values = np.minimum(decibels(np.ones_like(control.error), control.error), EXACT)
    under = decibels(np.ones(len(control.places)), judged[list(control.places)]) + margin
    reached = values >= least
    required = np.where(reached | np.isnan(under), least, np.clip(under, 0, least))
    room = np.where(np.isfinite(values), values - required, -np.inf)
    worst = int(np.argmin(room if reached.all() else np.where(reached, np.inf, room)))
    value, unit = float(values[worst]), measurement.find(control.name).of("adapted").unit
    where = f"timestep {control.timesteps[worst]:g}"
    measured = Measurement(name=control.name, arm="adapted", unit=unit, value=value, low=value, high=value, where=where)
    return measured, math.floor(10 * float(required[worst])) / 10


@measures("weakened_survival", when="control")
def weakened_survival(survival: np.ndarray | None, share: float) -> Measurement:
    """Mean survival [n] of the adapter at a ``share`` of its weight, at full precision; the bounds equal the value.

    Not measured where that share was not run.
    """
    unit, where = measurement.find("weakened_survival").unit, f"{share:g} of the weight"
    if survival is None:
        return Measurement(name="weakened_survival", arm="adapted", unit=unit, value=None, where=where)
    value = float(survival.mean())
    return Measurement(
        name="weakened_survival", arm="adapted", unit=unit, value=value, low=value, high=value, where=where
    )


@measures("another_seed", when="control")
def another_seed(side: Side, distance: float) -> Measurement:
    """How far another seed moves an arm's final latents at full precision; the bounds equal the value.

    Not measured where that run is not finite.
    """
    unit = measurement.find("another_seed").unit
    if not math.isfinite(distance):
        reason = "the run with other seeds is not finite"
        return Measurement(name="another_seed", arm=side, unit=unit, value=None, where=reason)
    return Measurement(name="another_seed", arm=side, unit=unit, value=distance, low=distance, high=distance)


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
