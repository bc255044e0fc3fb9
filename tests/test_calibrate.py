"""A ranges file: what it holds, who may use it, and prompts that may not calibrate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qcheck.calibration import inputs, pictures, screen
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.measure import spectrum
from qcheck.model.arms import Arms
from qcheck.sampling import solvers
from qcheck.spec import probe, ranges, recipe
from qcheck.spec.ranges import Ranges
from qcheck.spec.recipe import PromptSet
from tests.conftest import run

JUDGED = probe.find("emoji")
FITS: dict[str, Any] = {
    "contents": {"base": "b", "adapted": "a"},
    "scheme": "int8",
    "formats": {"layer": "int8"},
    "judged": JUDGED,
}


def _ranges(**changed: Any) -> Ranges:
    whole = {
        "contents": {"base": "b", "adapted": "a"},
        "scheme": "int8",
        "formats": {"layer": "int8"},
        "method": "mse",
        "merge": "pooled",
        "percentile": 99.99,
        "settings": ranges.settings(JUDGED),
        "prompts": ["a quiet place"],
        "prompts_digest": "d",
        "pictures": {},
        "left_out": {},
        "cuts": {"adapted": {"layer": {"max": 2.0, "mse": 1.5}}},
    }
    return Ranges.model_validate(whole | changed)


def test_what_was_made_for_this_fits() -> None:
    ranges.require_fit(_ranges(), **FITS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"contents": {"base": "x", "adapted": "a"}}, "another base: x, not b"),
        ({"contents": {"base": "b", "adapted": "x"}}, "another adapter, or its weight"),
        ({"formats": {"layer": "float8_e4m3"}}, "other formats"),
        ({"settings": ranges.settings(JUDGED) | {"steps": 3}}, "at steps 3, not"),
        ({"prompts": [f"  {JUDGED.prompts[0].upper()}"]}, "both in the ranges and in the probe set"),
    ],
)
def test_what_was_made_for_something_else_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ranges.require_fit(_ranges(**changed), **FITS)


@pytest.mark.parametrize(("name", "value"), [("guidance", 9.0), ("negative", "grey"), ("width", 8), ("height", 8)])
def test_latents_that_were_sampled_otherwise_are_refused(name: str, value: Any) -> None:
    changed = ranges.settings(JUDGED) | {name: value}
    assert changed != ranges.settings(JUDGED)
    with pytest.raises(UserError, match=f"at {name} {value}, not"):
        ranges.require_fit(_ranges(settings=changed), **FITS)


def test_a_file_is_read_as_written_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(_ranges().to_json(), "utf-8")
    assert ranges.read(path) == _ranges()
    for text in ("{}", "no json", "[1]"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"qcheck calibrate"):
            ranges.read(path)


@given(st.sets(st.sampled_from(JUDGED.prompts)), st.integers(1, 5))
def test_no_prompt_that_judges_calibrates(shared: set[str], others: int) -> None:
    own = tuple(f"other {place}" for place in range(others))
    kept, left = recipe.screened(PromptSet(name="own", prompts=(*shared, *own)), JUDGED)
    assert kept.prompts == own
    assert set(left) == shared


def test_prompts_that_all_judge_are_an_error() -> None:
    with pytest.raises(UserError, match="every prompt"):
        recipe.screened(PromptSet(name="own", prompts=JUDGED.prompts[:2]), JUDGED)


def test_an_adapters_own_prompts_are_its_trigger_with_its_tags(tmp_path: Path) -> None:
    source = str(library.ADAPTERS / "faint.safetensors")
    with safe_open(source, "pt") as stream:
        metadata = dict(stream.metadata() or {})
    tags = {"folder": {"mystyle": 9, "a cat": 5, "a tree": 2}}
    path = tmp_path / "tagged.safetensors"
    save_file(load_file(source), path, metadata | {"ss_tag_frequency": json.dumps(tags)})
    assert inputs.own_prompts(str(path)) == ["mystyle", "mystyle, a cat", "mystyle, a tree"]
    save_file(load_file(source), path, metadata | {"modelspec.trigger_phrase": "in ink"})
    assert inputs.own_prompts(str(path))[0] == "in ink"


def test_ranges_of_all_methods_are_written_and_taken_back(tmp_path: Path) -> None:
    prompts, path = tmp_path / "mine.txt", tmp_path / "ranges.json"
    prompts.write_text("a quiet place\na loud place\n")
    quick = ("--scheme", "int8", "--steps", "2")
    made = run(
        "calibrate", "demo", "--lora", "flat", *quick, "--method", "mse", "--prompts", str(prompts), "-o", str(path)
    )
    assert made.exit_code == 0, made.output
    found = ranges.read(path)
    assert found.prompts == ["a quiet place", "a loud place"]
    for origin in ("base", "adapted"):
        for layer in found.formats:
            cuts = found.cuts[origin][layer]
            assert set(cuts) == {"max", "percentile", "entropy", "mse"}
            assert all(0 < cut <= cuts["max"] for cut in cuts.values())
    assert any(cuts["mse"] < cuts["max"] for cuts in found.cuts["adapted"].values())
    out = tmp_path / "out"
    again = run("check", "demo", "--lora", "ink", *quick, "--no-build", "--ranges", str(path), "--out", str(out))
    assert isinstance(again.exception, UserError)
    assert "another adapter" in str(again.exception)
    assert not out.exists()


def _pictures(folder: Path, grain: dict[str, float]) -> Path:
    """Drawings of 40 x 60 pixels, each under noise of a deviation."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, deviation in grain.items():
        drawn = np.full((60, 40, 3), 200.0)
        drawn[10:40, 5:30] = rng.integers(0, 256, 3)
        drawn += 255 * deviation * rng.standard_normal(drawn.shape)
        Image.fromarray(drawn.clip(0, 255).astype(np.uint8)).save(folder / name)
    return folder


