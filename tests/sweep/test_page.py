"""The page of a sweep in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from qcheck.judge import fleet
from qcheck.report import fleet as report
from tests.sweep.test_fleet import row


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 2,000 rows."""
    path = tmp_path_factory.mktemp("page") / "summary.html"
    verdicts = ("PASS", "NEEDS-QAT", "INCONCLUSIVE", None)
    every = [
        row(
            f"{n:016x}",
            verdicts[n % 4],
            10.0 ** -(n % 9) if n % 4 != 3 else None,
            adapter=f"/loras/style-{n:04d}<b>.safetensors",
            scheme=("int8", "fp8")[n % 2],
            error="no adapter" if n % 4 == 3 else None,
            survival=1 - (n % 100) / 100,
            worst_layer=f"down.{n % 7}",
            page=f"pages/style-{n:04d}/report.html",
        )
        for n in range(2000)
    ]
    path.write_text(report.page(fleet.summary(every)), "utf-8")
    return path


@pytest.fixture
def page(browser: Browser, large: Path) -> Iterator[tuple[Page, list[str]]]:
    """The page, opened from its file, and what it asked for or complained about."""
    said: list[str] = []
    opened = browser.new_page()
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(large.as_uri()) else None
    )
    opened.goto(large.as_uri())
    yield opened, said
    opened.close()


def test_two_thousand_rows_are_filtered_sorted_and_linked(page: tuple[Page, list[str]]) -> None:
    opened, said = page
    shown = opened.locator("#cases tbody tr:visible")
    assert opened.inner_text("#count") == "2000 cases"
    assert shown.count() == 200
    opened.click("#more")
    assert shown.count() == 2000
    opened.select_option("select[data-name=status]", "NEEDS-QAT")
    opened.fill("#text", "down.3 style-00")
    expected = [n for n in range(100) if n % 4 == 1 and n % 7 == 3]
    assert shown.count() == len(expected)
    assert opened.inner_text("#count") == f"{len(expected)} of 2000 cases"
    opened.click("button:has-text('survival')")
    numbers = [float(text) for text in shown.locator("td:nth-child(5)").all_inner_texts()]
    assert numbers == sorted(numbers)
    opened.reload()  # the address holds what was chosen
    assert opened.inner_text("#count") == f"{len(expected)} of 2000 cases"
    first = opened.locator("#cases tbody tr:visible a").first
    assert re.fullmatch(r"pages/style-\d{4}/report\.html", first.get_attribute("href") or "")
    assert "<b>" in first.inner_text()
    assert said == []


@pytest.mark.parametrize(
    "look",
    [
        {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
        {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}},
    ],
    ids=["light", "dark on a phone"],
)
def test_an_accessibility_checker_finds_nothing_serious(browser: Browser, tmp_path: Path, look: dict[str, Any]) -> None:
    path = tmp_path / "summary.html"
    path.write_text(report.page(fleet.summary([row("a"), row("b", "NEEDS-QAT", 1.0), row("c", None, None)])), "utf-8")
    opened = browser.new_context(**look).new_page()
    opened.goto(path.as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    violations = Axe().run(opened).response["violations"]
    opened.context.close()
    assert [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in ("serious", "critical")] == []
