"""The report as Markdown (GitHub's dialect), short enough for a pull request's comment or a model card."""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from qcheck.core.size import megabytes
from qcheck.report.next_command import next_command
from qcheck.report.numbers import ARMS, MARKS, bounds, limit, number, rest, shown
from qcheck.report.text import CURE, artifact_bytes, board_lines, build_line, order_loses
from qcheck.report.wording import line
from qcheck.result.measurement import Judged
from qcheck.result.report import Case, Report

COMMENT = 65_536  # characters that a comment on GitHub may have
SIGNS = {
    "PASS": "✅",
    "NEEDS-QAT": "⚠️",
    "FAIL-RECIPE": "❌",
    "FAIL-ADAPTER": "❌",
    "INCONCLUSIVE": "❔",
    "INVALID": "❔",
}
_MARKUP = re.compile(r"([\\`*_{}\[\]<>&|~$#!^\"]|:(?=[^\s\d]))")


def escape(text: str, most: int = 200) -> str:
    """``text`` as one line that renders as these very characters: no markup, table cell, link, mention or HTML.

    A word joiner after ``@`` keeps forges from notifying whoever has that name.
    """
    escaped = _MARKUP.sub(r"\\\1", line(text, most))
    return _without_mentions(re.sub(r"(?i)\b(www)\.", r"\1\.", escaped))


def _without_mentions(text: str) -> str:
    return text.replace("@", "@\u2060")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def render(report: Report) -> str:
    """The whole report; measurements of every case folded away, or left out where a comment could not hold them."""
    parts = [_headline(report), _cases(report), _verdicts(report), _next(report), _left_out(report)]
    short = "\n\n".join(part for part in parts if part)
    folded = "\n\n".join(_measurements(case) for case in report.cases)
    whole = f"{short}\n\n{folded}\n"
    return whole if len(whole) <= COMMENT else f"{short}\n\nEvery measurement is in `report.json`.\n"


def _headline(report: Report) -> str:
    passed = [case for case in report.cases if case.outcome == "PASS"]
    adapters = " + ".join(f"{escape(Path(adapter.source).name)} at {adapter.weight:g}" for adapter in report.adapters)
    lost = [case for case in report.cases if order_loses(case)]
    some = f"{len(lost)} of them: " if len(report.cases) > 1 else ""
    cure = f"; {some}{CURE}" if lost else ""
    return (
        f"### qcheck: {len(passed)} of {len(report.cases)} pass{cure}\n\n"
        f"{adapters} on {escape(Path(report.base.source).name)}, for {escape(report.target)}; "
        f"{report.probes.steps} steps at guidance {report.probes.guidance:g}; the adapter is "
        f"{100 * report.effect_size:.1f} % of the output"
    )


def _cases(report: Report) -> str:
    titles = ("scheme", "order", "verdict", "decided by", "95 % bounds", "limit", "denoiser file", "build")
    return table(titles, (_case(case) for case in report.cases))


def _case(case: Case) -> list[str]:
    deciding = case.decided
    size = " → ".join(megabytes(n) for n in (case.full_precision_bytes, artifact_bytes(case)) if n is not None)
    return [
        escape(case.scheme),
        escape(case.order),
        f"{SIGNS[case.outcome]} **{case.outcome}**",
        f"{escape(deciding.name)} ({ARMS[deciding.arm]}) {escape(number(deciding))}" if deciding else "-",
        bounds(deciding) if deciding else "",
        escape(limit(deciding)) if deciding else "",
        size or "-",
        ", ".join(dict.fromkeys(build.status for build in case.builds)) or "-",
    ]


def _verdicts(report: Report) -> str:
    lines = []
    for case in report.cases:
        lines.append(f"- **{case.outcome}** {escape(case.scheme)} {escape(case.order)}: {escape(case.next, 400)}")
        lines += [f"  - because {escape(reason, 400)}" for reason in case.reasons]
        lines += [f"  - warning: {escape(warning, 400)}" for warning in case.warnings]
        lines += [f"  - build: {escape(build_line(build), 400)}" for build in case.builds]
        if case.board is not None:
            lines.append(f"  - **{case.board.verdict}** on the board: {escape(case.board.title)}")
            lines += [f"    - because {escape(reason, 400)}" for reason in case.board.reasons]
            lines += [f"    - {escape(line, 400)}" for line in board_lines(case.board)]
    return "\n".join(lines)


def _next(report: Report) -> str:
    """The command to type next, as an indented block: its characters are shown as they are."""
    follows = next_command(report)
    return "" if follows is None else f"Next, in the folder of the report:\n\n    {line(follows, 4000)}"


def _left_out(report: Report) -> str:
    start = f"Limits: {escape(report.limits_grounds)}. "
    missing = ", ".join(escape(item.name) for item in report.not_measured) or "nothing"
    provenance = report.provenance
    error = "" if provenance.reference_error is None else f" (reference exact to {provenance.reference_error:.0f} dB)"
    return (
        f"{start}Not measured: {missing} (why: `report.json`).\n\n"
        f"qcheck {escape(provenance.qcheck)}, {escape(provenance.created)}, limits {escape(provenance.limits)}, "
        f"recipe {escape(provenance.recipe)}, probes {escape(report.probes.name)} `{escape(report.probes.digest)}`, "
        f"computed on {escape(provenance.device)}{error}"
    )


def judged_table(measurements: Iterable[Judged]) -> str:
    """Measurements with their bounds, limits and what became of them."""
    rows = [
        [
            escape(judged.name),
            ARMS[judged.arm],
            escape(number(judged)),
            bounds(judged),
            escape(limit(judged)),
            "not measured" if judged.value is None else MARKS.get(judged.status, ("", ""))[0],
        ]
        for judged in measurements
    ]
    return table(("measurement", "arm", "value", "95 % bounds", "limit", ""), rows)


def _measurements(case: Case) -> str:
    rows = judged_table(filter(shown, case.measurements))
    reported = f"\n\nReported without a limit: {escape(rest(case), 1000)}." if rest(case) else ""
    title = _without_mentions(html.escape(f"{line(case.scheme)} {line(case.order)}, {case.probes_used} probes"))
    trust = "" if case.trust is None else f"\n\nTrust: {case.trust.text()}."
    groups = "".join(f"\n- {escape(group.text(), 300)}" for group in case.groups)
    groups = f"\n\nGroups of prompts:\n{groups}" if groups else ""
    return f"<details><summary>{title}</summary>\n\n{rows}{reported}{groups}{trust}\n\n</details>"
