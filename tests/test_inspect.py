"""The forecast from weights alone against what quantizing those weights really does, and the words for it."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import qcheck
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.diagnose import change as changes
from qcheck.model.arms import Arms
from qcheck.quantize import forecast, plan
from qcheck.quantize.forecast import Rows
from qcheck.report.wording import folded
from qcheck.result.inspection import Inspection, Refusal
from qcheck.spec import recipe, scheme
from qcheck.spec.fate import fates
from qcheck.spec.order import MERGES, Order
from qcheck.spec.scheme import Scheme
from qcheck.tasks import inspect
from tests.conftest import adapted_by, run

RECIPE = recipe.find("general")
NAMES = library.adapters()
FORECAST = [s.name for s in scheme.every() if s.exported and s.smoothing is None]
PIPELINE = str(library.PIPELINE)


def _path(name: str) -> str:
    return str(library.ADAPTERS / f"{name}.safetensors")


def _asked(
    *names: str, orders: Sequence[Order] = MERGES, weight: float = 1.0, details: bool = False
) -> inspect.Question:
    return inspect.Question(weight, [scheme.find(name) for name in names], orders, RECIPE, details)


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[Arms, Inspection]:
    return adapted_by(request.param), inspect.inspect(_path(request.param), PIPELINE, _asked(*FORECAST))


def _holds_steps(name: str) -> bool:
    """Whether a scheme stores steps in a number format of their own."""
    return any(rule.weights.scales for rule in scheme.find(name).rules)


def _quantized(weight: torch.Tensor, chosen: Scheme) -> torch.Tensor:
    return plan.make_layer(weight, chosen, plan.Input(1.0)).fake(weight)


def _measured(both: Arms, chosen: Scheme, order: Order) -> tuple[float, float]:
    kept = whole = noise = 0.0
    for layer in both.denoiser_layers():
        w, merged = (both.changed[side][f"unet.{layer}"].whole() for side in ("base", "adapted"))  # type: ignore[index]
        wanted = arrived = merged - w
        if plan.quantizes(layer, w, chosen, RECIPE):
            q0 = _quantized(w, chosen)
            q1 = _quantized(merged if order == "merge-quantize" else q0 + wanted, chosen)
            arrived = q1 - q0
        kept += float((arrived * wanted).sum())
        whole += float(wanted.square().sum())
        noise += float((arrived - wanted).square().sum())
    return kept / whole, 10 * float(torch.log10(torch.tensor(whole / noise)))


@pytest.mark.parametrize("name", FORECAST)
def test_the_dithered_forecast_is_what_quantizing_does(case: tuple[Arms, Inspection], name: str) -> None:
    both, found = case
    seen = next(f for f in found.forecasts if (f.scheme, f.order) == (name, "merge-quantize"))
    survival, snr = _measured(both, scheme.find(name), "merge-quantize")
    # where steps are E4M3 too, one that rounds the other way moves its whole block: noise that the forecast leaves out
    assert seen.snr == pytest.approx(snr, abs=1.5 if _holds_steps(name) else 1.0)
    assert seen.survival == pytest.approx(survival, abs=0.12)


@pytest.mark.parametrize("name", FORECAST)
def test_the_dead_zone_is_forecast(case: tuple[Arms, Inspection], name: str) -> None:
    both, found = case
    seen = next(f for f in found.forecasts if (f.scheme, f.order) == (name, "quantize-merge"))
    survival, _ = _measured(both, scheme.find(name), "quantize-merge")
    assert seen.survival == pytest.approx(survival, abs=0.12)


@pytest.mark.parametrize(("order", "fate"), [("merge-quantize", "arrives"), ("quantize-merge", "does nothing")])
def test_the_faint_adapter_is_lost_by_merging_into_four_bits(order: Order, fate: str) -> None:
    (seen,) = inspect.inspect(_path("faint"), PIPELINE, _asked("int4-g128", orders=[order])).forecasts
    assert (seen.order, seen.fate) == (order, fate)
    assert ("rounding takes nothing" in seen.reason) == (fate == "arrives")
    assert ("98% of its change" in seen.reason) == (fate == "does nothing")


def test_the_words_go_by_the_limits() -> None:
    limits = fates()
    assert [limits.of(limit) for limit in limits.limits] == ["loses it", "partly", "arrives"]
    assert [limits.of(limit - 1e-9) for limit in limits.limits] == ["does nothing", "loses it", "partly"]


def test_dithered_arrival_is_unbiased_and_its_noise_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    change = 0.3 * torch.randn(8, 200_000, generator=generator)
    phase = torch.rand(8, 200_000, generator=generator)
    step = torch.ones(8, 1)
    arrived = torch.round(change + phase - 0.5) - torch.round(phase - 0.5)
    kept, noise = forecast.arrival(change, step, "before")
    assert torch.allclose((arrived * change).sum(1), kept, rtol=0.02)
    assert torch.allclose((arrived - change).square().sum(1), noise, rtol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_some_outputs_tell_as_all_do_within_the_stated_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = _path(name), _asked("int8", "int4-g128", "fp8", "nvfp4", "nf4-g64", weight=0.4)
    monkeypatch.setattr(inspect, "_COUNTS", (None,))
    whole = inspect.inspect(path, PIPELINE, asked).forecasts
    monkeypatch.setattr(inspect, "_COUNTS", (1024,))
    some = inspect.inspect(path, PIPELINE, asked).forecasts
    assert all(one.error == 0 for one in whole)
    assert any(one.error > 0 for one in some)
    for ours, all_of_it in zip(some, whole, strict=True):
        assert (ours.scheme, ours.order, ours.layers) == (all_of_it.scheme, all_of_it.order, all_of_it.layers)
        beyond = 2e-3 if _holds_steps(ours.scheme) else 1e-6  # whose factor is that of what was read
        assert abs(ours.survival - all_of_it.survival) <= 3.5 * ours.error + beyond, ours
        assert ours.snr == pytest.approx(all_of_it.snr, abs=1.0)


def test_the_stated_error_is_that_of_drawing_other_outputs() -> None:
    generator = torch.Generator().manual_seed(4)
    before = torch.randn(4096, 64, generator=generator)
    change = torch.rand(4096, 1, generator=generator) * torch.randn(4096, 64, generator=generator) * 0.05
    drawn = []
    for seed in range(200):
        places = torch.randperm(4096, generator=torch.Generator().manual_seed(seed))[:64]
        rows = Rows(before[places], change[places], 4096)
        drawn.append(forecast.Total(layers=[forecast.of_rows(scheme.find("int8"), "quantize-merge", rows)]))
    spread = torch.tensor([total.survival for total in drawn]).std()
    stated = torch.tensor([total.error for total in drawn]).mean()
    assert float(stated / spread) == pytest.approx(1, abs=0.15)


def test_more_is_read_where_a_limit_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _asked("int4-g128", orders=["quantize-merge"], weight=3.0)
    monkeypatch.setattr(inspect, "_COUNTS", (256, None))
    monkeypatch.setattr(inspect, "_SURE", 1e9)
    assert inspect.inspect(_path("faint"), PIPELINE, asked).forecasts[0].error == 0
    monkeypatch.setattr(inspect, "_SURE", 0)
    assert inspect.inspect(_path("faint"), PIPELINE, asked).forecasts[0].error > 0


def test_one_step_of_a_whole_weight_is_that_of_its_largest_one(tmp_path: Path) -> None:
    before = 0.01 * torch.randn(64, 2048, generator=torch.Generator().manual_seed(2))
    before[33, 7] = 1.0
    chosen = scheme.find("fp8")
    rows = Rows(before[::16], torch.zeros(4, 2048), 64, before[33:34])
    assert torch.equal(
        rows.grid(chosen, rows.before).step, plan.make_layer(before, chosen, plan.Input(1.0)).weight.step
    )
    assert len(rows.grid(scheme.find("int8"), rows.before).step) == 4


def test_without_a_base_ranks_scales_and_zeros_are_read(tmp_path: Path) -> None:
    found = inspect.inspect(_path("flat"), None, _asked(*FORECAST))
    trained = {t["name"]: t for t in json.loads((library.ADAPTERS / "training.json").read_text())}["flat"]
    assert {layer.rank for layer in found.layers} == {trained["rank"]}
    assert {layer.scale for layer in found.layers} == {trained["alpha"] / trained["rank"]}
    assert (found.forecasts, found.silent) == ([], None)
    zeros = {k: 0 * v if "lora_B" in k else v for k, v in load_file(_path("flat")).items()}
    save_file(zeros, tmp_path / "zero.safetensors")
    assert run("inspect", str(tmp_path / "zero.safetensors")).exit_code == 1
    silent = inspect.inspect(str(tmp_path / "zero.safetensors"), None, _asked())
    assert "zero" in (silent.silent or "")
    assert all(layer.idle for layer in silent.layers)


def _renamed(tmp_path: Path, old: str, new: str) -> Path:
    path = tmp_path / "odd.safetensors"
    save_file({k.replace(old, new): v for k, v in load_file(_path("flat")).items()}, path)
    return path


def test_layers_that_the_base_lacks_are_listed_and_count_as_lost(tmp_path: Path) -> None:
    path = _renamed(tmp_path, "mid_block", "no_block")
    found = inspect.inspect(str(path), PIPELINE, _asked("int8"))
    assert found.unmatched
    assert all("no_block" in name for name in found.unmatched)
    factors = load_file(path)
    pairs = {k.removesuffix("lora_A.weight"): v for k, v in factors.items() if k.endswith("lora_A.weight")}
    products = {k: factors[f"{k}lora_B.weight"].flatten(1) @ v.flatten(1) for k, v in pairs.items()}
    scales = {f"{layer.name}.": layer.scale for layer in found.layers}
    energies = {k: float((scales[k] * v).square().sum()) for k, v in products.items()}
    here = sum(v for k, v in energies.items() if "no_block" not in k) / sum(energies.values())
    beside = next(f for f in found.forecasts if f.order == "unmerged")
    assert beside.survival == pytest.approx(here, abs=2e-3)
    assert f"{len(found.unmatched)} of its {len(found.layers)} layers are not in this base" in beside.reason


@pytest.mark.parametrize("order", MERGES)
def test_a_file_without_a_layer_of_this_base_does_nothing(order: Order, tmp_path: Path) -> None:
    path = _renamed(tmp_path, "unet.", "unet.other.")
    found = inspect.inspect(str(path), PIPELINE, _asked("int8", orders=[order]))
    assert "is in this base" in (found.silent or "")
    assert [seen.fate for seen in found.forecasts] == ["does nothing"]
    shown = run("inspect", str(path), "--base", "demo", "--scheme", "int8", "--order", order)
    assert shown.exit_code == 1
    assert "does nothing" in shown.stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--scheme", "int4-g128", "--order", "merge-quantize"), 0),
        (("--scheme", "int4-g128", "--order", "quantize-merge"), 1),
        (("--scheme", "int4-g128", "--order", "quantize-merge", "--order", "unmerged"), 1),
        (("--scheme", "int4-g128"), 0),
        (("--weight", "0", "--scheme", "int8"), 1),
        (("--scheme", "int4-g128", "--order", "quantize-merge", "--weight", "40"), 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_exit_code_says_whether_it_arrives(words: tuple[str, ...], code: int) -> None:
    assert run("inspect", "faint", "--base", "demo", *words).exit_code == code


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """One adapter arrives in four bits whatever the order, one is lost, and one file is no adapter."""
    folder = tmp_path / "loras"
    folder.mkdir()
    for name in ("flat", "faint"):
        (folder / f"{name}.safetensors").write_bytes(Path(_path(name)).read_bytes())
    (folder / "broken.safetensors").write_bytes(b"no safetensors")
    (folder / "notes.txt").write_text("no adapter")
    return folder


LOST = ("--base", "demo", "--scheme", "int4-g128", "--order", "quantize-merge")


def test_a_folder_goes_on_after_a_bad_file_and_the_exit_code_tells(loras: Path) -> None:
    found = run("inspect", str(loras), *LOST, "--json")
    assert found.exit_code == 2
    broken, faint, flat = map(json.loads, found.stdout.splitlines())
    assert Refusal.model_validate(broken).adapter.endswith("broken.safetensors")
    assert "not a whole safetensors file" in broken["error"]
    assert [seen["fate"] for seen in (*faint["forecasts"], *flat["forecasts"])] == ["does nothing", "arrives"]
    shown = run("inspect", str(loras), *LOST)
    assert shown.exit_code == 2
    for name in ("broken", "faint", "flat"):
        assert f"{name}.safe" in shown.stdout
    (loras / "broken.safetensors").unlink()
    assert run("inspect", str(loras), *LOST).exit_code == 1
    assert run("inspect", f"{loras}/f*.safetensors", *LOST[:4], "--order", "unmerged").exit_code == 0


def test_several_names_are_several_lines() -> None:
    found = run("inspect", "flat", "faint", *LOST, "--json")
    assert [Path(json.loads(line)["adapter"]).stem for line in found.stdout.splitlines()] == ["flat", "faint"]


def test_what_is_wrong_for_every_file_is_one_error(loras: Path) -> None:
    for words in (
        (str(loras), "--base", "nowhere"),
        (str(loras), "--scheme", "int9"),
        (f"{loras}/*.no", "--base", "demo"),
    ):
        found = run("inspect", *words)
        assert isinstance(found.exception, UserError)
        assert found.stdout == ""


def test_the_python_function_of_many_gives_what_that_of_one_gives(loras: Path) -> None:
    each = list(qcheck.inspect_each([loras], "demo", scheme="int8", order="unmerged"))
    assert [type(one) for one in each] == [Refusal, Inspection, Inspection]
    assert each[1] == qcheck.inspect(loras / "faint.safetensors", "demo", scheme="int8", order="unmerged")


def test_inspect_needs_no_model_library() -> None:
    code = """import sys
