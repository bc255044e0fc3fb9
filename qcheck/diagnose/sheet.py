"""Decoded pictures of the first probes, before and after quantization, for the contact sheet and the page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from qcheck.diagnose.flip_map import ErrorMap
from qcheck.model.family import Family
from qcheck.result.pictures import Role
from qcheck.sampling.store import Trace
from qcheck.spec.arm import Side

ROWS = 8
AMPLIFY = 8
_QUANTIZED: Mapping[Side, Role] = {"base": "q0", "adapted": "q1"}


@dataclass(frozen=True)
class Sheet:
    """Pictures [n, H, W, 3] in [0, 1] of both arms, before and after quantization; q0 may be missing.

    ``flips`` are the error maps of the quantized pictures by FLIP, none where its package is missing.
    """

    scheme: str
    prompts: tuple[str, ...]
    reference: Mapping[Literal["base", "adapted"], np.ndarray]
    quantized: Mapping[Literal["base", "adapted"], np.ndarray]
    flips: Mapping[Literal["base", "adapted"], Sequence[ErrorMap]] = field(default_factory=dict)

    def arms(self, sides: Sequence[Side]) -> dict[Role, Callable[[], Iterable[np.ndarray]]]:
        """Readers of the pictures of f0, f1 and of the quantized arms of ``sides``."""
        full: dict[Role, np.ndarray] = {"f0": self.reference["base"], "f1": self.reference["adapted"]}
        quantized: dict[Role, np.ndarray] = {_QUANTIZED[side]: self.quantized[side] for side in sides}
        return {role: partial(iter, pictures) for role, pictures in (full | quantized).items()}


def eight_bits(picture: np.ndarray) -> np.ndarray:
    """A picture in [0, 1] as bytes; NaN becomes grey."""
    levels: np.ndarray = (np.clip(np.nan_to_num(picture, nan=0.5), 0, 1) * 255).round().astype(np.uint8)
    return levels


def difference(full: np.ndarray, quantized: np.ndarray) -> np.ndarray:
    """The change by quantization, amplified ``AMPLIFY`` times: grey where nothing differs."""
    enlarged: np.ndarray = 0.5 + AMPLIFY * (quantized - full) / 2
    return enlarged


class Decoder:
    """Decodes the final latents of traces to pictures; each arm's probes are decoded once."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._known: dict[tuple[Path, ...], np.ndarray] = {}

    def pictures(self, trace: Trace, count: int) -> np.ndarray:
        """Pictures [n, H, W, 3] in [0, 1] of the first ``count`` probes."""
        paths = trace.free[:count]
        if paths not in self._known:
            decoded = self._family.decode(torch.from_numpy(np.stack(trace.finals()[:count])))
            self._known[paths] = decoded.permute(0, 2, 3, 1).numpy()
        return self._known[paths]
