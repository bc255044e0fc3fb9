"""Streaming ranges: counts that no order of batches changes, and clips against published optima."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcheck.calibration import histogram as ranges
from qcheck.calibration.histogram import BINS, Histogram, LayerInputs
from qcheck.core.errors import UserError
from qcheck.model.inputs import observed
from qcheck.quantize import formats, plan
from qcheck.spec import recipe, scheme
from tests import rivals
from tests.conftest import Prepared

INT8, INT4 = formats.find("int8"), formats.find("int4")


def seen_of(batches: Iterable[np.ndarray]) -> LayerInputs:
    histogram = Histogram()
    for batch in batches:
        histogram.see("layer", torch.from_numpy(batch.astype(np.float32)))
        histogram.commit()
    return histogram.seen()["layer"]


def drawn(law: str, count: int = 1_000_000) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.standard_normal(count) if law == "gauss" else rng.laplace(scale=2**-0.5, size=count)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.integers(0, 2**31))
def test_every_value_is_counted_whatever_order_the_batches_come_in(sizes: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [size * rng.standard_normal(500) for size in sizes]
    one, other = seen_of(batches), seen_of(batches[::-1])
    assert one.counts.sum() == other.counts.sum() == 500 * len(batches)
    assert one.absmax == other.absmax == np.float32(np.abs(np.concatenate(batches)).max())
    assert one.top >= one.absmax


def test_a_large_input_is_sampled_over_all_its_channels() -> None:
    """One of 64 channels holds all that is not zero; a stride of 32 would have met it in half of all looks or never."""
    inputs = np.zeros((4096, 64))
    inputs[:, 5] = 1
    seen = seen_of([inputs])
    assert seen.absmax == 1
    assert seen.counts[:, 1:].sum() / seen.counts.sum() == pytest.approx(1 / 64, rel=0.3)


# Mean-square optimal clip in standard deviations, from the project's notes (1 M values).
@pytest.mark.parametrize(
    ("law", "name", "expected"),
    [("gauss", "int8", 3.85), ("gauss", "int4", 2.47), ("laplace", "int8", 6.69), ("laplace", "int4", 3.39)],
)
def test_least_squares_cuts_where_the_optimum_is(law: str, name: str, expected: float) -> None:
    seen = seen_of(np.split(drawn(law), 200))
    assert seen.clip("mse", formats.find(name), 99.99) == pytest.approx(expected, rel=0.05)  # the optimum is flat


def test_percentile_is_that_of_the_values() -> None:
    values = drawn("laplace")
    seen = seen_of(np.split(values, 200))
    width = seen.top / BINS
    assert seen.clip("percentile", INT8, 99.9) == pytest.approx(np.percentile(np.abs(values), 99.9), abs=width)


@pytest.mark.parametrize(("law", "tolerance"), [("gauss", 0.25), ("laplace", 1e-6)])
def test_entropy_cuts_where_modelopt_does_on_the_same_counts(law: str, tolerance: float) -> None:
    """A Gaussian's divergence is flat: 2 % more of it between 4.3 and 5.9 standard deviations."""
    seen = seen_of(np.split(drawn(law), 200))
    edges = np.linspace(0, seen.top, BINS + 1)
    counts = seen.counts[0].astype(np.int64)
    theirs = float(rivals.entropy(counts, edges, num_bits=8, unsigned=False, stride=8, start_bin=128))
    assert seen.clip("entropy", INT8, 99.99) == pytest.approx(theirs, rel=tolerance)


def test_entropy_of_a_float_format_is_an_error_with_the_other_methods() -> None:
    with pytest.raises(UserError, match="float8_e4m3") as caught:
        seen_of([drawn("gauss", 1000)]).clip("entropy", formats.find("float8_e4m3"), 99.99)
    assert "percentile" in caught.value.fix


def test_no_method_cuts_beyond_the_maximum_or_to_nothing() -> None:
    seen = seen_of([drawn("gauss", 1000)])
    for method in recipe.METHODS:
        assert 0 < seen.clip(method, INT8, 99.99) <= seen.absmax
    assert seen.clip("max", INT4, 99.99) == seen.absmax