from qcheck.tasks import inspect
assert not {"diffusers", "transformers", "peft", "onnx"} & set(sys.modules), sorted(sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("order", MERGES)
def test_the_command_shows_every_order(order: Order) -> None:
    shown = run("inspect", "faint", "--base", "demo", "--scheme", "int4-g128")
    assert shown.exit_code == 0, shown.output
    assert order in shown.stdout
    assert "does nothing" in shown.stdout
    assert "limits: set on" in shown.stdout
    titles = [line.split() for line in shown.stdout.partition("weights alone")[2].splitlines() if line.strip()][:2]
    assert titles == [["forecast", "forecast"], ["scheme", "order", "fate", "survival", "why"]]


@pytest.mark.parametrize("width", [80, 60, 200])
def test_layers_are_named_in_full_whatever_the_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = run("inspect", "faint", "--base", "demo", "--scheme", "int4-g128", "--details").stdout
    found = inspect.inspect(_path("faint"), PIPELINE, _asked())
    largest = sorted(found.layers, key=lambda layer: -(layer.relative or 0))[:8]
    table = shown.partition("largest changes")[2].partition("what arrives")[0]
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
    assert Inspection.model_validate_json(json.dumps(found)).forecasts
    assert {forecast["scheme"] for forecast in found["forecasts"]} == set(FORECAST)
    assert len(found["forecasts"]) == len(FORECAST) * len(MERGES)


def test_intruders_are_strong_new_directions_and_not_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.linspace(3.0, 0.1, 64)
    left, right = (torch.linalg.qr(torch.randn(96, 64, generator=generator)).Q for _ in range(2))
    before = left @ torch.diag(spectrum) @ right.t()
    new = torch.nn.functional.normalize(torch.randn(96, 4, generator=generator), dim=0)
    loud = 20 * new @ torch.nn.functional.normalize(torch.randn(96, 4, generator=generator), dim=0).t()
    assert changes.intruders(before, before) == 0
    assert changes.intruders(before, before + 1e-3 * torch.randn(96, 96, generator=generator)) == 0
    assert changes.intruders(before, before + loud) >= 3
    assert changes.intruders(before.t()[:, :50], (before + loud).t()[:, :50]) >= 3
    huge = torch.empty(1).expand(2049, 2049)
    assert changes.intruders(huge, huge) is None
    long = torch.randn(2049, 4, generator=generator)
    assert changes.intruders(long, long) == 0


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
    found = {seen.order: seen for seen in changes.arrivals(scheme.find("int8"), MERGES, Rows(before, change, 256))}
    assert found["merge-quantize"].same_codes == pytest.approx(1 - x * (2 / torch.pi) ** 0.5, abs=0.005)
    assert found["quantize-merge"].same_codes == pytest.approx(math.erf(1 / (2 * 2**0.5 * x)), abs=0.005)
    assert found["merge-quantize"].survival == 1
    assert found["quantize-merge"].survival < 0.2


def test_details_are_of_every_scheme_that_quantizes_a_layer() -> None:
    found = inspect.inspect(_path("faint"), PIPELINE, _asked("int8", "int4-g128", details=True))
    for name in ("int8", "int4-g128"):
        layers = next(seen.layers for seen in found.forecasts if seen.scheme == name)
        arrivals = [seen for layer in found.layers if layer.details for seen in layer.details.arrivals]
        named = [seen.order for seen in arrivals if seen.scheme == name]
        assert {order: named.count(order) for order in MERGES} == dict.fromkeys(MERGES, layers)


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf"])
def test_a_weight_that_is_not_finite_is_an_error(weight: str) -> None:
    result = run("inspect", _path("flat"), "--base", "demo", f"--weight={weight}")
    assert isinstance(result.exception, UserError)
    assert f"weight {weight} is not finite" in result.exception.what
