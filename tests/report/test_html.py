"""report.html in a real browser: it opens from a file, works by keyboard, is accessible, and text stays text."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from qcheck.report import html
from qcheck.result.evidence import Evidence
from qcheck.result.report import Report
from tests.conftest import run
from tests.report import FOLDER

SECTIONS = ("schemes", "pictures", "measurements", "steps", "spectra", "latents", "layers", "missing", "provenance")
MARKUP = "\"><img src=x onerror='window.pwned=1'></title></script><script>window.pwned=1</script><!-- {{ 7*7 }} & 🦊 "
HOSTILE = MARKUP + "\u202e\u0645\u0631\u062d\u0628\u0627"
LONG = MARKUP * 100
NUMBERS = ("bytes", "survival", "excess_error")


@dataclass
class Shown:
    """A page that was opened from its file, what it asked for and what it complained about."""

    page: Page
    file: Path
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def show(browser: Browser, folder: Path, **context: Any) -> Shown:
    """Render ``folder`` and open its page from the file."""
    file = html.write(folder)
    opened = browser.new_context(reduced_motion="reduce", **context).new_page()
    shown = Shown(opened, file)
    opened.on("request", lambda request: shown.requests.append(request.url))
    opened.on("console", lambda message: shown.complaints.append(message.text))
    opened.on("pageerror", lambda error: shown.complaints.append(str(error)))
    opened.goto(file.as_uri())
    opened.wait_for_selector("html[data-ready]")
    return shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored output folder, to write into."""
    return Path(shutil.copytree(FOLDER, tmp_path_factory.mktemp("page") / "out"))


@pytest.fixture(scope="module")
def shown(browser: Browser, folder: Path) -> Iterator[Shown]:
    """The stored report, as it opens at first."""
    found = show(browser, folder, viewport={"width": 1280, "height": 900})
    yield found
    found.page.context.close()


@pytest.fixture
def opened(shown: Shown) -> Page:
    """The page as it was when it opened."""
    shown.page.reload()
    shown.page.wait_for_selector("html[data-ready]")
    return shown.page


def test_it_opens_from_a_file_without_a_complaint_or_a_request(shown: Shown) -> None:
    assert [url for url in shown.requests if not url.startswith("data:")] == [shown.file.as_uri()]
    assert shown.complaints == []
    assert shown.file.stat().st_size < 6_000_000


def test_every_section_is_there_and_every_plot_is_drawn(opened: Page) -> None:
    found = opened.eval_on_selector_all("main section", "them => them.map(one => one.id)")
    assert tuple(found) == SECTIONS
    plots = opened.locator(".vega:visible")
    assert plots.count() > 8
    for index in range(plots.count()):
        assert plots.nth(index).locator("svg path").count() > 5
    for title in ("Schemes side by side", "Not measured", "The same check again"):
        assert opened.get_by_role("heading", name=title).is_visible()
    assert "latency" in opened.inner_text("#missing")


def test_the_divider_of_a_picture_follows_the_keyboard_and_the_mouse(opened: Page) -> None:
    def cut(probe: int) -> str:
        found: str = opened.locator(".probe").nth(probe).evaluate("one => one.style.getPropertyValue('--cut')")
        return found

    opened.focus("#cut-0")
    for _ in range(3):
        opened.keyboard.press("ArrowRight")
    assert cut(0) == "53%"
    assert "53%" in opened.locator(".probe .over").first.evaluate("one => getComputedStyle(one).clipPath")
    opened.keyboard.press("Home")
    assert (cut(0), cut(1)) == ("0%", "")
    opened.focus("#every")
    opened.keyboard.press("End")
    assert (cut(0), cut(1)) == ("100%", "100%")
    box = opened.locator(".compare").first.bounding_box()
    assert box is not None
    opened.mouse.click(box["x"] + box["width"] / 4, box["y"] + 5)
    assert cut(0) == "25%"


def test_search_narrows_the_layers_and_dims_the_others_in_the_plot(opened: Page) -> None:
    faint = "#layers .vega:visible path[opacity='0.12']"
    whole = int(opened.inner_text("#found").split()[0])
    opened.focus("#search")
    opened.keyboard.type("ATTN2.to_v")
    opened.wait_for_selector(faint, state="attached")
    names = opened.locator("#layer-table tbody th").all_inner_texts()
    assert names
    assert all("attn2.to_v" in name for name in names)
    matching = whole - opened.locator(faint).count()
    assert opened.inner_text("#found") == f"{matching} of {whole} layers"
    assert len(names) == min(matching, 20)


def test_a_column_of_the_layers_sorts_by_its_button(opened: Page) -> None:
    button = opened.get_by_role("button", name="change over noise")
    for wanted, sign in (("descending", -1), ("ascending", 1)):
        button.focus()
        opened.keyboard.press("Enter")
        assert opened.locator("#layer-table th[aria-sort]").get_attribute("aria-sort") == wanted
        values = [
            float(text.replace("\N{MINUS SIGN}", "-"))
            for text in opened.locator("#layer-table td:last-child").all_inner_texts()
        ]
        assert values == sorted(values, key=lambda value: sign * value)
    opened.get_by_role("button", name="Show all").press("Enter")
    assert opened.locator("#layer-table tbody tr").count() == int(opened.inner_text("#found").split()[0])


