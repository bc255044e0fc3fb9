"""Alignment of a change with its layer's inputs: closed forms, and a real adapter's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qcheck.diagnose import alignment
from qcheck.model.inputs import observed
from qcheck.result.evidence import Evidence
from tests.conftest import Finished


def _drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 5), (7, 6)),
        (nn.Conv2d(6, 4, 3, stride=2, padding=1), (2, 6, 8, 8)),
        (nn.Conv2d(6, 4, 3, padding=1, groups=2), (2, 6, 5, 5)),
    ],
)
def test_random_changes_make_what_is_expected_of_them(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs, weight = _drawn(*shape), layer.get_parameter("weight")
    ratios = []
    for seed in range(300):
        change = _drawn(*weight.shape, seed=seed)
        made, expected = alignment.energies(layer, change, inputs).tolist()
        ratios.append(made / expected)
    assert np.mean(ratios) == pytest.approx(1, abs=4 * np.std(ratios) / np.sqrt(len(ratios)))


@given(scale=st.floats(1e-3, 1e3), factor=st.floats(1e-3, 1e3))
def test_neither_the_size_of_the_change_nor_that_of_the_inputs_matters(scale: float, factor: float) -> None:
    layer, change, inputs = nn.Linear(6, 5), _drawn(5, 6), _drawn(3, 6, seed=1)
    made, expected = alignment.energies(layer, change, inputs).tolist()
    other = alignment.energies(layer, scale * change, factor * inputs).tolist()
    assert other[0] / other[1] == pytest.approx(made / expected, rel=1e-4)


def test_a_change_that_reads_only_what_is_there_is_aligned_by_the_number_of_inputs() -> None:
    layer, inputs = nn.Linear(32, 5), _drawn(1, 32)
    made, expected = alignment.energies(layer, torch.outer(_drawn(5), inputs[0]), inputs).tolist()
    assert made / expected == pytest.approx(32, rel=1e-4)


def test_every_forward_counts_and_then_nobody_watches() -> None:
    layer, inputs = nn.Linear(6, 5), _drawn(3, 6)
    once = alignment.energies(layer, _drawn(5, 6), inputs)
    seen = alignment.Energies({"a": layer}, {"a": _drawn(5, 6)})
    with observed(layer, {"a": layer}, seen):
        layer(inputs)
        layer(inputs)
    layer(inputs)
    assert seen.sums["a"].tolist() == pytest.approx((2 * once).tolist())


def test_a_trained_adapter_is_aligned_with_what_its_layers_read(finished: Finished) -> None:
    found = Evidence.model_validate_json((finished.folder / "evidence.json").read_text())
    assert {one.layer for one in found.cases[0].arrivals} <= set(found.alignment)
    assert np.isfinite(list(found.alignment.values())).all()
    assert np.median(list(found.alignment.values())) > 3
