"""Calibration is held out of the probes, whatever numbers a recipe gives."""

import tracemalloc

import pytest

from qcheck.core.errors import UserError
from qcheck.spec import probe, recipe
from qcheck.spec.recipe import Recipe

PROBES = probe.find("emoji")
PLAIN = recipe.find("emoji")


def _with(**changed: int) -> Recipe:
    return PLAIN.model_copy(update=changed)


@pytest.mark.parametrize(
    ("first", "overlap"),
    [(-PLAIN.samples, False), (-PLAIN.samples + 1, True), (0, True), (len(PROBES.prompts) - 1, True)],
)
def test_seeds_of_calibration_and_probes_do_not_overlap(first: int, overlap: bool) -> None:
    """``first`` is the calibration's seed less the probes'; both count upwards."""
    probes = PROBES.model_copy(update={"seed": 1000})
    if overlap:
        with pytest.raises(UserError, match="overlap the probes' from 1000"):
            recipe.calibration(_with(seed=1000 + first), probes)
    else:
        assert recipe.calibration(_with(seed=1000 + first), probes).seed == 1000 + first
    assert recipe.calibration(_with(seed=1000 + len(PROBES.prompts)), probes).seed == 1000 + len(PROBES.prompts)


def test_a_number_of_samples_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="asks for 1000000 samples"):
            recipe.calibration(_with(samples=1_000_000, seed=10**6), PROBES)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