def test_pictures_have_captions_and_those_under_synthetic_noise_calibrate_nothing(tmp_path: Path) -> None:
    folder = _pictures(tmp_path / "a", {"red_apple.png": 0.0, "b.png": 0.01, "grainy.png": 0.1, "very.jpg": 0.3})
    (folder / "b.txt").write_text("a bee,\n in a field\n")
    kept, left = screen.screened(pictures.find(folder))
    assert [(one.path.name, one.caption) for one in kept] == [
        ("b.png", "a bee, in a field"),
        ("red_apple.png", "red apple"),
    ]
    assert set(left) == {"grainy.png", "very.jpg"}
    assert "white noise" in left["grainy.png"]
    with pytest.raises(UserError, match="all 1 pictures hold synthetic noise"):
        screen.screened(pictures.find(_pictures(tmp_path / "c", {"grainy.png": 0.2})))
    (folder / "b.png").write_text("no picture")
    with pytest.raises(UserError, match=r"b\.png"):
        screen.screened(pictures.find(folder))
    with pytest.raises(UserError, match="holds no picture"):
        pictures.find(tmp_path)


@pytest.mark.parametrize("deviation", [0.02, 0.1, 0.3])
def test_the_grain_of_white_noise_is_its_deviation_whatever_is_drawn(deviation: float) -> None:
    x = np.zeros((3, 64, 64))
    x[:, 20:50, 10:33] = 0.7
    noise = np.random.default_rng(0).standard_normal(x.shape)
    assert spectrum.grain(x) == 0
    assert spectrum.grain(x + deviation * noise) == pytest.approx(deviation, rel=0.05)
    assert np.isnan(spectrum.grain(np.full((1, 4, 4), np.nan)))


def test_pictures_give_the_states_that_training_would(demo_arms: Arms) -> None:
    """At the last stratum hardly any noise is left: the picture comes back; at the first hardly any picture is."""
    shipped = pictures.read(Path(__file__).parent / "report/folder/pictures/f0-1.webp", (64, 64))
    family = demo_arms.base.family  # its VAE, which no adapter changes
    latents = family.encode(torch.from_numpy(shipped)[None])
    back = family.decode(latents)[0].numpy()
    assert np.abs(back - shipped).mean() < 0.05
    shape = family.shape(None, None)
    noise = family.start(probe.probes(JUDGED, (1.0,))[0])[0]
    for index, timestep in enumerate(family.solver(20, shape).timesteps):
        found = solvers.noised(family.solver(20, shape), index, latents, noise)
        kept = family.pipe.scheduler.alphas_cumprod[int(timestep)]
        assert torch.allclose(found, kept.sqrt() * latents + (1 - kept).sqrt() * noise, atol=1e-5)


def test_ranges_are_found_on_pictures(tmp_path: Path) -> None:
    folder, path = (
        _pictures(tmp_path / "a", {"quiet.png": 0.0, "loud.png": 0.3, "red-apple.png": 0.0}),
        tmp_path / "r.json",
    )
    made = run(
        "calibrate",
        "demo",
        "--lora",
        "flat",
        "--steps",
        "2",
        "--pictures",
        str(folder),
        "--merge",
        "max",
        "-o",
        str(path),
    )
    assert made.exit_code == 0, made.output
    found = ranges.read(path)
    assert (found.prompts, list(found.pictures)) == (["quiet"], ["quiet.png"])  # "red apple" is a probe's prompt
    assert set(found.left_out) == {"loud.png", "red apple"}
    assert found.merge == "max"
    both = run("calibrate", "demo", "--lora", "flat", "--pictures", "a", "--own-prompts", "-o", str(tmp_path / "x"))
    assert "--own-prompts and --pictures a are given" in str(both.exception)


@pytest.mark.parametrize(
    ("made", "signal"),
    [
        (FlowMatchEulerDiscreteScheduler(shift=3.0), lambda s: 1 - s),
        (EulerDiscreteScheduler(), lambda _: 1),
        (DPMSolverMultistepScheduler(), lambda s: (1 + s**2) ** -0.5),
    ],
)
def test_a_picture_is_noised_as_its_solver_would_have_it_at_that_step(
    made: Any, signal: Callable[[float], float]
) -> None:
    picture, noise = torch.ones(1, 4, 8, 8), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for index in (0, 5, 9):
        solver = type(made).from_config(made.config)
        solver.set_timesteps(10)
        solver.set_begin_index(0)
        sigma, kept = float(solver.sigmas[index]), signal(float(solver.sigmas[index]))
        spread = sigma if isinstance(made, FlowMatchEulerDiscreteScheduler) else sigma * kept
        found = solvers.noised(solver, index, picture, noise)
        assert torch.allclose(found, kept * picture + spread * noise, atol=1e-5)
