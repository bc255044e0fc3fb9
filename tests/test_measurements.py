"""measurements.toml, the functions behind it, the limits that are validated against it and the table made from it."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from qcheck.core.errors import UserError
from qcheck.core.values import read_toml
from qcheck.diagnose import lpips
from qcheck.measure import registry, utility
from qcheck.measure.sample import Sample
from qcheck.spec import limits, measurement
from qcheck.spec.measurement import Catalogue
from tests import views
from tools import docs_tables

importlib.import_module("qcheck.tasks.check")  # those that need torch or judges live above qcheck.measure
EVERY = measurement.every()
ENTRY = '[[measurements]]\nname = "a"\ntitle = "t"\nsentence = "s"\nunit = "dB"\ndigits = 2\narms = ["base"]\n'


def test_every_definition_has_one_function_and_every_function_a_definition() -> None:
    assert lpips.samples is registry.FUNCTIONS["lpips"][1]
    assert utility.style_utility is registry.FUNCTIONS["style_utility"][1]
    assert set(registry.FUNCTIONS) == set(EVERY)


def _drawn() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    f0 = rng.standard_normal((4, 3, 2, 8, 8))
    return [f0, f0 + 0.3, f0 + 0.1 * rng.standard_normal(f0.shape), f0 + 0.3 + 0.1 * rng.standard_normal(f0.shape)]


def test_samples_come_in_the_order_of_the_definitions_and_of_their_arms() -> None:
    found = [(sample.name, sample.arm) for sample in registry.samples(views.view(*_drawn()))]
    looked = [name for name in EVERY if registry.FUNCTIONS[name][0] == "look"]
    assert found == [(name, arm) for name in looked for arm in EVERY[name].arms]


def test_the_definitions_say_which_of_several_places_counts() -> None:
    for sample in registry.samples(views.view(*_drawn())):
        if len(sample.places) > 1:
            assert EVERY[sample.name].worst_place == sample.worst, sample.name


def test_what_several_measurements_share_is_computed_once_a_view() -> None:
    asked = []
    first, second = (views.view(*_drawn()) for _ in range(2))

    def count(view: registry.View) -> int:
        asked.append(view)
        return len(asked)

    assert [first.once(count), first.once(count), second.once(count)] == [1, 1, 2]
    assert asked == [first, second]


ONE, OTHER = Sample("straightness", "base", np.ones(4)), Sample("psnr", "adapted", np.ones(4))


@pytest.mark.parametrize("given", [[], [ONE], [ONE, OTHER]], ids=["nothing", "one-arm", "another-name"])
def test_a_function_that_returns_what_its_definition_does_not_name_is_a_bug(
    given: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.FUNCTIONS, "straightness", ("look", lambda _: given))
    with pytest.raises(ValueError, match="straightness gave"):
        registry.samples(views.view(*_drawn()))


def test_an_unknown_name_is_registered_by_nobody() -> None:
    with pytest.raises(UserError, match="Did you mean 'effect_survival'"):
        registry.measures("effect_survivl")(lambda _: [])
    assert "effect_survivl" not in registry.FUNCTIONS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY + 'colour = "red"\n', "colour"),
        (ENTRY.replace("digits = 2", "digits = -1"), "digits"),
        (ENTRY.replace('["base"]', "[]"), "arms"),
        (ENTRY.replace('["base"]', '["left"]'), "arms"),
        (ENTRY + 'better = "up"\n', "better"),
        (ENTRY + ENTRY, "defined twice"),
    ],
)
def test_a_definition_that_is_not_one_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "measurements.toml"
    path.write_text(ENTRY)
    assert read_toml(Catalogue, path).measurements[0].better is None
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_toml(Catalogue, path)


@pytest.mark.parametrize(
    ("name", "arm", "bounds", "message"),
    [
        ("effect_survivl", "adapted", "low = 0.8", "unknown measurement 'effect_survivl'. Did you mean 'effect_surviv"),
        ("effect_survival", "base", "low = 0.8", "effect_survival is measured of adapted, not of base"),
        ("effect_survival", "adapted", "", "needs `low` or `high`"),
        ("effect_survival", "adapted", "low = 1.2\nhigh = 0.8", "`low` is above `high`"),
        ("effect_survival", "adapted", "high = 1.2\nof_seed = 0.5", "`of_seed` is for endpoint_error with `high`"),
        ("endpoint_error", "adapted", "low = 0.1\nof_seed = 0.5", "`of_seed` is for endpoint_error with `high`"),
        ("endpoint_error", "adapted", "high = 0.5\nof_seed = 0.0", "of_seed"),
        ("stratum_survival", "adapted", "low = 0.6\nhigh = 1.4", "is that of its lowest place: it takes `low` alone"),
        ("lattice_amplitude", "base", "low = 0.1", "is that of its highest place: it takes `high` alone"),
        ("endpoint_error", "adapted", "high = 0.5\nbelow = 'less'", "`below` says what it means to be below `low`"),
        ("effect_survival", "adapted", "low = 0.8\nabove = 'more'", "`above` to be above `high`"),
    ],
)
def test_a_limit_that_nothing_can_meet_is_an_error_of_its_file(
    name: str, arm: str, bounds: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    head = (limits.FOLDER / "default.toml").read_text().split("[[gates]]")[0]
    path.write_text(f'{head}[[gates]]\nname = "{name}"\narm = "{arm}"\nrole = "adapter"\n{bounds}\n')
    with pytest.raises(UserError) as raised:
        limits.find(str(path))
    assert message in raised.value.what
    assert "mine.toml" in raised.value.what


def test_without_its_base_an_artifact_has_no_limit_that_compares_with_it() -> None:
    kept = limits.find("default").alone().gates
    assert {gate.arm for gate in kept} == {"adapted"}
    assert {gate.name for gate in kept}.isdisjoint({"worst_stratum", "export_control", "weakened_survival"})
    assert "effect_survival" in {gate.name for gate in kept}


@pytest.mark.parametrize(
    ("name", "arm", "unit", "symbol"),
    [
        ("effect_survival", "adapted", "ratio", ""),
        ("endpoint_error", "adapted", "ratio", ""),
        ("endpoint_error", "both", "dB over base", "dB"),
        ("stratum_sqnr", "base", "dB", "dB"),
    ],
)
def test_a_unit_is_of_a_measurement_and_an_arm(name: str, arm: str, unit: str, symbol: str) -> None:
    found = EVERY[name].of(arm)  # type: ignore[arg-type]
    assert (found.unit, found.symbol) == (unit, symbol)


def test_the_table_in_the_docs_is_the_generated_one() -> None:
    assert docs_tables.read() == docs_tables.measurements_table()


def test_what_contributing_quotes_of_a_measurement_is_what_stands_there() -> None:
    page = (docs_tables.PAGE.parent.parent / "CONTRIBUTING.md").read_text("utf-8")
    quoted = re.findall(r"^```diff\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    parts = re.split(r"^--- (.+)$", quoted[0], flags=re.MULTILINE)[1:]
    code = ["qcheck/device/effect.py", "qcheck/measure/effect.py"]
    assert parts[::2] == [*code, "qcheck/spec/data/measurements.toml", "tests/faults.py"]
    for path, diff in zip(parts[::2], parts[1::2], strict=True):
        content = (docs_tables.PAGE.parent.parent / path).read_text("utf-8").splitlines()
        lines = [line[1:] for line in diff.strip().splitlines()]
        assert not [line for line in lines if line not in content], path


def test_a_page_without_its_markers_is_a_bug_that_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no"):
        docs_tables.read(page)
    page.write_text("a\n<!-- measurements:begin -->\nold\n<!-- measurements:end -->\nb")
    docs_tables.write(page)
    assert docs_tables.read(page) == docs_tables.measurements_table()
    assert page.read_text().startswith("a\n")
    assert page.read_text().endswith("\nb")
