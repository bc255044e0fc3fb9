"""What the adapter does and what quantization does to it, on teacher-forced outputs.

E1 = q1 - f1, E0 = q0 - f0, Df = f1 - f0, Dq = q1 - q0; every sum over strata is weighted with the square of the
coefficient by which the solver moves the sample for that output. A calibrated adapter takes back of the base's error
too, which is no effect of its own: there Dq = q1 - f0, so that a perfect one has survival 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qcheck.measure.sample import Sample, decibels
from qcheck.spec.arm import Arm

Rows = Iterable[np.ndarray]


@dataclass(frozen=True)
class Energies:
    """Inner products over the latent, all [n, T] float64: signal powers, effects and errors at each stratum."""

    f1: np.ndarray
    f0: np.ndarray
    effect: np.ndarray
    kept: np.ndarray
    error1: np.ndarray
    error0: np.ndarray


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.einsum("tchw,tchw->t", a, b)
    return found


def energies(f0: Rows, f1: Rows, q0: Rows, q1: Rows, calibrated: bool = False) -> Energies:
    """Reduce four arms of guided outputs, n of [T, C, h, w], to scalars, one probe in memory at a time."""
    rows = []
    for arrays in zip(f0, f1, q0, q1, strict=True):
        a0, a1, b0, b1 = (np.asarray(x, np.float64) for x in arrays)
        effect, kept = a1 - a0, b1 - (a0 if calibrated else b0)
        rows.append(
            (
                _dot(a1, a1),
                _dot(a0, a0),
                _dot(effect, effect),
                _dot(kept, effect),
                _dot(b1 - a1, b1 - a1),
                _dot(b0 - a0, b0 - a0),
            )
        )
    return Energies(*(np.stack(column) for column in zip(*rows, strict=True)))


def survival(e: Energies, weights: np.ndarray) -> np.ndarray:
    """S [n] = sum <Dq, Df> / sum |Df|^2: 1 is intact, 0 erased, above 1 over-applied, negative reversed."""
    found: np.ndarray = (e.kept * weights).sum(1) / (e.effect * weights).sum(1)
    return found


def effect_to_error(e: Energies, weights: np.ndarray) -> np.ndarray:
    """R [n] = 10 log10(sum |Df|^2 / sum |E1|^2), dB."""
    return decibels((e.effect * weights).sum(1), (e.error1 * weights).sum(1))


def excess_error(e: Energies, weights: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """G [n] = 10 log10(sum |E1|^2 / sum |E0|^2), dB; errors below ``floor`` [T] (relative power) count as the floor.

    Two errors that arithmetic in the compute type would make anyway cannot be told apart: G is then 0.
    """
    least1, least0 = (e.f1 * floor * weights).sum(1), (e.f0 * floor * weights).sum(1)
    return decibels(np.maximum((e.error1 * weights).sum(1), least1), np.maximum((e.error0 * weights).sum(1), least0))


def stratum_excess(e: Energies, floor: np.ndarray) -> np.ndarray:
    """G at every stratum [n, T], dB, with the floor of ``excess_error``: the sum hides a fault of one timestep."""
    return decibels(np.maximum(e.error1, e.f1 * floor), np.maximum(e.error0, e.f0 * floor))


def effect_size(f0: Rows, f1: Rows, weights: np.ndarray) -> np.ndarray:
    """|Df| / |f1| [n] over all strata, a ratio: how loudly the adapter speaks at all."""
    sizes = []
    for a0, a1 in zip(f0, f1, strict=True):
        change, signal = np.asarray(a1, np.float64) - a0, np.asarray(a1, np.float64)
        sizes.append(np.sqrt((_dot(change, change) * weights).sum() / (_dot(signal, signal) * weights).sum()))
    return np.array(sizes)


def _stratum_sqnr(arm: Arm, signal: np.ndarray, error: np.ndarray, timesteps: Sequence[float]) -> Sample:
    """SQNR of every probe at every stratum [n, T], dB; the lowest stratum counts."""
    values = np.minimum(decibels(signal, error), _EXACT)
    return Sample("stratum_sqnr", arm, "dB", values, _places(timesteps))


def _places(timesteps: Sequence[float]) -> tuple[str, ...]:
    return tuple(f"timestep {t:g}" for t in timesteps)


_EXACT = 200.0  # dB: equal in every bit of float32, written as a number so that it can be averaged


def samples(e: Energies, weights: np.ndarray, floor: np.ndarray, timesteps: Sequence[float]) -> list[Sample]:
    """All samples of this family. ``weights`` and ``floor`` are [T]."""
    return [
        Sample("effect_survival", "adapted", "ratio", survival(e, weights)),
        Sample("effect_to_error", "adapted", "dB", np.minimum(effect_to_error(e, weights), _EXACT)),
        Sample("excess_error", "adapted", "dB", excess_error(e, weights, floor)),
        Sample("worst_stratum", "adapted", "dB", stratum_excess(e, floor), _places(timesteps), "highest"),
        _stratum_sqnr("base", e.f0, e.error0, timesteps),
        _stratum_sqnr("adapted", e.f1, e.error1, timesteps),
    ]


def stratum_profile(signal: np.ndarray, error: np.ndarray) -> list[float]:
    """Mean SQNR [T] in dB at each stratum, for the report."""
    return [float(x) for x in np.minimum(decibels(signal, error), _EXACT).mean(0)]


def bad_probes(e: Energies, weights: np.ndarray, low: float, high: float) -> list[int]:
    """Probes whose survival is outside [low, high] or not finite: the tail that a mean hides."""
    values = survival(e, weights)
    finite = np.isfinite(e.error0).all(1) & np.isfinite(e.error1).all(1)
    return [i for i, s in enumerate(values) if not (finite[i] and low <= s <= high)]
