"""Spectra of final latents: texture that quantization smooths away."""

from collections.abc import Iterable

import numpy as np

from qcheck.measurement import Arm
from qcheck.metric.statistics import Sample, decibels

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


def hf_energy(arm: Arm, quantized: Iterable[np.ndarray], full: Iterable[np.ndarray]) -> Sample:
    """Change of the high-frequency share from full precision to quantized, dB: negative = over-smoothed."""
    return Sample("hf_energy", arm, "dB", high_share(quantized) - high_share(full))
