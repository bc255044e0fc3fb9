"""The Runner protocol and the guard around every call."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class Runner(Protocol):
    """One denoiser, ready to run."""

    @property
    def name(self) -> str:
        """The runner's name in messages and provenance."""
        ...

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Raw output, float32 in the shape of the latents, for float32 inputs as ``Family.feed`` makes them."""
        ...


class MismatchError(Exception):
    """Arrays to compare do not belong together: a bug or a tampered file, never a property of the adapter."""


def call(runner: Runner, inputs: Mapping[str, np.ndarray], latent: str) -> np.ndarray:
    """Run, and check shape and dtype of the output. Values that are not finite pass, for the measurements to report.

    Raises:
        MismatchError: the output has another shape or dtype than the input ``latent``.
    """
    output, expected = runner(inputs), inputs[latent].shape
    if output.shape != expected or output.dtype != np.float32:
        raise MismatchError(
            f"{runner.name} returned {output.dtype}{list(output.shape)}, expected float32{list(expected)}"
        )
    return output
