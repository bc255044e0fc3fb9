"""README and the tutorial say what is true: tables come from the data, captures from runs like the one tested here."""

import re

import pytest

from benchmarks import readme
from benchmarks.zoo import cases
from qcheck.demo import library
from qcheck.result.verdict import Outcome
from qcheck.spec import picture_limits, probe
from tests.conftest import Finished, run

TEXT = readme.README.read_text("utf-8")
TUTORIAL = readme.DOCS / "tutorial.md"


def test_readme_is_short_with_one_picture_one_capture_and_one_comparison() -> None:
    assert len(TEXT.splitlines()) <= 150
    assert len(re.findall(r"!\[", TEXT)) == 1
    assert re.findall(r"<!-- (\w+):begin -->", TEXT) == ["lost", "peers"]


def test_readme_leads_with_the_adapter_that_does_nothing() -> None:
    assert "silently does nothing" in TEXT.split("\n\n")[1]


@pytest.mark.parametrize(
    ("page", "name", "content"), [pytest.param(*one, id=f"{one[0].stem}-{one[1]}") for one in readme.tables()]
)
def test_tables_are_the_generated_ones(page: readme.Path, name: str, content: str) -> None:
    assert readme.read(page, name) == content


def test_the_capture_shows_the_measurements_and_the_verdict_that_a_check_gives(finished: Finished) -> None:
    shown, table = readme.read(TUTORIAL, "kept"), readme.read(TUTORIAL, "measurements")
    case = finished.report["cases"][0]
    assert {m["name"] for m in case["measurements"]} <= set(re.findall(r"\w+", table + shown))
    assert re.search(rf"^{case['verdict']} ", shown, re.MULTILINE)
    assert "limits: set on" in shown


def test_readme_shows_the_tutorial_s_lost_adapter() -> None:
    assert readme.read(readme.README, "lost") == readme.read(TUTORIAL, "lost")
    assert "NEEDS-QAT" in readme.read(readme.README, "lost")
    assert "cure: " in readme.read(TUTORIAL, "advise")


@pytest.mark.parametrize("page", [readme.README, readme.DOCS / "verdicts.md"], ids=lambda page: page.name)
def test_every_verdict_is_explained(page: readme.Path) -> None:
    for outcome in Outcome.__args__:  # type: ignore[attr-defined]
        assert f"| {outcome} |" in page.read_text("utf-8")


def test_the_sampling_of_the_example_is_said_as_it_is() -> None:
    shipped = probe.find(library.PROBES)
    text = " ".join((readme.DOCS / "verdicts.md").read_text("utf-8").split())
    assert f"in {shipped.steps} steps at guidance {shipped.guidance:g}" in text
    assert f"the first {cases.PROBES} prompts of the probe set `{shipped.name}`" in text


def test_page_and_help_of_pictures_name_the_least_that_decides() -> None:
    least = f"fewer than {picture_limits.find('default').least} never decide"
    for text in ((readme.DOCS / "pictures.md").read_text("utf-8"), run("pictures", "--help").output):
        assert least in " ".join(text.replace("\u2502", " ").split())
        assert "Make 16 pictures" in text
