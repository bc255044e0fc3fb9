"""FLIP of two pictures (Andersson et al. 2020) by NVIDIA's package: what an eye would notice when flipping to and fro.

At every pixel 0 is nothing and 1 the most that there can be, at the package's 67 pixels a degree.
"""

import importlib.util
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

SIDE = 384  # pixels a side: some .15 s of one core


@dataclass(frozen=True)
class ErrorMap:
    """The error map [h, w, 3] in [0, 1], in the colours of magma, and the mean error."""

    colours: np.ndarray
    mean: float


def missing() -> str:
    """Why nothing can be measured here; empty where the package is there."""
    absent = importlib.util.find_spec("flip_evaluator") is None
    return "needs flip_evaluator: install qcheck[judge]" if absent else ""


def maps(quantized: np.ndarray, full: np.ndarray) -> list[ErrorMap]:
    """FLIP of each of the pictures [n, H, W, 3] in [0, 1]; of none where the package is missing."""
    return [] if missing() else [compare(q, f) for q, f in zip(quantized, full, strict=True)]


def compare(quantized: np.ndarray, full: np.ndarray) -> ErrorMap:
    """FLIP of pictures [H, W, 3] in [0, 1]; a map of grey and NaN where one of them is not finite.

    A picture of more than ``SIDE`` pixels a side is shrunk: FLIP takes a second for one of 1024.
    """
    from flip_evaluator import evaluate

    reference = _shrunk(full)
    if not (np.isfinite(quantized).all() and np.isfinite(full).all()):
        return ErrorMap(np.full(reference.shape, np.nan), np.nan)
    colours, mean, _ = evaluate(reference, _shrunk(quantized), "LDR", applyMagma=True)
    return ErrorMap(colours, float(mean))


def _shrunk(picture: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] of at most ``SIDE`` pixels a side, by the mean of areas."""
    if max(picture.shape[:2]) <= SIDE:
        return picture.astype(np.float32)
    share = SIDE / max(picture.shape[:2])
    size = [max(1, round(edge * share)) for edge in picture.shape[:2]]
    image = torch.from_numpy(np.float32(picture)).permute(2, 0, 1)[None]
    shrunk: np.ndarray = F.interpolate(image, size=size, mode="area")[0].permute(1, 2, 0).contiguous().numpy()
    return shrunk
