"""Distributions of final latents over probes: drift of mean and variance, beside what pairs differ by anyway.

Every probe is known by the mean and variance of each channel over its pixels, ``moments`` n of [2, C]: pooled over
probes they give the pooled Gaussian exactly (law of total variance). Pixels are not independent; probes are.
"""

from collections.abc import Iterable

import numpy as np

from qcheck.measure.sample import BROKEN, Sample, pseudo_values

Rows = Iterable[np.ndarray]
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
    found: np.ndarray = (np.log(v2 / v1) + (v1 + np.square(m1 - m2)) / v2 - 1) / 2
    return found


def swaps(count: int) -> np.ndarray:
    """Ways to exchange the members of ``count`` pairs, [256 at most, count]: all of them, or some drawn once."""
    if 2**count <= _SWAPS:
        numbers = np.arange(2**count)[:, None]
        found: np.ndarray = numbers >> np.arange(count) & 1 == 1
        return found
    return np.random.default_rng(count).random((_SWAPS, count)) < 0.5


@BROKEN
def kl_excess(quantized: np.ndarray, full: np.ndarray, exchanged: np.ndarray) -> np.ndarray:
    """KL(q || f) less its mean when members of pairs are exchanged, [C], of moments [n, 2, C], nat.

    ``exchanged`` [S, n] says which pairs are; sets that differ by a probe are compared under the same exchanges.
    """
    swapped = exchanged[:, :, None, None]
    null = gaussian_kl(np.where(swapped, full, quantized), np.where(swapped, quantized, full))
    found: np.ndarray = gaussian_kl(quantized, full) - null.mean(0)
    return found


def _kl(quantized: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Pseudo-values [n] of the channels' summed excess."""
    ways = swaps(len(full))
    return pseudo_values(lambda i: kl_excess(quantized[i], full[i], ways[:, i]).sum(), len(full))


@BROKEN
def _worst(quantized: np.ndarray, full: np.ndarray) -> tuple[str, ...]:
    """The channel with the largest excess, in words."""
    return (f"channel {int(np.argmax(kl_excess(quantized, full, swaps(len(full)))))}",)


def _moments(rows: Rows, step: int = -1) -> np.ndarray:
    """Moments [n, 2, C] at one step of runs whose moments are n of [calls + 1, 2, C]."""
    return np.array([row[step] for row in rows])


@BROKEN
def kl_samples(f0: Rows, f1: Rows, q0: Rows, q1: Rows) -> list[Sample]:
    """latent_kl_excess of both arms and of the adapted beside the base's, and KL(adapted || base) at full precision.

    The rows are each run's moments, n of [calls + 1, 2, C]; the end of the run counts.
    """
    a0, a1, b0, b1 = (_moments(rows) for rows in (f0, f1, q0, q1))
    base, adapted = _kl(b0, a0), _kl(b1, a1)
    return [
        Sample("latent_kl_excess", "base", "nat", base, _worst(b0, a0)),
        Sample("latent_kl_excess", "adapted", "nat", adapted, _worst(b1, a1)),
        Sample("latent_kl_excess", "both", "nat", adapted - base),
        Sample("adapter_shift", "adapted", "nat", pseudo_values(lambda i: gaussian_kl(a1[i], a0[i]).sum(), len(a0))),
        *mmd_samples(a0, a1, b0, b1),
    ]


@BROKEN
def profile(quantized: Rows, full: Rows) -> list[float]:
    """latent_kl_excess before every call and at the end, [calls + 1], nat, for the report."""
    q, f = (np.array(list(rows)) for rows in (quantized, full))
    ways = swaps(len(f))
    return [float(kl_excess(q[:, step], f[:, step], ways).sum()) for step in range(q.shape[1])]


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
    found: np.ndarray = kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]
    return found


def _off_diagonal(terms: np.ndarray) -> np.ndarray:
    count = len(terms)
    return np.asarray((terms.sum() - np.trace(terms)) / max(count * (count - 1), 1))


def mmd_samples(f0: np.ndarray, f1: np.ndarray, q0: np.ndarray, q1: np.ndarray) -> list[Sample]:
    """latent_mmd of both arms, of moments [n, 2, C]: a cross-check of latent_kl_excess that assumes no Gaussian."""
    terms = {"base": mmd(features(q0), features(f0)), "adapted": mmd(features(q1), features(f1))}
    return [
        Sample(
            "latent_mmd",
            "base" if arm == "base" else "adapted",
            "squared MMD",
            pseudo_values(lambda i, h=h: _off_diagonal(h[np.ix_(i, i)]), len(h)),  # type: ignore[misc]
        )
        for arm, h in terms.items()
    ]