def test_another_case_is_shown_everywhere_at_once(opened: Page) -> None:
    opened.select_option("#case", "1")
    opened.wait_for_selector("html[data-ready='1']")
    assert opened.locator("[data-case='0']:visible").count() == 0
    assert opened.locator("[data-case='1'] .vega:visible svg").count() > 8
    assert opened.locator("[data-look='1']").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize(
    "look",
    [
        {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
        {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}},
    ],
    ids=["light", "dark on a phone"],
)
def test_an_accessibility_checker_finds_nothing_serious(browser: Browser, folder: Path, look: dict[str, Any]) -> None:
    found = show(browser, folder, **look)
    assert found.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    violations = Axe().run(found.page).response["violations"]
    found.page.context.close()
    assert [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in ("serious", "critical")] == []


def test_paper_has_both_pictures_side_by_side_and_no_controls(opened: Page) -> None:
    opened.emulate_media(media="print")
    under, over = (opened.locator(f".compare .{name}:visible").first.bounding_box() for name in ("under", "over"))
    controls = opened.locator("input:visible, nav:visible, button:visible").evaluate_all(
        "them => them.filter(one => !one.closest('table')).length"
    )
    opened.emulate_media(media="screen")
    assert under is not None
    assert over is not None
    assert under["x"] + under["width"] <= over["x"]
    assert controls == 0


def hostile(folder: Path) -> None:
    """Put markup into every text of ``folder``'s report that comes from outside."""
    report = json.loads((folder / "report.json").read_text())
    seen = json.loads((folder / "evidence.json").read_text())
    report["probes"]["prompts"][:2] = seen["prompts"][:2] = [HOSTILE, LONG]
    report["adapters"][0]["source"] = f"./{HOSTILE.replace('/', '')}.safetensors"
    report["base"]["source"] = report["target"] = report["provenance"]["machine"] = HOSTILE
    report["spec"] |= {"base": HOSTILE, "trigger": HOSTILE}
    report["spec"]["adapters"][0]["source"] = HOSTILE
    report["provenance"]["versions"] |= {HOSTILE: HOSTILE}
    report["not_measured"].append({"name": HOSTILE, "reason": LONG})
    report["unmatched"] = [HOSTILE]
    for scheme, case, shown in zip(report["spec"]["schemes"], report["cases"], seen["cases"], strict=True):
        scheme["name"] = case["scheme"] = shown["scheme"] = f"{case['scheme']} {HOSTILE}"
        case |= {"reasons": [HOSTILE, LONG], "next": HOSTILE, "warnings": [HOSTILE]}
        case["measurements"][0]["where"] = HOSTILE
        case["artifact"][0]["path"] = HOSTILE
        case["builds"] = [
            {"builder": HOSTILE, "capability": "8.6", "proxy": True, "status": "refused", "detail": HOSTILE}
        ]
        shown["arrivals"][0]["layer"] = HOSTILE
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "evidence.json").write_text(json.dumps(seen))
    tried = {"title": HOSTILE, "why": LONG, "verdict": "PASS", "command": HOSTILE}
    advised = {"scheme": HOSTILE, "order": HOSTILE, "cure": 0, "tried": [tried | dict.fromkeys(NUMBERS)]}
    (folder / "advice.json").write_text(json.dumps({"cases": [advised]}))
    Report.model_validate_json((folder / "report.json").read_text())
    Evidence.model_validate_json((folder / "evidence.json").read_text())


def test_markup_quotes_emoji_and_ten_thousand_characters_are_text(browser: Browser, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "out"))
    hostile(folder)
    found = show(browser, folder, viewport={"width": 390, "height": 844})
    opened = found.page
    opened.fill("#search", "onerror")
    assert opened.evaluate("window.pwned") is None
    assert found.complaints == []
    assert opened.locator("script").count() == 5
    assert opened.locator("img:not([src^='data:image/'])").count() == 0
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.locator("#layer-table tbody th").all_inner_texts() == [HOSTILE]
    text = opened.locator("main").evaluate("one => one.textContent")
    header = opened.locator("header").evaluate("one => one.textContent")
    assert text.count(HOSTILE) > 25
    assert header.count(MARKUP.partition("</")[0]) >= 3
    assert text.count(LONG) >= 4
    assert len(LONG) > 10_000
    opened.context.close()


def test_the_command_renders_a_finished_check_again(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "out"))
    (copied / "report.html").unlink(missing_ok=True)
    done = run("report", str(copied))
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(copied / "report.html")
    assert (copied / "report.html").read_text() == html.render(html.read(copied))
