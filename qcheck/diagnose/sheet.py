"""Decoded pictures of the first probes, before and after quantization: what the contact sheet and the page show."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from qcheck.model.family import Family
from qcheck.sampling.store import Trace

ROWS = 8
AMPLIFY = 8


@dataclass(frozen=True)
class Sheet:
    """Pictures [n, H, W, 3] in [0, 1] of both arms, before and after quantization."""

    scheme: str
    prompts: tuple[str, ...]
    reference: Mapping[Literal["base", "adapted"], np.ndarray]
    quantized: Mapping[Literal["base", "adapted"], np.ndarray]


def eight_bits(picture: np.ndarray) -> np.ndarray:
    """A picture in [0, 1] as bytes; what is not a number is grey."""
    found: np.ndarray = (np.clip(np.nan_to_num(picture, nan=0.5), 0, 1) * 255).round().astype(np.uint8)
    return found


def difference(full: np.ndarray, quantized: np.ndarray) -> np.ndarray:
    """The change by quantization, enlarged: grey where nothing differs."""
    found: np.ndarray = 0.5 + AMPLIFY * (quantized - full) / 2
    return found


class Decoder:
    """Final latents of traces to pictures; those of the same probes and arm are decoded once."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._known: dict[tuple[Path, ...], np.ndarray] = {}

    def pictures(self, trace: Trace, count: int) -> np.ndarray:
        """Pictures [n, H, W, 3] in [0, 1] of the first ``count`` probes."""
        shown = trace.paths[:count]
        if shown not in self._known:
            decoded = self._family.decode(torch.from_numpy(np.stack(trace.finals()[:count])))
            self._known[shown] = decoded.permute(0, 2, 3, 1).numpy()
        return self._known[shown]
