"""How free runs go: flicker between denoising steps, detours, and how fast two runs part."""

from collections.abc import Iterable

import numpy as np

from qcheck.measure.sample import BROKEN, Sample

Rows = Iterable[np.ndarray]
Way = tuple[Rows, Rows]


@BROKEN
def jitter(turns: Rows) -> np.ndarray:
    """Mean over a run of 1 - cos(output, next output), [n]; a run of one call has no turn, hence none: 0."""
    return np.array([np.mean(t) if len(t) else 0.0 for t in turns])


@BROKEN
def straightness(chord: Rows, lengths: Rows) -> np.ndarray:
    """|x_T - x_0| / sum |dx| [n]: 1 is a straight way."""
    return np.array([float(c[0]) / steps.sum() for c, steps in zip(chord, lengths, strict=True)])


def straightness_samples(f0: Way, f1: Way, q0: Way, q1: Way) -> list[Sample]:
    """Change of straightness by quantization in both arms; each argument is chord and lengths of an arm's runs."""
    return [
        Sample("straightness", "base", "ratio", straightness(*q0) - straightness(*f0)),
        Sample("straightness", "adapted", "ratio", straightness(*q1) - straightness(*f1)),
    ]


@BROKEN
def divergence(apart: Rows, places: np.ndarray) -> np.ndarray:
    """Least-squares slope of ln(|x_q - x_f| / |x_f|) over the step's number, per step, [n].

    ``apart`` is n of [T], at the steps ``places`` [T]; a step at which the runs have not parted yet says nothing. 0
    where fewer than two are left.
    """
    slopes = []
    for distances in apart:
        parted = np.asarray(distances) != 0
        if parted.sum() < 2:
            slopes.append(0.0)
            continue
        steps = places[parted] - places[parted].mean()
        slopes.append(float((steps * np.log(distances[parted])).sum() / np.square(steps).sum()))
    return np.array(slopes)


@BROKEN
def jitter_samples(f0: Rows, f1: Rows, q0: Rows, q1: Rows) -> list[Sample]:
    """step_jitter: change of each arm's jitter by quantization, and of the adapted beside the base's.

    hidden_jitter: what the adapter adds at full precision and no longer adds once quantized, the smaller of the two,
    so that it is positive only where f1 has a defect that q1 lacks.
    """
    a0, a1, b0, b1 = (jitter(turns) for turns in (f0, f1, q0, q1))
    unit = "1 - cos"
    return [
        Sample("step_jitter", "base", unit, b0 - a0, _worst(profile(q0, f0))),
        Sample("step_jitter", "adapted", unit, b1 - a1, _worst(profile(q1, f1))),
        Sample("step_jitter", "both", unit, (b1 - a1) - (b0 - a0)),
        Sample("hidden_jitter", "both", unit, np.minimum(a1 - a0, (a1 - a0) - (b1 - b0))),
    ]


def _worst(changes: list[float]) -> tuple[str, ...]:
    """The step after which outputs turn the most, in words."""
    return (f"step {int(np.argmax(changes)) + 1}",) if changes else ()


@BROKEN
def profile(quantized: Rows, full: Rows) -> list[float]:
    """Mean change of 1 - cos at every step of the run, [calls - 1], for the report."""
    turns = [np.asarray(q) - np.asarray(f) for q, f in zip(quantized, full, strict=True)]
    return [float(x) for x in np.mean(turns, 0)]
