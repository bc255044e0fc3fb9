"""The forecast from weights alone against what quantizing those weights really does."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qcheck.demo import library
from qcheck.model.arms import Arms
from qcheck.quantize import plan
from qcheck.report.wording import folded
from qcheck.result.inspection import Inspection
from qcheck.spec import recipe, scheme
from qcheck.spec.order import MERGES, Order
from qcheck.spec.scheme import Scheme
from qcheck.tasks import inspect
from tests.conftest import adapted_by, run

RECIPE = recipe.find("general")
NAMES = library.adapters()
FORECAST = [s.name for s in scheme.every() if s.exported and s.smoothing is None]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[Arms, Inspection]:
    path = str(library.ADAPTERS / f"{request.param}.safetensors")
    return adapted_by(request.param), inspect.inspect(path, str(library.PIPELINE), 1.0, scheme.every(), RECIPE)


def _quantized(weight: torch.Tensor, chosen: Scheme) -> torch.Tensor:
    return plan.make_layer(weight, chosen, plan.Input(1.0)).fake(weight)


def _measured(both: Arms, chosen: Scheme, order: Order) -> tuple[float, float]:
    kept = whole = noise = 0.0
    for layer in both.denoiser_layers():
        w, merged = (both.changed[side][f"unet.{layer}"].whole() for side in ("base", "adapted"))  # type: ignore[index]
        if plan.quantizes(layer, w, chosen, RECIPE):
            wanted = merged - w
            q0 = _quantized(w, chosen)
            q1 = _quantized(merged if order == "merge-quantize" else q0 + wanted, chosen)
            kept += float(((q1 - q0) * wanted).sum())
            whole += float(wanted.square().sum())
            noise += float((q1 - q0 - wanted).square().sum())
    return kept / whole, 10 * float(torch.log10(torch.tensor(whole / noise)))


@pytest.mark.parametrize("name", FORECAST)
def test_the_dithered_forecast_is_what_quantizing_does(case: tuple[Arms, Inspection], name: str) -> None:
    both, found = case
    forecast = next(f for f in found.forecasts if (f.scheme, f.order) == (name, "merge-quantize"))
    survival, snr = _measured(both, scheme.find(name), "merge-quantize")
    # where steps are E4M3 too, one that rounds the other way moves its whole block: noise that the forecast leaves out
    held = any(rule.weights.scales for rule in scheme.find(name).rules)
    assert forecast.snr == pytest.approx(snr, abs=1.5 if held else 1.0)
    assert forecast.survival == pytest.approx(survival, abs=0.12)


@pytest.mark.parametrize("name", FORECAST)
def test_the_dead_zone_is_forecast(case: tuple[Arms, Inspection], name: str) -> None:
    both, found = case
    forecast = next(f for f in found.forecasts if (f.scheme, f.order) == (name, "quantize-merge"))
    survival, _ = _measured(both, scheme.find(name), "quantize-merge")
    assert forecast.survival == pytest.approx(survival, abs=0.12)


def test_the_faint_adapter_is_lost_by_merging_into_four_bits() -> None:
    found = inspect.inspect(
        str(library.ADAPTERS / "faint.safetensors"), str(library.PIPELINE), 1.0, [scheme.find("int4-g128")], RECIPE
    )
    survival = {f.order: f.survival for f in found.forecasts}
    assert survival["merge-quantize"] == survival["unmerged"] == 1.0
    assert survival["quantize-merge"] < 0.3


def test_dithered_arrival_is_unbiased_and_its_noise_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    change = 0.3 * torch.randn(8, 200_000, generator=generator)
    phase = torch.rand(8, 200_000, generator=generator)
    step = torch.ones(8, 1)
    arrived = torch.round(change + phase - 0.5) - torch.round(phase - 0.5)
    kept, noise = inspect.arrival(change, step, "merge-quantize")
    assert float((arrived * change).sum()) == pytest.approx(kept, rel=0.02)
    assert float((arrived - change).square().sum()) == pytest.approx(noise, rel=0.02)


def test_without_a_base_ranks_and_scales_are_read() -> None:
    found = inspect.inspect(str(library.ADAPTERS / "flat.safetensors"), None, 1.0, scheme.every(), RECIPE)
    trained = {t["name"]: t for t in json.loads((library.ADAPTERS / "training.json").read_text())}["flat"]
    assert {layer.rank for layer in found.layers} == {trained["rank"]}
    assert {layer.scale for layer in found.layers} == {trained["alpha"] / trained["rank"]}
    assert found.forecasts == []


def test_layers_that_the_base_lacks_are_listed(tmp_path: Path) -> None:
    tensors = {
        k.replace("mid_block", "no_block"): v for k, v in load_file(library.ADAPTERS / "flat.safetensors").items()
    }
    save_file(tensors, tmp_path / "odd.safetensors")
    found = inspect.inspect(str(tmp_path / "odd.safetensors"), str(library.PIPELINE), 1.0, [], RECIPE)
    assert found.unmatched
    assert all("no_block" in name for name in found.unmatched)


@pytest.mark.parametrize("order", MERGES)
def test_the_command_shows_every_order(order: Order) -> None:
    shown = run("inspect", "faint", "--base", "demo", "--scheme", "int4-g128")
    assert shown.exit_code == 0, shown.output
    assert order in shown.stdout
    assert "the order" in shown.stdout
    assert "loses it" in shown.stdout


@pytest.mark.parametrize("width", [80, 60, 200])
def test_layers_are_named_in_full_whatever_the_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = run("inspect", "faint", "--base", "demo", "--scheme", "int4-g128").stdout
    found = inspect.inspect(str(library.ADAPTERS / "faint.safetensors"), str(library.PIPELINE), 1.0, [], RECIPE)
    largest = sorted(found.layers, key=lambda layer: -(layer.relative or 0))[:8]
    table = shown.partition("largest changes")[2].partition("forecast from")[0]
    named = "".join(line.split("  ")[0].strip() for line in table.splitlines())
    assert all(layer.name in named for layer in largest)
    assert max(map(len, table.splitlines())) <= width
    assert "…" not in table


@given(st.text("ab.", min_size=1, max_size=60), st.integers(1, 30))
def test_a_folded_name_is_the_name(name: str, width: int) -> None:
    lines = folded(name, width).split("\n")
    assert "".join(lines) == name
    assert max(map(len, lines)) <= width
    assert folded("down_blocks.0.attn1.to_q", 14) == "down_blocks.0.\nattn1.to_q"


def test_the_command_gives_json() -> None:
    found = json.loads(run("inspect", "faint", "--base", "demo", "--json").stdout)
    assert {forecast["scheme"] for forecast in found["forecasts"]} == set(FORECAST)
    assert len(found["forecasts"]) == len(FORECAST) * len(MERGES)


def test_intruders_are_strong_new_directions_and_not_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.linspace(3.0, 0.1, 64)
    left, right = (torch.linalg.qr(torch.randn(96, 64, generator=generator)).Q for _ in range(2))
    before = left @ torch.diag(spectrum) @ right.t()
    new = torch.nn.functional.normalize(torch.randn(96, 4, generator=generator), dim=0)
    loud = 20 * new @ torch.nn.functional.normalize(torch.randn(96, 4, generator=generator), dim=0).t()
    assert inspect.intruders(before, before) == 0
    assert inspect.intruders(before, before + 1e-3 * torch.randn(96, 96, generator=generator)) == 0
    assert inspect.intruders(before, before + loud) >= 3
    assert inspect.intruders(before.t()[:, :50], (before + loud).t()[:, :50]) >= 3
    huge = torch.empty(1).expand(2049, 2049)
    assert inspect.intruders(huge, huge) is None
    long = torch.randn(2049, 4, generator=generator)
    assert inspect.intruders(long, long) == 0


def test_trigger_words_of_the_file_are_offered(tmp_path: Path) -> None:
    tags = json.dumps({"10_style": {"flat emoji": 40}})
    save_file(load_file(library.ADAPTERS / "flat.safetensors"), tmp_path / "k.safetensors", {"ss_tag_frequency": tags})
    shown = run("inspect", str(tmp_path / "k.safetensors"), "--base", "demo", "--scheme", "int8")
    assert "flat emoji (40)" in shown.stdout
    assert "--trigger" in shown.stdout


def test_the_share_of_codes_that_stay_is_the_theory_s() -> None:
    """Gaussian D of x steps: 1 - x sqrt(2 / pi) under dither, erf(1 / (2 sqrt(2) x)) in the dead zone."""
    generator, x = torch.Generator().manual_seed(6), 0.2
    before = 0.02 * torch.randn(256, 2048, generator=generator)
    before[:, 0] = 0.1  # the largest of every row, which the change leaves alone: steps stay
    change = x * 0.1 / 127 * torch.randn(before.shape, generator=generator)
    change[:, 0] = 0
    found = {seen.order: seen for seen in inspect.arrivals(scheme.find("int8"), before, change)}
    assert found["merge-quantize"].same_codes == pytest.approx(1 - x * (2 / torch.pi) ** 0.5, abs=0.005)
    assert found["quantize-merge"].same_codes == pytest.approx(math.erf(1 / (2 * 2**0.5 * x)), abs=0.005)
    assert found["merge-quantize"].survival == 1
    assert found["quantize-merge"].survival < 0.2


def test_a_large_layer_is_forecast_from_some_of_its_outputs(
    case: tuple[Arms, Inspection], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, found = case
    monkeypatch.setattr(inspect, "_READ", 2**12)
    assert inspect._some_outputs(torch.empty(128, 128)) == slice(0, None, 4)
    assert inspect._some_outputs(torch.empty(64, 64)) == slice(0, None, 1)
    path = str(both.adapters[0].path)
    some = inspect.inspect(path, str(library.PIPELINE), 1.0, scheme.every(), RECIPE)
    for ours, whole in zip(some.forecasts, found.forecasts, strict=True):
        assert (ours.scheme, ours.order, ours.layers) == (whole.scheme, whole.order, whole.layers)
        assert ours.survival == pytest.approx(whole.survival, abs=0.03)
        assert ours.snr == pytest.approx(whole.snr, abs=1.5)
    assert [layer.relative for layer in some.layers] == [layer.relative for layer in found.layers]


def test_a_layer_s_forecasts_are_of_every_scheme_that_quantizes_it(case: tuple[Arms, Inspection]) -> None:
    _, found = case
    layers = {name: sum(seen.layers for seen in found.forecasts if seen.scheme == name) / 3 for name in FORECAST}
    for name in FORECAST:
        orders = [seen.order for layer in found.layers for seen in layer.arrivals if seen.scheme == name]
        assert {order: orders.count(order) for order in MERGES} == dict.fromkeys(MERGES, layers[name])
