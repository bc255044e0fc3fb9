"""A two-sample classifier of quantized latents against their full-precision partners, on their spectra."""

from collections.abc import Iterable

import numpy as np

from qcheck.measure.registry import measures
from qcheck.measure.sample import BROKEN
from qcheck.measure.spectrum import residual
from qcheck.result.measurement import Measurement
from qcheck.spec import measurement
from qcheck.spec.arm import Arm

_FOLDS = 5
_RESAMPLES = 1000


def scores(quantized: Iterable[np.ndarray], full: Iterable[np.ndarray]) -> np.ndarray:
    """Out-of-fold scores [2, n] of latents, n of [C, h, w]: the quantized, then their partners; higher is "quantized".

    Ridge classifier on whitened spectra (``spectrum.residual``), each feature scaled by the training folds; both
    members of a pair are in the same fold.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.array([residual(latent).ravel() for latents in (quantized, full) for latent in latents])
    count = len(x) // 2
    labels, pairs = np.repeat([1, 0], count), np.tile(np.arange(count), 2)
    decisions = np.full(2 * count, np.nan)
    if np.isfinite(x).all():
        for train, test in GroupKFold(min(_FOLDS, count)).split(x, labels, pairs):
            model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=float(x.shape[1])))
            decisions[test] = model.fit(x[train], labels[train]).decision_function(x[test])
    return decisions.reshape(2, count)


@BROKEN
def auc(decisions: np.ndarray) -> float:
    """Share of (quantized, full) couples whose quantized score is the higher, of scores [2, n]; ties count half."""
    quantized, full = decisions[0][:, None], decisions[1][None]
    return (
        float(((quantized > full) + 0.5 * (quantized == full)).mean()) if np.isfinite(decisions).all() else float("nan")
    )


@measures("classifier_auc", when="end")
def measure(arm: Arm, quantized: Iterable[np.ndarray], full: Iterable[np.ndarray], alpha: float) -> Measurement:
    """The cross-validated AUC; 0.5 means indistinguishable. Bounds by resampling probes with their scores."""
    return of_scores(arm, scores(quantized, full), alpha)


def of_scores(arm: Arm, decisions: np.ndarray, alpha: float) -> Measurement:
    """The AUC of ``scores`` [2, n], with its bounds."""
    rng, count = np.random.default_rng(0), decisions.shape[1]
    resampled = [auc(decisions[:, rng.integers(0, count, count)]) for _ in range(_RESAMPLES)]
    low, high = (float(x) for x in np.quantile(resampled, [alpha, 1 - alpha]))
    unit = measurement.find("classifier_auc").of(arm).unit
    return Measurement(name="classifier_auc", arm=arm, unit=unit, value=auc(decisions), low=low, high=high)
