"""Distributions of final latents over probes: drift of mean and variance, beyond the drift of exchanged pairs.

Every probe is described by the mean and variance of each channel over its pixels, ``moments`` n of [2, C]. Pooled over
probes they give the pooled Gaussian exactly (law of total variance). Pixels are not independent; probes are.
"""

import numpy as np

from qcheck.device.arithmetic import pseudo_values
from qcheck.measure.registry import Rows, View, measures
from qcheck.measure.sample import BROKEN, Sample

_SWAPS = 256


def _pooled(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [..., C] of moments [..., n, 2, C]."""
    means, variances = moments[..., 0, :], moments[..., 1, :]
    return means.mean(-2), variances.mean(-2) + means.var(-2)


@BROKEN
def gaussian_kl(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """KL(first || second) [..., C] of per-channel Gaussians pooled from moments [..., n, 2, C], nat.

    1/2 (ln(v2 / v1) + (v1 + (m1 - m2)^2) / v2 - 1).
    """
    (m1, v1), (m2, v2) = _pooled(first), _pooled(second)
    divergence: np.ndarray = (np.log(v2 / v1) + (v1 + np.square(m1 - m2)) / v2 - 1) / 2
    return divergence


def chain_kl(first: np.ndarray, second: np.ndarray, nats: np.ndarray) -> float:
    """KL of two Gaussian chains with outputs [T, ...] at the same states, nat: the sum of their steps' divergences.

    ``nats`` [T] is a step's divergence by a squared distance 1 of its outputs (``tasks.shift``).
    """
    apart = (first.astype(np.float64) - second).reshape(len(nats), -1)
    return float(nats @ np.square(apart).sum(1))


def swaps(count: int) -> np.ndarray:
    """Exchanges of the members of ``count`` pairs, bool [256 at most, count]: all of them, or a fixed random sample."""
    if 2**count <= _SWAPS:
        numbers = np.arange(2**count)[:, None]
        every_swap: np.ndarray = numbers >> np.arange(count) & 1 == 1
        return every_swap
    return np.random.default_rng(count).random((_SWAPS, count)) < 0.5


@BROKEN
def kl_excess(quantized: np.ndarray, full: np.ndarray, exchanged: np.ndarray) -> np.ndarray:
    """KL(q || f) less its mean when members of pairs are exchanged, [C], of moments [n, 2, C], nat.

    ``exchanged`` [S, n] says which pairs are exchanged; sets that differ by a probe are compared under the same S.
    """
    swapped = exchanged[:, :, None, None]
    null = gaussian_kl(np.where(swapped, full, quantized), np.where(swapped, quantized, full))
    excess: np.ndarray = gaussian_kl(quantized, full) - null.mean(0)
    return excess


def _kl(quantized: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Pseudo-values [n] of the KL excess summed over channels."""
    exchanges = swaps(len(full))
    return pseudo_values(lambda i: kl_excess(quantized[i], full[i], exchanges[:, i]).sum(), len(full))


@BROKEN
def _worst(quantized: np.ndarray, full: np.ndarray) -> tuple[str, ...]:
    """The channel with the largest excess, in words."""
    return (f"channel {int(np.argmax(kl_excess(quantized, full, swaps(len(full)))))}",)


def _moments(rows: Rows, step: int = -1) -> np.ndarray:
    """Moments [n, 2, C] at one step of runs whose moments are n of [calls + 1, 2, C]."""
    return np.array([row[step] for row in rows])


def ends(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Moments [n, 2, C] at the end of the runs of f0, f1, q0 and q1."""
    f0, f1, q0, q1 = (_moments(run.moments) for run in (view.f0, view.f1, view.q0, view.q1))
    return f0, f1, q0, q1


@measures("latent_kl_excess")
@BROKEN
def latent_kl_excess(view: View) -> list[Sample]:
    """KL excess of both arms to full precision, and the adapted arm's less the base's."""
    f0, f1, q0, q1 = view.once(ends)
    base, adapted = _kl(q0, f0), _kl(q1, f1)
    return [
        Sample("latent_kl_excess", "base", base, _worst(q0, f0)),
        Sample("latent_kl_excess", "adapted", adapted, _worst(q1, f1)),
        Sample("latent_kl_excess", "both", adapted - base),
    ]


@measures("adapter_shift")
@BROKEN
def adapter_shift(view: View) -> list[Sample]:
    """KL(adapted || base) at full precision."""
    f0, f1, _, _ = view.once(ends)
    values = pseudo_values(lambda i: gaussian_kl(f1[i], f0[i]).sum(), len(f0))
    return [Sample("adapter_shift", "adapted", values)]


@BROKEN
def profile(quantized: Rows, full: Rows) -> list[float]:
    """latent_kl_excess before every call and at the end, [calls + 1], nat, for the report."""
    q, f = (np.array(list(rows)) for rows in (quantized, full))
    exchanges = swaps(len(f))
    return [float(kl_excess(q[:, step], f[:, step], exchanges).sum()) for step in range(q.shape[1])]


@BROKEN
def features(moments: np.ndarray) -> np.ndarray:
    """Mean and log variance of each channel, [n, 2 C], of moments [n, 2, C]."""
    return np.concatenate([moments[:, 0], np.log(moments[:, 1])], 1)


@BROKEN
def mmd(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Terms h [n, n] of the unbiased squared MMD of paired features [n, d]: its value is their mean off the diagonal.

    Gaussian kernel, width by the median distance of the pooled features, each of them scaled to unit deviation
    (Gretton et al. 2012). Exchanging the members of a pair flips the sign of its row and column: the null's mean is 0.
    """
    pooled = np.concatenate([x, y])
    scaled = pooled / np.maximum(pooled.std(0), 1e-12)
    square = np.square(scaled[:, None] - scaled).sum(-1)
    kernel = np.exp(-square / max(float(np.median(square[square > 0])) if (square > 0).any() else 1.0, 1e-12))
    n = len(x)
    terms: np.ndarray = kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]
    return terms


def _off_diagonal(terms: np.ndarray) -> np.ndarray:
    count = len(terms)
    return np.asarray((terms.sum() - np.trace(terms)) / max(count * (count - 1), 1))


@measures("latent_mmd")
@BROKEN
def latent_mmd(view: View) -> list[Sample]:
    """Squared MMD of both arms: a cross-check of latent_kl_excess that assumes no Gaussian."""
    f0, f1, q0, q1 = view.once(ends)
    base, adapted = (mmd(features(q), features(f)) for q, f in ((q0, f0), (q1, f1)))

    def values(terms: np.ndarray) -> np.ndarray:
        return pseudo_values(lambda i: _off_diagonal(terms[np.ix_(i, i)]), len(terms))

    return [Sample("latent_mmd", "base", values(base)), Sample("latent_mmd", "adapted", values(adapted))]
