"""Measurements of the adapter's effect and of the error of quantization; the inner products are ``device.effect``'s."""

from collections.abc import Sequence

import numpy as np

from qcheck.device.arithmetic import decibels, dot
from qcheck.device.effect import Energies, awake, bad_probes, energies, evenly, stratum_survival, survival
from qcheck.measure.registry import Rows, View, measures
from qcheck.measure.sample import BROKEN, EXACT, Sample
from qcheck.result.measurement import Measurement
from qcheck.spec import measurement

__all__ = ["Energies", "bad_probes", "energies", "survival"]


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
        sizes.append(np.sqrt((dot(change, change) * weights).sum() / (dot(signal, signal) * weights).sum()))
    return np.array(sizes)


def sqnr(signal: np.ndarray, error: np.ndarray) -> np.ndarray:
    """10 log10(signal / error) of powers [n, T], dB, at most ``EXACT``."""
    ratio: np.ndarray = np.minimum(decibels(signal, error), EXACT)
    return ratio


def stratum_profile(signal: np.ndarray, error: np.ndarray) -> list[float]:
    """Mean SQNR [T] in dB at each stratum, for the report."""
    return [float(x) for x in sqnr(signal, error).mean(0)]


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
    ratio = np.minimum(effect_to_error(e), EXACT)
    return {
        "effect_survival": [Sample("effect_survival", "adapted", survival(e))],
        "stratum_survival": [
            Sample("stratum_survival", "adapted", stratum_survival(e), tuple(places[i] for i in awake(e)))
        ],
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
def stratum_survival_of(view: View) -> list[Sample]:
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
