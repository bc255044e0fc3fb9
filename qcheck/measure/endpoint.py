"""Final latents of each arm's own run: their accumulated error, and whether the reference itself is sound."""

import numpy as np

from qcheck.device.arithmetic import decibels, pseudo_values, relative
from qcheck.measure.registry import Rows, View, measures
from qcheck.measure.sample import Sample


@measures("endpoint_error")
def endpoint_error(view: View) -> list[Sample]:
    """|x_q - x_f| / |x_f| of both arms, and the ratio of the adapted arm's to the base's in dB.

    In that ratio errors below the rounding of the compute type count as that rounding: 0 dB where both are below.
    """
    base, adapted = relative(view.q0.finals, view.f0.finals), relative(view.q1.finals, view.f1.finals)
    least = max(float(np.sqrt(view.floor.max())), 1e-6)
    beside = 2 * decibels(np.maximum(adapted, least), np.maximum(base, least))
    return [
        Sample("endpoint_error", "base", base),
        Sample("endpoint_error", "adapted", adapted),
        Sample("endpoint_error", "both", beside),
    ]


@measures("reference_deviation")
def reference_deviation(view: View) -> list[Sample]:
    """Whether the full-precision adapter itself is sound."""
    return reference_health(view.f0.finals, view.f1.finals)


_NATURAL = 1.0  # variance that latents are scaled to before a model learns from them (Rombach et al. 2022, appendix G)


def reference_health(f0: Rows, f1: Rows) -> list[Sample]:
    """How far the variance of f1's final latents lies beyond both the base's and that of real pictures, in dB.

    0 between the two, positive above both = saturated, negative below both = collapsed: a base without guidance may be
    paler than any picture, one with much of it louder. It is that of all probes together, as pseudo-values [n]: one
    flat picture of the base is no saturated adapter. All probes say which of the three it is beside.
    """
    adapted, base = (np.asarray([np.float64(x).var() for x in finals]) for finals in (f1, f0))
    natural = np.full(len(base), _NATURAL)
    between = sorted((base, natural, adapted), key=lambda spreads: float(spreads.mean()))[1]
    against = between if np.isfinite(base).all() else base
    values = pseudo_values(lambda i: decibels(adapted[i].mean(), against[i].mean()), len(base))
    return [Sample("reference_deviation", "adapted", values)]
