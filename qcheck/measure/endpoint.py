"""Where free runs end: accumulated error of the final latents, and whether the reference itself is sound."""

from collections.abc import Iterable

import numpy as np

from qcheck.measure.sample import Sample, decibels

Rows = Iterable[np.ndarray]


def relative(final: Rows, against: Rows) -> np.ndarray:
    """|x_q - x_f| / |x_f| [n] of final latents, n of [C, h, w]."""
    norms = [
        (np.linalg.norm(np.float64(q) - f), np.linalg.norm(np.float64(f))) for q, f in zip(final, against, strict=True)
    ]
    return np.array([error / size if size else np.nan for error, size in norms])


def samples(f0: Rows, f1: Rows, q0: Rows, q1: Rows, floor: float) -> list[Sample]:
    """endpoint_error of both arms, and of the adapted beside the base arm's own in dB.

    Errors below ``floor`` (relative, what the compute type errs by itself) count as the floor: both below is 0 dB.
    """
    base, adapted = relative(q0, f0), relative(q1, f1)
    least = max(floor, 1e-6)
    beside = 2 * decibels(np.maximum(adapted, least), np.maximum(base, least))
    return [
        Sample("endpoint_error", "base", "ratio", base),
        Sample("endpoint_error", "adapted", "ratio", adapted),
        Sample("endpoint_error", "both", "dB over base", beside),
    ]


def reference_health(f0: Rows, f1: Rows) -> list[Sample]:
    """Deviation of f1's final latents beside f0's in dB: strongly negative = collapsed, positive = saturated."""
    deviation = [np.asarray([np.float64(x).std() for x in finals]) for finals in (f1, f0)]
    return [Sample("reference_deviation", "adapted", "dB", 2 * decibels(deviation[0], deviation[1]))]
