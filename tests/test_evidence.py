"""What a report shows beyond its numbers is what the traces and weights hold."""

import numpy as np
import pytest
import torch

from qcheck.diagnose import arrival, curves
from qcheck.measure import spectrum
from qcheck.result.evidence import Evidence
from qcheck.spec import scheme
from tests.conftest import Finished


@pytest.fixture(scope="module")
def stored(finished: Finished) -> Evidence:
    return Evidence.model_validate_json((finished.folder / "evidence.json").read_bytes())


def test_a_spread_is_over_probes_at_each_place() -> None:
    found = curves.spread(np.array([[1.0, 5.0], [3.0, np.nan]]))
    assert (found.mean[0], found.low[0], found.high[0]) == (2.0, 1.0, 3.0)
    assert np.isnan([found.mean[1], found.low[1], found.high[1]]).all()


def test_a_histogram_counts_every_value_once_between_the_ends_of_full_precision() -> None:
    full, far = np.linspace(-1, 1, 64).reshape(8, 8), np.full((8, 8), 9.0)
    found = curves.histogram(2, {"f0": [full], "f1": [full], "q1": [far]})
    assert (found.channel, found.low, found.high) == (2, -1.0, 1.0)
    assert all(sum(shares) == pytest.approx(1) for shares in found.shares.values())
    assert found.shares["f0"] == pytest.approx([1 / curves.BINS] * curves.BINS)
    assert found.shares["q1"][-1] == 1


def test_a_latent_without_any_spread_has_a_histogram_too() -> None:
    flat = np.zeros((4, 4))
    assert sum(curves.histogram(0, {"f0": [flat], "f1": [flat]}).shares["f0"]) == 1


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (9, 9)])
def test_every_ring_of_a_spectrum_has_its_frequency(shape: tuple[int, int]) -> None:
    latent = np.random.default_rng(0).normal(size=(2, *shape))
    found = curves.frequencies(shape)
    assert len(found) == len(spectrum.rings(latent))
    assert found[-1] <= 0.5


def test_a_change_of_whole_steps_arrives_and_one_below_half_a_step_does_not() -> None:
    int8 = scheme.find("int8")
    steps = torch.randint(-100, 100, (4, 8), generator=torch.Generator().manual_seed(0)).float()
    steps[:, 0] = 127.0
    before = steps / 1024
    whole, small = torch.zeros_like(before), torch.zeros_like(before)
    whole[:, 1:] = 1 / 1024
    small[:, 1:] = 0.3 / 1024
    assert arrival.arrival("a", before, before + whole, int8, "merge-quantize").survival == pytest.approx(1, abs=1e-3)
    lost = arrival.arrival("a", before, before + small, int8, "quantize-merge")
    assert lost.survival == pytest.approx(0, abs=1e-3)
    assert lost.snr == pytest.approx(0, abs=0.1)


def test_a_check_stores_what_its_own_report_says(stored: Evidence, finished: Finished) -> None:
    case, seen = finished.report["cases"][0], stored.cases[0]
    sqnr = {along.arm: along.sqnr.mean for along in seen.along}
    assert sqnr == {arm: pytest.approx(case["stratum_sqnr"][arm]) for arm in ("base", "adapted")}
    kept = next(m["value"] for m in case["measurements"] if m["name"] == "effect_survival")
    assert np.mean(seen.survivals) == pytest.approx(kept)
    assert len(stored.strata) == len(finished.report["probes"]["timesteps"])
    assert set(seen.spectra) == {"f0", "f1", "q0", "q1", "e0", "e1"}
    assert all(len(levels) == len(stored.frequencies) for levels in seen.spectra.values())
    assert seen.spectra["e1"][0] < seen.spectra["f1"][0]
    assert len(seen.arrivals) > 100
    named = [name for p in seen.pictures for name in (*p.reference, *p.quantized, *p.difference, *p.flip)]
    assert {f"pictures/{path.name}" for path in (finished.folder / "pictures").iterdir()} == set(named)
    assert sum(path.stat().st_size for path in (finished.folder / "pictures").iterdir()) < 400_000


def test_a_check_writes_its_page(finished: Finished) -> None:
    text = (finished.folder / "report.html").read_text()
    assert "survives" in text
    assert "http://" not in text.split('<script type="application/json"')[0]
    assert str(finished.folder / "report.html") in finished.result.stdout
