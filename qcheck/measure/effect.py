"""The adapter's effect and the error of quantization, on outputs at the latents of the reference f1.

E1 = q1 - f1, E0 = q0 - f0, Df = f1 - f0, Dq = q1 - q0. Sums over strata count each of them alike: inner products are
divided by the mean |Df|^2 there, so that epsilon, v and flow outputs are comparable. (The solver's own coefficients
would give the first of 20 steps of an epsilon model most of the sum, and later steps correct its error: docs/zoo.md.) A
calibrated adapter also corrects the base's error, which is no effect of its own: for it Dq = q1 - f0, so that a perfect
one has survival 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qcheck.measure.registry import Rows, View, measures
from qcheck.measure.sample import BROKEN, EXACT, Sample, decibels, pseudo_values
from qcheck.result.measurement import Measurement
from qcheck.spec import measurement


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
    products: np.ndarray = np.einsum("tchw,tchw->t", a, b)
    return products


def energies(f0: Rows, f1: Rows, q0: Rows, q1: Rows, calibrated: bool = False) -> Energies:
    """Reduce four arms of guided outputs, n of [T, C, h, w], to scalars, one probe in memory at a time."""
    rows = []
    for arrays in zip(f0, f1, q0, q1, strict=True):
        a0, a1, b0, b1 = (np.asarray(x, np.float64) for x in arrays)
        effect, quantized_effect = a1 - a0, b1 - (a0 if calibrated else b0)
        rows.append(
            (
                _dot(a1, a1),
                _dot(a0, a0),
                _dot(effect, effect),
                _dot(quantized_effect, effect),
                _dot(b1 - a1, b1 - a1),
                _dot(b0 - a0, b0 - a0),
            )
        )
    return Energies(*(np.stack(column) for column in zip(*rows, strict=True)))


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


def effect_to_error(e: Energies) -> np.ndarray:
    """R [n] = 10 log10(sum |Df|^2 / sum |E1|^2), dB."""
    weights = evenly(e)
    return decibels((e.effect * weights).sum(1), (e.error1 * weights).sum(1))


def excess_error(e: Energies, floor: np.ndarray) -> np.ndarray:
    """G [n] = 10 log10(sum |E1|^2 / sum |E0|^2), dB; errors below ``floor`` [T] (relative power) count as the floor.

    Two errors within the rounding of the compute type cannot be distinguished: G is then 0.
    """
    weights = evenly(e)
    error1, error0 = np.maximum(e.error1, e.f1 * floor), np.maximum(e.error0, e.f0 * floor)
    return decibels((error1 * weights).sum(1), (error0 * weights).sum(1))


def stratum_excess(e: Energies, floor: np.ndarray) -> np.ndarray:
    """G at every stratum [n, T], dB, with the floor of ``excess_error``: the sum hides a fault of one timestep."""
    return decibels(np.maximum(e.error1, e.f1 * floor), np.maximum(e.error0, e.f0 * floor))


def effect_size(f0: Rows, f1: Rows, weights: np.ndarray) -> np.ndarray:
    """|Df| / |f1| [n] over all strata, a ratio: the size of the adapter's effect at full precision.

    ``weights`` [T] are the strata's squared solver coefficients.
    """
    sizes = []
    for a0, a1 in zip(f0, f1, strict=True):
        change, signal = np.asarray(a1, np.float64) - a0, np.asarray(a1, np.float64)
        sizes.append(np.sqrt((_dot(change, change) * weights).sum() / (_dot(signal, signal) * weights).sum()))
    return np.array(sizes)


def sqnr(signal: np.ndarray, error: np.ndarray) -> np.ndarray:
    """10 log10(signal / error) of powers [n, T], dB, at most ``EXACT``."""
    ratio: np.ndarray = np.minimum(decibels(signal, error), EXACT)
    return ratio


def stratum_profile(signal: np.ndarray, error: np.ndarray) -> list[float]:
    """Mean SQNR [T] in dB at each stratum, for the report."""
    return [float(x) for x in sqnr(signal, error).mean(0)]


def bad_probes(e: Energies, low: float, high: float) -> list[bool]:
    """Of each probe, whether its survival is outside [low, high] or not finite: the tail that a mean hides."""
    values = survival(e)
    finite = np.isfinite(e.error0).all(1) & np.isfinite(e.error1).all(1)
    return [not (sound and low <= value <= high) for sound, value in zip(finite, values, strict=True)]


def energies_of(view: View) -> Energies:
    """The energies of a view's arms."""
    arms = (view.f0.outputs, view.f1.outputs, view.q0.outputs, view.q1.outputs)
    return energies(*arms, view.calibrated)


