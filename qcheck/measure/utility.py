"""Utility: how much of an adapter's benefit on real pictures of its style is left after quantization."""

import numpy as np

from qcheck.device import student
from qcheck.device.arithmetic import pseudo_values
from qcheck.measure.registry import measures
from qcheck.measure.sample import BROKEN, Sample
from qcheck.result.measurement import Measurement

LEAST = 3  # pictures
_SURE = 0.01


@measures("style_utility", when="end")
@BROKEN
def style_utility(f0: np.ndarray, f1: np.ndarray, q1: np.ndarray) -> Sample | Measurement:
    """U = (L_f0 - L_q1) / (L_f0 - L_f1) of denoising losses [n] by picture, as pseudo-values [n].

    1 is all of the benefit, 0 none, negative worse than the base. Void, which is not measured, where f1 is not better
    than f0 with 99 % confidence by a paired t-test over pictures: then there is no benefit to be lost.
    """
    benefit = f0 - f1
    error = float(benefit.std(ddof=1) / np.sqrt(len(benefit)))
    if not benefit.mean() > student.quantile(1 - _SURE, len(benefit) - 1) * error:
        reason = (
            f"void: at full precision the LoRA is no better than the base on them ({benefit.mean():.2g} +- {error:.1g})"
        )
        return Measurement(name="style_utility", arm="adapted", unit="ratio", value=None, where=reason)
    values = pseudo_values(lambda rows: (f0 - q1)[rows].sum() / benefit[rows].sum(), len(benefit))
    return Sample("style_utility", "adapted", values)
