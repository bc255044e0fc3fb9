"""What has no limit: it is measured where its library is there, and says why it is not where it is missing."""

import numpy as np
import pytest

from qcheck.diagnose import flip_map, ungated
from qcheck.measure import effect
from qcheck.result.measurement import Measurement

PICTURES = np.random.default_rng(0).random((3, 16, 16, 3))


def _pictures(quantized: np.ndarray, full: np.ndarray) -> list[Measurement]:
    return [
        ungated._measured(one, 0.05) for one in ungated.pixels("base", quantized, full, flip_map.maps(quantized, full))
    ]


def test_equal_pictures_are_equal_and_noise_is_read_in_decibels() -> None:
    pytest.importorskip("skimage")
    same = {m.name: m.value for m in _pictures(PICTURES, PICTURES)}
    assert same["psnr"] == 200
    assert same["ssim"] == pytest.approx(1)
    noisy = {m.name: m for m in _pictures(PICTURES + 0.1, PICTURES)}
    assert noisy["psnr"].value == pytest.approx(20)
    assert noisy["ssim"].value < 1  # type: ignore[operator]


def test_pictures_too_small_for_the_window_are_not_measured() -> None:
    pytest.importorskip("skimage")
    found = {m.name: m for m in _pictures(PICTURES[:, :8], PICTURES[:, :8])}
    assert found["ssim"].value is None
    assert "11 pixels" in found["ssim"].where


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ungated, "_lacking", lambda *modules: f"needs {' and '.join(modules)}")
    found = {m.name: m for m in _pictures(PICTURES, PICTURES)}
    assert [m.value for m in found.values() if m.name != "flip"] == [None, None]
    assert found["psnr"].where == "needs skimage: pip install scikit-image"


def test_the_worst_prompt_is_named() -> None:
    rng = np.random.default_rng(0)
    f0, f1 = rng.standard_normal((2, 4, 2, 1, 4, 4))
    size = np.array([1, 1, 3, 3])[:, None, None, None, None]
    noise = rng.standard_normal(f0.shape)
    e = effect.energies(f0, f1, f0 + 0.1 * noise, f1 + 0.1 * size * noise)
    found = ungated.worst_prompt(e, np.zeros(2), ["red", "blue", "green", "green"])
    assert found.where == "green"
    assert found.value == pytest.approx(20 * np.log10(3))
    e.error1[1] = np.nan
    assert np.isnan(ungated.worst_prompt(e, np.zeros(2), ["red", "blue", "green", "green"]).value)  # type: ignore[arg-type]


def test_flip_of_a_large_picture_is_that_of_the_shrunk_one() -> None:
    pytest.importorskip("flip_evaluator")
    small = np.random.default_rng(0).random((2, 1, 48, 384, 3))
    large = small.repeat(2, 2).repeat(2, 3)
    values = [ungated.flip("adapted", flip_map.maps(*pair)).values for pair in (small, large)]  # type: ignore[union-attr]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert values[0] > 0.1
    assert ungated.flip("adapted", flip_map.maps(small[0], small[0])).values == 0  # type: ignore[union-attr]
    assert np.isnan(ungated.flip("adapted", flip_map.maps(small[0] * np.nan, small[0])).values)  # type: ignore[union-attr]


def test_a_flip_error_map_goes_from_black_to_pale_yellow() -> None:
    pytest.importorskip("flip_evaluator")
    black = np.zeros((48, 64, 3))
    white = black.copy()
    white[:, 32:] = 1
    levels = flip_map.compare(white, black).colours * 255
    assert levels.shape == (48, 64, 3)
    assert levels[24, 0] == pytest.approx([0, 0, 4], abs=1)
    assert levels[24, 63] == pytest.approx([252, 253, 191], abs=20)
    assert np.isnan(flip_map.compare(black * np.nan, black).colours).all()
    assert np.isnan(flip_map.compare(black, black * np.nan).mean)


def test_without_its_package_there_is_no_flip_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flip_map.importlib.util, "find_spec", lambda _: None)
    told = ungated.flip("base", flip_map.maps(PICTURES, PICTURES))
    assert isinstance(told, Measurement)
    assert told.where == "needs flip_evaluator: install qcheck[judge]"
