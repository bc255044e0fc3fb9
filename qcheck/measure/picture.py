"""Decoded pictures before and after quantization: for comparison with published numbers, never a gate.

Usable 4-bit models differ from their reference by 18 to 21 dB PSNR (deepcompressor's table): a limit on it is wrong.
"""

import numpy as np

from qcheck.measure.registry import measures
from qcheck.measure.sample import BROKEN, EXACT, Sample
from qcheck.spec.arm import Arm

WINDOW = 11  # pixels of SSIM's Gaussian window (Wang et al. 2004)


@measures("psnr", when="end")
@BROKEN
def psnr(arm: Arm, quantized: np.ndarray, full: np.ndarray) -> Sample:
    """PSNR of pictures [n, H, W, 3] in [0, 1], in dB, at most ``EXACT``; by scikit-image."""
    from skimage.metrics import peak_signal_noise_ratio

    pairs = zip(quantized.astype(np.float64), full.astype(np.float64), strict=True)
    values = [np.minimum(peak_signal_noise_ratio(f, q, data_range=1), EXACT) for q, f in pairs]
    return Sample("psnr", arm, np.array(values))


@measures("ssim", when="end")
@BROKEN
def ssim(arm: Arm, quantized: np.ndarray, full: np.ndarray) -> Sample:
    """SSIM of pictures [n, H, W, 3] in [0, 1], H and W at least ``WINDOW``; by scikit-image, as in Wang et al."""
    from skimage.metrics import structural_similarity

    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(quantized.astype(np.float64), full.astype(np.float64), strict=True)
    values = [structural_similarity(f, q, data_range=1, channel_axis=-1, **options) for q, f in pairs]
    return Sample("ssim", arm, np.array(values))
