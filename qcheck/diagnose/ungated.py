"""Measurements without a limit, taken once a case has its verdict."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qcheck.diagnose import features, flip_map
from qcheck.diagnose.flip_map import ErrorMap
from qcheck.diagnose.lpips import not_measured
from qcheck.diagnose.sheet import Sheet
from qcheck.measure import classifier, effect, interval, picture, style
from qcheck.measure.registry import measures
from qcheck.measure.sample import Sample
from qcheck.result.measurement import Judged, Measurement
from qcheck.sampling.store import Trace
from qcheck.spec.arm import SIDES, Arm, Side

Traces = Mapping[Side, Trace]


@dataclass(frozen=True)
class Ungated:
    """The measurements, and what they come from: ``samples``, and the classifier's ``scores`` [2, n] by arm."""

    measurements: list[Judged]
    samples: list[Sample]
    scores: Mapping[Side, np.ndarray]

    def beside(self, one: Sample | Measurement, alpha: float) -> "Ungated":
        """With another one."""
        samples = [one] if isinstance(one, Sample) else []
        measurements = [*self.measurements, *judged([_measured(one, alpha)])]
        return Ungated(measurements, [*self.samples, *samples], self.scores)


def measure(reference: Traces, quantized: Traces, sheet: Sheet, sides: Sequence[Side], alpha: float) -> Ungated:
    """classifier_auc of final latents; what the contact sheet's pictures say, by pixels and by deep features."""
    measurements, samples, scores = list[Measurement](), list[Sample](), dict[Side, np.ndarray]()
    for side in sides:
        if missing := _lacking("sklearn"):
            measurements.append(not_measured("classifier_auc", side, f"{missing}: pip install scikit-learn"))
        else:
            scores[side] = classifier.scores(quantized[side].finals(), reference[side].finals())
            measurements.append(classifier.of_scores(side, scores[side], alpha))
        drawn = pixels(side, sheet.quantized[side], sheet.reference[side], sheet.flips.get(side, ()))
        samples += [one for one in drawn if isinstance(one, Sample)]
        measurements += [_measured(one, alpha) for one in drawn]
    told = looks(sheet, sides)
    samples += [one for one in told if isinstance(one, Sample)]
    measurements += [_measured(one, alpha) for one in told]
    return Ungated(judged(measurements), samples, scores)


def judged(measurements: Sequence[Measurement]) -> list[Judged]:
    """Measurements as the report lists them, without a limit."""
    words = {True: "reported", False: "not measured"}
    return [Judged.model_validate(m.model_dump() | {"status": words[m.measured]}) for m in measurements]


def worst_prompt(energies: effect.Energies, floor: np.ndarray, prompts: Sequence[str]) -> Judged:
    """The prompt with the highest mean excess_error."""
    return judged([effect.worst_prompt(energies, floor, prompts)])[0]


def _measured(one: Sample | Measurement, alpha: float) -> Measurement:
    return one if isinstance(one, Measurement) else interval.measure(one, None, alpha)


def looks(sheet: Sheet, sides: Sequence[Side]) -> list[Sample | Measurement]:
    """What is left of style and subject in a sheet's pictures; without the extra, measurements that say why not."""
    reason = features.missing()
    if not reason and len(sheet.prompts) < style.LEAST:
        reason = f"needs at least {style.LEAST} pictures"
    if reason:
        named: list[tuple[str, Arm]] = [("style_survival", "adapted"), ("style_effect", "adapted")]
        named += [(name, side) for side in sides for name in ("deep_distance", "subject_survival")]
        return [not_measured(name, side, reason) for name, side in named]
    full = {side: features.of(sheet.reference[side]) for side in SIDES}
    quantized = {side: features.of(sheet.quantized[side]) for side in sides}
    return list[Sample | Measurement](style.samples(full["base"], full["adapted"], quantized))


def pixels(
    side: Side, quantized: np.ndarray, reference: np.ndarray, flips: Sequence[ErrorMap]
) -> list[Sample | Measurement]:
    """The samples of psnr, ssim and flip; what was not measured is a measurement that says why."""
    reason = ""
    if missing := _lacking("skimage"):
        reason = f"{missing}: pip install scikit-image"
    elif min(reference.shape[1:3]) < picture.WINDOW:
        reason = f"pictures are smaller than the window of {picture.WINDOW} pixels"
    if reason:
        unmeasured = [not_measured(name, side, reason) for name in ("psnr", "ssim")]
        return [*unmeasured, flip(side, flips)]
    compared = [picture.psnr(side, quantized, reference), picture.ssim(side, quantized, reference)]
    return [*compared, flip(side, flips)]


@measures("flip", when="end")
def flip(side: Side, maps: Sequence[ErrorMap]) -> Sample | Measurement:
    """Mean FLIP error (Andersson et al. 2020) of each picture, 67 pixels a degree; by NVIDIA's package.

    A large picture is shrunk, see ``flip_map.SIDE``.
    """
    if reason := flip_map.missing():
        return not_measured("flip", side, reason)
    return Sample("flip", side, np.array([one.mean for one in maps]))


def _lacking(*modules: str) -> str:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(absent)}" if absent else ""
