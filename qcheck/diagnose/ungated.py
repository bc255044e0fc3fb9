"""Measurements without a limit, taken once a case has its verdict."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from qcheck.diagnose.sheet import Sheet
from qcheck.measure import classifier, effect, picture
from qcheck.measure.interval import measure_all
from qcheck.measure.registry import measures
from qcheck.measure.sample import Sample
from qcheck.result.measurement import Judged, Measurement
from qcheck.sampling.store import Trace
from qcheck.spec import measurement
from qcheck.spec.arm import Side

Traces = Mapping[Side, Trace]
_WEIGHTS = "alexnet-owt-7be5be79.pth"


def measure(reference: Traces, quantized: Traces, sheet: Sheet, sides: Sequence[Side], alpha: float) -> list[Judged]:
    """classifier_auc of final latents; psnr, ssim and lpips of the contact sheet's pictures."""
    measurements = []
    for side in sides:
        measurements.append(_classified(side, quantized[side], reference[side], alpha))
        measurements += _pictures(side, sheet.quantized[side], sheet.reference[side], alpha)
    return judged(measurements)


def judged(measurements: Sequence[Measurement]) -> list[Judged]:
    """Measurements as the report lists them, without a limit."""
    words = {True: "reported", False: "not measured"}
    return [Judged.model_validate(m.model_dump() | {"status": words[m.measured]}) for m in measurements]


def worst_prompt(energies: effect.Energies, floor: np.ndarray, prompts: Sequence[str]) -> Judged:
    """The prompt with the highest mean excess_error."""
    return judged([effect.worst_prompt(energies, floor, prompts)])[0]


def _classified(side: Side, quantized: Trace, reference: Trace, alpha: float) -> Measurement:
    if missing := _lacking("sklearn"):
        return _not_measured("classifier_auc", side, f"{missing}: pip install scikit-learn")
    return classifier.measure(side, quantized.finals(), reference.finals(), alpha)


def _pictures(side: Side, quantized: np.ndarray, reference: np.ndarray, alpha: float) -> list[Measurement]:
    if missing := _lacking("skimage"):
        reason = f"{missing}: pip install scikit-image"
        measurements = [_not_measured("psnr", side, reason), _not_measured("ssim", side, reason)]
    elif min(reference.shape[1:3]) < picture.WINDOW:
        reason = f"pictures are smaller than the window of {picture.WINDOW} pixels"
        measurements = [_not_measured("psnr", side, reason), _not_measured("ssim", side, reason)]
    else:
        samples = [picture.psnr(side, quantized, reference), picture.ssim(side, quantized, reference)]
        measurements = measure_all(samples, {}, alpha)
    return [*measurements, lpips(side, quantized, reference, alpha)]


@measures("lpips", when="end")
def lpips(side: Side, quantized: np.ndarray, reference: np.ndarray, alpha: float) -> Measurement:
    """LPIPS (AlexNet, Zhang et al. 2018) of pictures [n, H, W, 3] in [0, 1] by torchmetrics; fetches nothing."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _WEIGHTS
    if missing := _lacking("torchmetrics", "torchvision"):
        return _not_measured("lpips", side, f"{missing}: pip install torchmetrics torchvision")
    if not weights.exists():
        reason = f"no weights at {weights}: torchvision.models.alexnet(weights='DEFAULT') fetches them"
        return _not_measured("lpips", side, reason)
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as distance

    def prepared(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.float32(image)).permute(2, 0, 1)[None]

    pairs = zip(quantized, reference, strict=True)
    values = [float(distance(prepared(q), prepared(f), net_type="alex", normalize=True)) for q, f in pairs]
    return measure_all([Sample("lpips", side, np.array(values))], {}, alpha)[0]


def _lacking(*modules: str) -> str:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(absent)}" if absent else ""


def _not_measured(name: str, side: Side, reason: str) -> Measurement:
    unit = measurement.find(name).of(side).unit
    return Measurement(name=name, arm=side, unit=unit, value=None, where=reason)
