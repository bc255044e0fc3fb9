"""Spectra of final latents: texture that quantization smooths away, and how far the whole spectrum moved."""

from collections.abc import Iterable

import numpy as np

from qcheck.device.arithmetic import decibels
from qcheck.measure.registry import Rows, View, measures
from qcheck.measure.sample import BROKEN, Sample
from qcheck.spec.arm import SIDES

HIGH = 0.25  # cycles per latent pixel


def high_share(latents: Iterable[np.ndarray]) -> np.ndarray:
    """Share of the power at radial frequency >= 0.25 cycles/px, in dB, [n], of latents, n of [C, h, w].

    Hann window, mean removed, channels summed: 10 log10(sum_{r >= .25} P / sum_{r > 0} P).
    """
    shares = []
    for latent in latents:
        values = np.asarray(latent, np.float64)
        height, width = values.shape[-2:]
        window = np.hanning(height)[:, None] * np.hanning(width)
        power = np.abs(np.fft.fft2(window * (values - values.mean((1, 2), keepdims=True)))) ** 2
        radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
        shares.append((power[:, radius >= HIGH].sum(), power[:, radius > 0].sum()))
    high, whole = np.array(shares).T
    return decibels(high, whole)


@BROKEN
def laplacian_variance(latents: Iterable[np.ndarray]) -> np.ndarray:
    """Variance of the five-point Laplacian inside each channel, summed over channels, in dB, [n], of n of [C, h, w]."""
    variances = []
    for latent in latents:
        x = np.asarray(latent, np.float64)
        inner = x[:, 2:, 1:-1] + x[:, :-2, 1:-1] + x[:, 1:-1, 2:] + x[:, 1:-1, :-2] - 4 * x[:, 1:-1, 1:-1]
        variances.append(inner.var((1, 2)).sum() + 0 * x.sum())  # no stencil reads a corner; the sum passes its NaN on
    return decibels(np.array(variances), np.ones(len(variances)))


@BROKEN
def grain(picture: np.ndarray) -> float:
    """Deviation of the white noise in a picture [C, H, W], in its own unit: median |finest diagonal Haar band| / .6745.

    Donoho and Johnstone, Ideal spatial adaptation by wavelet shrinkage (1994): edges are too few to move a median.
    """
    x = np.asarray(picture, np.float64)
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    band = (x[:, ::2, ::2] - x[:, 1::2, ::2] - x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 2
    return float(np.median(np.abs(band)) / 0.6745)


@BROKEN
def rings(latent: np.ndarray) -> np.ndarray:
    """Mean of 10 log10 P over channels and the bins of each ring of radius 1, 2, ... half the shorter side, dB.

    Hann window, mean removed; rings are one bin of the shorter side wide, so that none is empty.
    """
    values = np.asarray(latent, np.float64)
    height, width = values.shape[-2:]
    window = np.hanning(height)[:, None] * np.hanning(width)
    power = np.abs(np.fft.fft2(window * (values - values.mean((1, 2), keepdims=True)))) ** 2
    side = min(height, width)
    ring = np.rint(side * np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))).astype(int)
    levels = 10 * np.log10(power).mean(0)
    return np.array([levels[ring == r].mean() for r in range(1, side // 2 + 1)])


@BROKEN
def log_spectral_distance(quantized: Iterable[np.ndarray], full: Iterable[np.ndarray]) -> np.ndarray:
    """Root mean square over rings of the change of their level, dB, [n]; 0 is the same radial spectrum."""
    return np.array([np.sqrt(np.square(rings(q) - rings(f)).mean()) for q, f in zip(quantized, full, strict=True)])


@BROKEN
def residual(latent: np.ndarray) -> np.ndarray:
    """Spectral residual of a latent [C, h, w]: log amplitude less its 3 x 3 mean, in nat (Hou & Zhang 2007).

    It whitens the spectrum: each bin is compared with its neighbours. Half of the bins, [C, h, w // 2 + 1].
    """
    values = np.asarray(latent, np.float64)
    amplitude = np.abs(np.fft.fft2(values - values.mean((1, 2), keepdims=True)))
    level = np.log(np.maximum(amplitude, 1e-12 * amplitude.max()))
    around = sum(np.roll(level, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    half: np.ndarray = (level - around)[..., : values.shape[-1] // 2 + 1]
    return half


@BROKEN
def _textures(view: View) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Changes of fine texture and of edges, both in dB [n], by arm."""

    def changes(quantized: Rows, full: Rows) -> tuple[np.ndarray, np.ndarray]:
        return (
            high_share(quantized) - high_share(full),
            laplacian_variance(quantized) - laplacian_variance(full),
        )

    return {
        "base": changes(view.q0.finals, view.f0.finals),
        "adapted": changes(view.q1.finals, view.f1.finals),
    }


@measures("over_smoothing")
@BROKEN
def over_smoothing(view: View) -> list[Sample]:
    """Over-smoothing lowers both fine texture and Laplacian variance: the smaller drop of the two."""
    textures = view.once(_textures)
    return [Sample("over_smoothing", arm, np.maximum(*textures[arm])) for arm in SIDES]


@measures("hf_energy")
def hf_energy(view: View) -> list[Sample]:
    """Change of the share of power at high frequencies."""
    textures = view.once(_textures)
    return [Sample("hf_energy", arm, textures[arm][0]) for arm in SIDES]


@measures("laplacian_variance")
def laplacian_variance_of(view: View) -> list[Sample]:
    """Change of the variance of the Laplacian."""
    textures = view.once(_textures)
    return [Sample("laplacian_variance", arm, textures[arm][1]) for arm in SIDES]


@measures("log_spectral_distance")
def log_spectral_distance_of(view: View) -> list[Sample]:
    """Distance of the radial spectra before and after quantization."""
    return [
        Sample("log_spectral_distance", "base", log_spectral_distance(view.q0.finals, view.f0.finals)),
        Sample("log_spectral_distance", "adapted", log_spectral_distance(view.q1.finals, view.f1.finals)),
    ]
