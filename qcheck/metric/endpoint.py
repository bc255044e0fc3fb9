"""Where free runs end: accumulated error of the final latents, and whether the reference itself is sound."""

import numpy as np

from qcheck.measurement import Measurement
from qcheck.metric.statistics import decibels, summarize


def relative(final: np.ndarray, against: np.ndarray) -> np.ndarray:
    """|x_q - x_f| / |x_f| [n] of final latents [n, C, h, w]."""
    norms = [
        (np.linalg.norm(np.float64(q) - f), np.linalg.norm(np.float64(f))) for q, f in zip(final, against, strict=True)
    ]
    return np.array([error / size if size else np.nan for error, size in norms])


def measure(f0: np.ndarray, f1: np.ndarray, q0: np.ndarray, q1: np.ndarray, floor: float) -> list[Measurement]:
    """endpoint_error of both arms, and of the adapted beside the base arm's own in dB.

    Errors below ``floor`` (relative, what the compute type errs by itself) count as the floor: both below is 0 dB.
    """
    base, adapted = relative(q0, f0), relative(q1, f1)
    least = max(floor, 1e-6)
    beside = 2 * decibels(np.maximum(adapted, least), np.maximum(base, least))
    return [
        summarize("endpoint_error", "base", "ratio", base),
        summarize("endpoint_error", "adapted", "ratio", adapted),
        summarize("endpoint_error", "both", "dB over base", beside),
    ]


def reference_health(f0: np.ndarray, f1: np.ndarray) -> list[Measurement]:
    """Deviation of f1's final latents beside f0's in dB: strongly negative = collapsed, positive = saturated."""
    deviation = [np.asarray([np.float64(x).std() for x in finals]) for finals in (f1, f0)]
    return [summarize("reference_deviation", "adapted", "dB", 2 * decibels(deviation[0], deviation[1]))]
