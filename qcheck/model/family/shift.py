"""Times of flow-matching solvers: the shift by the number of tokens of the picture, and which solvers take sigmas."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np


def shift(config: Mapping[str, Any], tokens: int) -> float:
    """``mu`` on the line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift).

    The formula and the defaults are those of diffusers' FluxPipeline.
    """
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (many - few)
    return float(low + slope * (tokens - few))


def empirical_shift(tokens: int, steps: int) -> float:
    """``mu`` from the number of tokens and of steps, a fit to two lines: that of 10 steps and that of 200.

    The formula and its numbers are those of diffusers' Flux2KleinPipeline.
    """
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    slope = (many - few) / 190
    return many + slope * (steps - 200)


def equal_sigmas(steps: int) -> dict[str, Any]:
    """The setting of a solver's sigmas in equal steps from 1."""
    return {"sigmas": np.linspace(1.0, 1 / steps, steps)}


def takes_sigmas(scheduler: Any) -> str | None:
    """None for a solver that takes sigmas, as its pipeline gives them; else the solver in words."""
    if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        return None
    return f"a {type(scheduler).__name__}, which takes no sigmas, as its solver"
