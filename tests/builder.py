"""Real builds in tests, for the demo denoiser's shapes."""

import importlib.util
from pathlib import Path

import pytest

from qcheck.build import builder
from qcheck.build.builder import Builder, Built

SHAPES = {
    "sample": ([1, 4, 16, 16], [2, 4, 16, 16], [2, 4, 16, 16]),
    "encoder_hidden_states": ([1, 16, 128], [2, 16, 128], [2, 16, 128]),
}
present = importlib.util.find_spec(builder.RTX) is not None
needed = pytest.mark.skipif(not present, reason="tensorrt-rtx is not installed here")


def build(model: Path, capability: str) -> Built:
    """Compile a denoiser; the engine lies beside it."""
    return builder.build(Builder(builder.RTX, capability), model, SHAPES, model.with_suffix(".engine"))
