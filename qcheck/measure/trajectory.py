"""Trajectories of each arm's own run: jitter between denoising steps, straightness, and divergence of two runs."""

import numpy as np

from qcheck.measure.registry import Rows, Run, View, measures
from qcheck.measure.sample import BROKEN, Sample


@BROKEN
def jitter(turns: Rows) -> np.ndarray:
    """Mean over a run of 1 - cos(output, next output), [n]; 0 for a run of one call."""
    return np.array([np.mean(t) if len(t) else 0.0 for t in turns])


@BROKEN
def straightness(chord: Rows, lengths: Rows) -> np.ndarray:
    """|x_T - x_0| / sum |dx| [n]: 1 is a straight path."""
    return np.array([float(c[0]) / steps.sum() for c, steps in zip(chord, lengths, strict=True)])


@measures("straightness")
def straightness_of(view: View) -> list[Sample]:
    """Change of straightness by quantization in both arms."""

    def own(run: Run) -> np.ndarray:
        return straightness(run.chord, run.lengths)

    return [
        Sample("straightness", "base", own(view.q0) - own(view.f0)),
        Sample("straightness", "adapted", own(view.q1) - own(view.f1)),
    ]


@BROKEN
def divergence(apart: Rows, places: np.ndarray) -> np.ndarray:
    """Least-squares slope of ln(|x_q - x_f| / |x_f|) over the step's number, per step, [n].

    ``apart`` is n of [T], at the steps ``places`` [T]. Steps at which the runs are still equal are left out; 0 where
    fewer than two steps remain.
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


@measures("divergence_slope")
def divergence_slope(view: View) -> list[Sample]:
    """The rate at which the quantized adapted run diverges from the reference."""
    return [Sample("divergence_slope", "adapted", divergence(view.q1.apart, np.array(view.strata)))]


@BROKEN
def _jitters(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Jitter [n] of f0, f1, q0 and q1."""
    f0, f1, q0, q1 = (jitter(run.turns) for run in (view.f0, view.f1, view.q0, view.q1))
    return f0, f1, q0, q1


@measures("step_jitter")
@BROKEN
def step_jitter(view: View) -> list[Sample]:
    """Change of each arm's jitter by quantization, and the adapted arm's less the base's."""
    f0, f1, q0, q1 = view.once(_jitters)
    return [
        Sample("step_jitter", "base", q0 - f0, _worst(profile(view.q0.turns, view.f0.turns))),
        Sample("step_jitter", "adapted", q1 - f1, _worst(profile(view.q1.turns, view.f1.turns))),
        Sample("step_jitter", "both", (q1 - f1) - (q0 - f0)),
    ]


@measures("hidden_jitter")
@BROKEN
def hidden_jitter(view: View) -> list[Sample]:
    """The jitter that the adapter adds at full precision, or the part of it that quantization removes, if smaller.

    It is positive only where f1 has a defect that q1 lacks.
    """
    f0, f1, q0, q1 = view.once(_jitters)
    return [Sample("hidden_jitter", "both", np.minimum(f1 - f0, (f1 - f0) - (q1 - q0)))]


def _worst(changes: list[float]) -> tuple[str, ...]:
    """The step after which outputs turn the most, in words."""
    return (f"step {int(np.argmax(changes)) + 1}",) if changes else ()


@BROKEN
def profile(quantized: Rows, full: Rows) -> list[float]:
    """Mean change of 1 - cos at every step of the run, [calls - 1], for the report."""
    turns = [np.asarray(q) - np.asarray(f) for q, f in zip(quantized, full, strict=True)]
    return [float(x) for x in np.mean(turns, 0)]
