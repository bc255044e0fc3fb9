"""The Runner protocol and the guard around every call."""

from typing import Protocol

import numpy as np

INPUTS = ("sample", "timestep", "encoder_hidden_states")
OUTPUT = "out_sample"


class Runner(Protocol):
    """One denoiser, ready to run."""

    @property
    def name(self) -> str:
        """What computes, for messages and provenance."""
        ...

    def __call__(self, sample: np.ndarray, timestep: float, hidden: np.ndarray) -> np.ndarray:
        """Raw output [batch, C, H, W] float32 for sample [batch, C, H, W] and hidden [batch, L, D], both float32."""
        ...


class MismatchError(Exception):
    """What was to be compared does not belong together. A bug or a tampered file, never a property of the adapter."""


def call(runner: Runner, sample: np.ndarray, timestep: float, hidden: np.ndarray) -> np.ndarray:
    """Run, and hold the runner to its contract: shape and dtype as promised. Non-finite values pass; metrics see them.

    Raises:
        MismatchError: the output has another shape or dtype than the sample.
    """
    output = runner(sample, timestep, hidden)
    if output.shape != sample.shape or output.dtype != np.float32:
        raise MismatchError(
            f"{runner.name} returned {output.dtype}{list(output.shape)}, expected float32{list(sample.shape)}"
        )
    return output