@BROKEN
def samples(e: Energies, floor: np.ndarray, timesteps: Sequence[float]) -> dict[str, list[Sample]]:
    """The samples of every measurement of energies, by its name; ``floor`` [T] as for ``excess_error``.

    Of the strata the lowest or the highest counts. ``stratum_survival`` is that of the sums over probes, as
    pseudo-values, at the strata where the adapter does anything.
    """
    places = tuple(f"timestep {t:g}" for t in timesteps)
    awake = np.flatnonzero(e.effect.sum(0) != 0)
    kept, effects = e.kept[:, awake], e.effect[:, awake]
    by_stratum = pseudo_values(lambda rows: kept[rows].sum(0) / effects[rows].sum(0), len(kept))
    ratio = np.minimum(effect_to_error(e), EXACT)
    return {
        "effect_survival": [Sample("effect_survival", "adapted", survival(e))],
        "stratum_survival": [Sample("stratum_survival", "adapted", by_stratum, tuple(places[i] for i in awake))],
        "effect_to_error": [Sample("effect_to_error", "adapted", ratio)],
        "excess_error": [Sample("excess_error", "adapted", excess_error(e, floor))],
        "worst_stratum": [Sample("worst_stratum", "adapted", stratum_excess(e, floor), places, "highest")],
        "stratum_sqnr": [
            Sample("stratum_sqnr", "base", sqnr(e.f0, e.error0), places),
            Sample("stratum_sqnr", "adapted", sqnr(e.f1, e.error1), places),
        ],
    }


def _samples_of(view: View) -> dict[str, list[Sample]]:
    return samples(view.once(energies_of), view.floor, view.timesteps)


@measures("effect_survival")
def effect_survival(view: View) -> list[Sample]:
    """Survival S of every probe."""
    return view.once(_samples_of)["effect_survival"]


@measures("stratum_survival")
def stratum_survival(view: View) -> list[Sample]:
    """Survival at every stratum; the lowest counts."""
    return view.once(_samples_of)["stratum_survival"]


@measures("effect_to_error")
def effect_to_error_of(view: View) -> list[Sample]:
    """R of every probe, at most ``EXACT`` dB."""
    return view.once(_samples_of)["effect_to_error"]


@measures("excess_error")
def excess_error_of(view: View) -> list[Sample]:
    """G of every probe."""
    return view.once(_samples_of)["excess_error"]


@measures("worst_stratum")
def worst_stratum(view: View) -> list[Sample]:
    """G of every probe at every stratum; the highest counts."""
    return view.once(_samples_of)["worst_stratum"]


@measures("stratum_sqnr")
def stratum_sqnr(view: View) -> list[Sample]:
    """SQNR of every probe at every stratum, at most ``EXACT`` dB; the lowest counts."""
    return view.once(_samples_of)["stratum_sqnr"]


@measures("worst_prompt", when="end")
def worst_prompt(e: Energies, floor: np.ndarray, prompts: Sequence[str]) -> Measurement:
    """The prompt with the highest mean excess_error; a few seeds of one prompt carry no interval."""
    values = excess_error(e, floor)
    means = {p: float(values[[q == p for q in prompts]].mean()) for p in dict.fromkeys(prompts)}
    worst = max(means, key=lambda p: (np.isnan(means[p]), means[p]))
    unit = measurement.find("worst_prompt").of("adapted").unit
    return Measurement(name="worst_prompt", arm="adapted", unit=unit, value=means[worst], where=worst)
