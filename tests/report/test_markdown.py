"""Markdown: read back by a parser, whatever names and prompts hold."""

import html as markup

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from qcheck.report import markdown
from qcheck.report.wording import line
from tests import reports

PARSER = MarkdownIt("gfm-like", {"linkify": False})
HOSTILE = [
    "a|b",
    r"a\|b\\",
    "`code` ``x",
    "<script>alert(1)</script>",
    '<img src=x onerror="x">',
    "&lt;b&gt; &amp;",
    "[x](javascript:x) ![i](http://x)",
    "**bold** _it_ ~~gone~~",
    "🍎👩‍🚀 emoji",
    "שלום עולם",
    "مرحبا",
    "http://example.com www.example.com me@example.com @team #12",
    "# heading",
    "- list",
    "1. one",
    "line\nbreak\r\n\n| --- |",
    "\x00\x1b[31mred",
    "\u202eturned",
    "x" * 10_000,
    "</details>",
    "$x^2$ :apple:",
]


def _inline(text: str) -> str:
    """What a reader sees of one line of Markdown; markup in it is an error."""
    tokens = PARSER.parse(f"| start {text} |\n| --- |\n| start {text} |")
    seen = [token for token in tokens if token.type == "inline"]
    assert len(seen) == 2
    for token in seen:
        assert {child.type for child in token.children or []} <= {"text", "text_special"}, token.children
    return "".join(child.content for child in seen[1].children or []).removeprefix("start ")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_renders_as_its_own_characters(text: str) -> None:
    assert _inline(markdown.escape(text)).replace("\u2060", "") == line(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_renders_as_its_own_characters(text: str) -> None:
    shown = _inline(markdown.escape(f"({text})")).replace("\u2060", "")
    assert shown == line(f"({text})").replace("\u2060", "")


def test_what_forges_make_links_and_mentions_of_is_broken_up() -> None:
    """GitHub does so to bare text: https://github.github.com/gfm/#autolinks-extension-"""
    shown = markdown.escape("http://example.com WWW.example.com me@example.com @team #12 :apple:")
    assert not [found for found in ("http:", "WWW.", "@e", "@team", " #12", " :apple") if found in shown]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_report_of_hostile_names_keeps_its_tables_and_no_html_but_its_own(text: str) -> None:
    hostile = reports.case(
        text, verdict="NEEDS-QAT", reasons=[text], next=text, warnings=[text], builds=[_refused(text)]
    )
    missing = [{"name": text, "reason": text}]
    used = [{"source": f"a/{text}", "weight": 1.0, "arms": "adapted", "digest": "0" * 16}]
    base = {"source": text, "digest": "0" * 16}
    report = reports.report(hostile, reports.case(), target=text, not_measured=missing, adapters=used, base=base)
    tokens = PARSER.parse(markdown.render(report))
    html = [token.content.replace("\u2060", "") for token in tokens if token.type == "html_block"]
    folded = [f"<details><summary>{markup.escape(line(text))} merge-quantize, 8 probes</summary>\n"]
    assert html[::2] == [*folded, "<details><summary>int8 merge-quantize, 8 probes</summary>\n"]
    assert html[1::2] == ["</details>\n"] * 2
    inline = [child for token in tokens for child in token.children or []]
    assert not [child for child in inline if child.type in ("html_inline", "link_open", "image")]
    rows = [token for token in tokens if token.type == "tr_open"]
    assert len(rows) == 1 + 2 + 2 * (1 + 3)


def _refused(text: str) -> dict[str, object]:
    return {"builder": text, "capability": "8.6", "proxy": True, "status": "refused", "detail": text}


def test_the_table_names_what_decided() -> None:
    shown = markdown.render(reports.report())
    assert "| int8 | merge-quantize | ✅ **PASS** | endpoint\\_error (LoRA) 0.15 | 0.13 .. 0.17 |" in shown
    lost = [reports.measurement("endpoint_error", value=0.8, low=0.7, high=0.9, status="fail")]
    failed = markdown.render(reports.report(reports.case(verdict="NEEDS-QAT", measurements=lost)))
    assert "⚠️ **NEEDS-QAT** | endpoint\\_error (LoRA) 0.80 | 0.70 .. 0.90 | \\<= 0.5 |" in failed
    assert "0 of 1 pass" in failed
    refused = markdown.render(reports.report(reports.case(verdict="FAIL-RECIPE", deciding=None)))
    assert "❌ **FAIL-RECIPE** | - |  |  |" in refused


def test_many_cases_fit_a_comment() -> None:
    many = [reports.case(f"scheme-{i}", measurements=[reports.measurement("endpoint_error")] * 30) for i in range(64)]
    shown = markdown.render(reports.report(*many))
    assert len(shown) <= markdown.COMMENT
    assert "Every measurement is in `report.json`" in shown
    assert shown.count("scheme-63") == 2
