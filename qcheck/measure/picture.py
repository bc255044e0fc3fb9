"""Decoded pictures before and after quantization: for comparison with what others publish, never a gate.

Usable 4-bit models differ from their reference by 18 to 21 dB PSNR (deepcompressor's table): a limit on it is wrong.
"""

import numpy as np

from qcheck.measure.sample import BROKEN, Sample
from qcheck.spec.arm import Arm

_EXACT = 200.0  # dB: equal pictures, written as a number so that it can be averaged
WINDOW = 11  # pixels of SSIM's Gaussian window (Wang et al. 2004)


@BROKEN
def samples(arm: Arm, quantized: np.ndarray, full: np.ndarray) -> list[Sample]:
    """PSNR in dB and SSIM of pictures [n, H, W, 3] in [0, 1], H and W at least ``WINDOW``; by scikit-image."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    psnr, ssim = [], []
    for q, f in zip(quantized.astype(np.float64), full.astype(np.float64), strict=True):
        psnr.append(np.minimum(peak_signal_noise_ratio(f, q, data_range=1), _EXACT))
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        ssim.append(structural_similarity(f, q, data_range=1, channel_axis=-1, **options))
    return [Sample("psnr", arm, "dB", np.array(psnr)), Sample("ssim", arm, "ratio", np.array(ssim))]