def of_strata(*strata: np.ndarray) -> LayerInputs:
    histogram = Histogram(len(strata))
    for place, values in enumerate(strata):
        histogram.enter(place)
        histogram.see("layer", torch.from_numpy(values.astype(np.float32)))
        histogram.commit()
    return histogram.seen()["layer"]


def test_strata_are_told_apart_and_their_largest_cut_serves_them_all() -> None:
    quiet, loud = drawn("laplace", 8000), 4 * drawn("laplace", 8000)
    both = of_strata(quiet, loud)
    assert both.counts.sum(1).tolist() == [8000, 8000]
    width = both.top / BINS
    for place, values in enumerate((quiet, loud)):
        alone = LayerInputs(both.absmax, both.counts[place : place + 1], both.top)
        assert alone.clip("percentile", INT8, 99) == pytest.approx(np.percentile(np.abs(values), 99), abs=2 * width)
    assert both.clip("percentile", INT8, 99, "max") == alone.clip("percentile", INT8, 99)
    assert both.clip("percentile", INT8, 99) < both.clip("percentile", INT8, 99, "max")
    assert both.clip("max", INT8, 99, "mse") == both.absmax


def test_the_cut_of_least_error_weighs_every_stratum_by_its_own_energy() -> None:
    """A stratum a hundred times as loud would rule a sum of plain energies; shares let the quiet ones speak."""
    quiet, loud = drawn("gauss", 8000), 100 * drawn("gauss", 8000)
    many = of_strata(quiet, quiet, quiet, loud)
    cuts = [LayerInputs(many.absmax, row[None], many.top).clip("mse", INT4, 99.99) for row in many.counts]
    found = many.clip("mse", INT4, 99.99, "mse")
    assert found in cuts
    assert found < many.clip("mse", INT4, 99.99, "max") / 50  # which rounds three quiet strata to nothing


def test_one_stratum_is_cut_alike_however_it_is_merged() -> None:
    seen = seen_of([drawn("laplace", 8000)])
    for method in recipe.METHODS:
        assert len({seen.clip(method, INT8, 99.9, merge) for merge in recipe.MERGES}) == 1


def test_what_was_seen_survives_saving(tmp_path: object) -> None:
    found = {"base": {"layer": seen_of([drawn("gauss", 1000)])}}
    ranges.save(found, tmp_path)  # type: ignore[arg-type]
    back = ranges.load(tmp_path, "base")["layer"]  # type: ignore[arg-type]
    assert (back.absmax, back.top) == (found["base"]["layer"].absmax, found["base"]["layer"].top)
    assert np.array_equal(back.counts, found["base"]["layer"].counts)


def test_layers_that_share_an_input_share_the_look_but_not_the_counts() -> None:
    class Model(torch.nn.ModuleDict):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> None:
            self["a"](x)
            self["b"](x)
            self["b"](y)

    model, seen = Model({"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4)}), Histogram()
    with observed(model, dict(model.items()), seen), torch.no_grad():
        model(torch.ones(3, 4), torch.full((3, 4), 2.0))
    found = seen.seen()
    assert (found["a"].absmax, found["b"].absmax) == (1, 2)
    assert (found["a"].counts.sum(), found["b"].counts.sum()) == (12, 24)


def test_ranges_are_modelopts_on_the_same_model_and_data(prepared: Prepared) -> None:
    """INT8 per channel: weight ranges exactly, input ranges to float rounding, over every layer of the denoiser."""
    x, t, h = (torch.from_numpy(prepared.inputs[k]) for k in ("sample", "timestep", "encoder_hidden_states"))
    theirs = rivals.quantized(prepared.unet, "INT8_DEFAULT_CFG", lambda model: model(x, t, h))
    chosen = scheme.find("int8")
    compared = 0
    for layer, most in prepared.ranges.items():
        module = theirs.get_submodule(layer)
        weight = prepared.state[f"{layer}.weight"]
        if not module.weight_quantizer.is_enabled:
            continue
        rule = chosen.rule("Linear" if weight.dim() == 2 else "Conv2d")
        assert rule is not None
        ours = plan.absmax(weight, rule.weights)
        assert torch.equal(module.weight_quantizer.amax.flatten(), ours), layer
        assert most.cut == pytest.approx(float(module.input_quantizer.amax), rel=1e-5), layer
        compared += 1
    assert compared > 150
