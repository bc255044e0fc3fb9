"""The pictures of report.html in a browser: filter, order, links to a probe, keys, large and full size."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from qcheck.report import html, write
from qcheck.result import evidence
from qcheck.result.evidence import Evidence
from qcheck.result.measurement import Judged
from qcheck.result.report import GroupSurvival, Report
from tests import reports
from tests.report import FOLDER
from tests.report.test_html import Shown, show

SURVIVALS = (0.99, 0.2, 1.5, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored folder with prompts in two groups, survivals of its probes, and one picture in full size."""
    place = Path(shutil.copytree(FOLDER, tmp_path_factory.mktemp("probes") / "out"))
    seen = Evidence.model_validate_json((place / evidence.NAME).read_text("utf-8"))
    count = len(seen.prompts)
    survivals = [*SURVIVALS, *[1.0] * (count - len(SURVIVALS))]
    cases = [seen.cases[0].model_copy(update={"survivals": survivals}), *seen.cases[1:]]
    (place / evidence.NAME).write_text(seen.model_copy(update={"cases": cases}).to_json(), "utf-8")
    report = Report.model_validate_json((place / "report.json").read_text("utf-8"))
    names = ("animal", "") * (len(report.spec.probes.prompts) // 2)
    probes = report.spec.probes.model_copy(update={"groups": names})
    lost = reports.measurement("effect_survival", value=0.5, low=0.4, high=0.6, status="fail")
    group = GroupSurvival(name="animal", survival=Judged.model_validate(lost), probes=[1, 3], outside=[3])
    judged = [report.cases[0].model_copy(update={"groups": [group]}), *report.cases[1:]]
    changed = report.model_copy(update={"spec": report.spec.changed(probes=probes), "cases": judged})
    (place / "report.json").write_text(changed.to_json(), "utf-8")
    large = place / evidence.full_size(seen.cases[0].pictures[0].reference[0])
    large.parent.mkdir()
    Image.new("RGB", (512, 512)).save(large)
    return place


@pytest.fixture(scope="module")
def shown(browser: Browser, folder: Path) -> Iterator[Shown]:
    opened = show(browser, folder, viewport={"width": 1280, "height": 900})
    yield opened
    opened.page.context.close()


@pytest.fixture
def opened(shown: Shown) -> Page:
    """The page as it was when it opened, without an address of a probe."""
    shown.page.goto("about:blank")
    shown.page.goto(shown.file.as_uri())
    shown.page.wait_for_selector("html[data-ready='0']")
    return shown.page


def _numbers(page: Page) -> list[int]:
    """The probes that are visible, in the page's order."""
    return [int(text) for text in page.locator(".probe:visible h3 a").all_inner_texts()]


def test_probes_are_filtered_by_prompt_group_and_limit(opened: Page) -> None:
    whole = opened.locator(".probe").count()
    assert _numbers(opened) == list(range(1, whole + 1))
    opened.select_option("#probe-group", "animal")
    assert _numbers(opened) == list(range(1, whole + 1, 2))
    opened.check("#probe-outside")
    assert _numbers(opened) == [3]
    assert opened.inner_text("#probe-count") == f"1 of {whole} probes"
    opened.select_option("#probe-group", "")
    assert _numbers(opened) == [2, 3]
    opened.fill("#probe-search", "no prompt says this")
    assert _numbers(opened) == []


def test_the_worst_probes_come_first_where_that_is_asked(opened: Page) -> None:
    opened.select_option("#probe-order", "far")
    assert _numbers(opened)[:3] == [2, 3, 1]
    opened.select_option("#probe-order", "")
    assert _numbers(opened)[:3] == [1, 2, 3]


def test_the_number_of_a_probe_is_a_link_to_it_in_that_scheme(opened: Page, shown: Shown) -> None:
    opened.select_option("#case", "1")
    opened.wait_for_selector("html[data-ready='1']")
    opened.locator("#probe-2 h3 a").click()
    assert opened.evaluate("location.hash") == "#scheme-2/probe-2"
    opened.goto("about:blank")
    opened.goto(f"{shown.file.as_uri()}#scheme-2/probe-3")
    opened.wait_for_selector("html[data-ready='1']")
    assert opened.evaluate("document.activeElement.id") == "probe-3"
    assert opened.locator("[data-case='0']:visible").count() == 0


def test_a_link_to_a_probe_that_a_filter_hides_shows_it(opened: Page) -> None:
    opened.check("#probe-outside")
    opened.evaluate("location.hash = '#probe-1'")
    opened.wait_for_function("document.activeElement.id === 'probe-1'")
    assert 1 in _numbers(opened)


def test_keys_move_between_probes_and_schemes_and_enlarge(opened: Page) -> None:
    opened.evaluate("document.getElementById('probe-1').focus()")
    opened.keyboard.press("j")
    assert opened.evaluate("document.activeElement.id") == "probe-2"
    opened.keyboard.press("k")
    assert opened.evaluate("document.activeElement.id") == "probe-1"
    opened.keyboard.press("k")
    assert opened.evaluate("document.activeElement.id") == "probe-1"
    opened.keyboard.press("o")
    assert opened.locator("#large").is_visible()
    assert opened.locator("#large a").first.get_attribute("href") == "pictures/full/f0-1.webp"
    assert opened.locator("#large a").count() == 1
    opened.keyboard.press("Escape")
    assert not opened.locator("#large").is_visible()
    opened.keyboard.press("c")
    opened.wait_for_selector("html[data-ready='1']")


def test_flip_error_maps_take_the_place_of_the_differences_by_keyboard(opened: Page) -> None:
    def shown(probe: int) -> tuple[int, int]:
        figures = opened.locator(".probe").nth(probe)
        return figures.locator(".difference img:visible").count(), figures.locator(".map img:visible").count()

    assert (shown(0), shown(1)) == ((2, 0), (2, 0))
    assert not opened.locator("#magma").is_visible()
    opened.focus("#maps")
    opened.keyboard.press("Space")
    assert (shown(0), shown(1)) == ((0, 2), (0, 2))
    assert "0, black, is what no eye would notice" in opened.inner_text("#magma")
    opened.evaluate("document.getElementById('probe-1').focus()")
    opened.keyboard.press("o")
    captions = opened.locator("#large figcaption").all_inner_texts()
    assert [("FLIP" in text, "difference" in text) for text in captions][-2:] == [(True, False)] * 2
    assert len(captions) == 6
    opened.keyboard.press("Escape")
    opened.keyboard.press("f")
    assert shown(0) == (2, 0)


def test_letters_typed_into_a_search_move_nothing(opened: Page) -> None:
    opened.focus("#probe-search")
    opened.keyboard.type("jock")
    assert opened.input_value("#probe-search") == "jock"
    assert opened.evaluate("document.documentElement.dataset.shown") == "0"


def test_a_page_without_maps_says_why(folder: Path) -> None:
    source = html.read(folder)
    assert source.evidence is not None
    bare = {name: uri for name, uri in source.pictures.items() if not name.startswith("pictures/m")}
    text = html.render(replace(source, pictures=bare))
    assert "No FLIP error maps: this report holds none." in text
    assert 'id="maps"' not in text
    lacking = Judged(
        name="flip",
        arm="base",
        value=None,
        unit="ratio",
        where="needs flip_evaluator: install it",
        status="not measured",
    )
    first = source.report.cases[0]
    told = first.model_copy(update={"measurements": [*first.measurements, lacking]})
    report = source.report.model_copy(update={"cases": [told]})
    assert "No FLIP error maps: needs flip_evaluator: install it." in html.render(
        replace(source, report=report, pictures=bare)
    )


def test_maps_that_do_not_fit_leave_the_pictures_and_say_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = html.read(folder).pictures
    maps = {name for name in whole if name.startswith("pictures/m")}
    assert maps
    monkeypatch.setattr(html, "BUDGET", sum(len(uri) for name, uri in whole.items() if name not in maps))
    source = html.read(folder)
    assert set(source.pictures) == set(whole) - maps
    some = replace(source, pictures=dict(list(whole.items())[:-1]))
    assert html.render(some).count("left out to keep this page small; it is in the folder") == 1


def test_the_page_says_which_group_broke(opened: Page) -> None:
    text = "group animal: survival 0.50 [0.40, 0.60] of 2 probes, not kept; outside by itself: probe 3"
    assert opened.locator("#pictures li.bad:visible").inner_text() == text


def test_a_large_picture_is_kept_in_full_beside_the_one_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    small = write._picture(np.zeros((64, 64, 3)), tmp_path, "small")
    name = write._picture(np.zeros((600, 400, 3)), tmp_path, "large")
    with Image.open(tmp_path / name) as shrunk, Image.open(tmp_path / evidence.full_size(name)) as large:
        assert max(shrunk.size) == 256
        assert large.size == (400, 600)
    assert not (tmp_path / evidence.full_size(small)).exists()
    assert evidence.full_size("alone.webp") == "full/alone.webp"  # never a path from the root


def test_cures_show_each_number_before_and_after(folder: Path) -> None:
    report = Report.model_validate_json((folder / "report.json").read_text("utf-8"))
    first = report.cases[0]
    cure = {"for": f"{first.scheme}, {first.order}", "cure": True, "title": "another order", "why": "it is lost there"}
    row = {**cure, "verdict": "PASS", "survival": 0.98, "excess_error": 1.5, "bytes": 1_000_000, "command": "qcheck"}
    text = html.render(html.Source(report, None, [row, row | {"for": "gone, gone"}], {}, {}))
    before = html.view.before(report, cure["for"])
    assert before is not None
    assert before.survival is not None
    assert f"{html.view.number(before.survival)} → <strong>0.98</strong>" in text
    assert text.count("<strong>0.98</strong>") == 2
