"""The adapter's effect and the error of quantization, on outputs at the latents of the reference f1.

E1 = q1 - f1, E0 = q0 - f0, Df = f1 - f0, Dq = q1 - q0. Sums over strata count each of them alike: inner products are
divided by the mean |Df|^2 there, so that epsilon, v and flow outputs are comparable. (The solver's own coefficients
would give the first of 20 steps of an epsilon model most of the sum, and later steps correct its error: docs/zoo.md.) A
calibrated adapter also corrects the base's error, which is no effect of its own: for it Dq = q1 - f0, so that a perfect
one has survival 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arithmetic import Rows, dot, pseudo_values


@dataclass(frozen=True)
class Energies:
    """Inner products over the latent, all [n, T] float64: signal powers, effects and errors at each stratum."""

    f1: np.ndarray
    f0: np.ndarray
    effect: np.ndarray
    kept: np.ndarray
    error1: np.ndarray
    error0: np.ndarray


def energies(f0: Rows, f1: Rows, q0: Rows, q1: Rows, calibrated: bool = False) -> Energies:
    """Reduce four arms of guided outputs, n of [T, ...], to scalars, one probe in memory at a time."""
    rows = []
    for arrays in zip(f0, f1, q0, q1):
        a0, a1, b0, b1 = (np.asarray(x, np.float64).reshape(len(x), -1) for x in arrays)
        effect, quantized_effect = a1 - a0, b1 - (a0 if calibrated else b0)
        rows.append(
            (
                dot(a1, a1),
                dot(a0, a0),
                dot(effect, effect),
                dot(quantized_effect, effect),
                dot(b1 - a1, b1 - a1),
                dot(b0 - a0, b0 - a0),
            )
        )
    return Energies(*(np.stack(column) for column in zip(*rows)))


def evenly(e: Energies) -> np.ndarray:
    """Weights [T] by which every stratum counts alike: 1 / mean |Df|^2, and 0 where the adapter does nothing."""
    sizes = e.effect.mean(0)
    weights: np.ndarray = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return weights


def survival(e: Energies) -> np.ndarray:
    """S [n] = sum <Dq, Df> / sum |Df|^2: 1 is intact, 0 erased, above 1 over-applied, negative reversed."""
    weights = evenly(e)
    ratio: np.ndarray = (e.kept * weights).sum(1) / (e.effect * weights).sum(1)
    return ratio


def awake(e: Energies) -> np.ndarray:
    """The indices of the strata at which the adapter does anything."""
    found: np.ndarray = np.flatnonzero(e.effect.sum(0) != 0)
    return found


def stratum_survival(e: Energies) -> np.ndarray:
    """Survival at every stratum where the adapter does anything, of the sums over probes, as pseudo-values [n, k]."""
    places = awake(e)
    kept, effects = e.kept[:, places], e.effect[:, places]
    return pseudo_values(lambda rows: kept[rows].sum(0) / effects[rows].sum(0), len(kept))


def bad_probes(e: Energies, low: float, high: float) -> list[bool]:
    """Of each probe, whether its survival is outside [low, high] or not finite: the tail that a mean hides."""
    finite = np.isfinite(e.error0).all(1) & np.isfinite(e.error1).all(1)
    return [not (sound and low <= value <= high) for sound, value in zip(finite, survival(e))]
