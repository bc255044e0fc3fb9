"""A ranges file: what it holds, who may use it, and prompts that may not calibrate."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qcheck import calibrate, probe, ranges, recipe
from qcheck.demo import library
from qcheck.errors import UserError
from qcheck.ranges import Ranges
from qcheck.recipe import PromptSet
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
    assert calibrate.own_prompts(str(path)) == ["mystyle", "mystyle, a cat", "mystyle, a tree"]
    save_file(load_file(source), path, metadata | {"modelspec.trigger_phrase": "in ink"})
    assert calibrate.own_prompts(str(path))[0] == "in ink"


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
