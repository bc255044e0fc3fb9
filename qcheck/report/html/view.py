"""What the page says, in plain words and plain values; the template only lays it out."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from qcheck.core.size import megabytes
from qcheck.judge.recommend import recommended
from qcheck.report import numbers
from qcheck.report.next_command import next_command
from qcheck.report.text import board_lines, build_line, order_loses
from qcheck.result.evidence import Pictures
from qcheck.result.measurement import Judged
from qcheck.result.pictures import PicturesReport
from qcheck.result.report import Case, Report
from qcheck.result.verdict import Outcome
from qcheck.spec import command, measurement
from qcheck.spec.measurement import Limit

Kind = Literal["good", "bad", "open"]
KINDS: dict[Outcome, tuple[Kind, str]] = {
    "PASS": ("good", "✓"),
    "NEEDS-QAT": ("bad", "▲"),
    "FAIL-RECIPE": ("bad", "✕"),
    "FAIL-ADAPTER": ("bad", "✕"),
    "INCONCLUSIVE": ("open", "?"),
    "INVALID": ("open", "!"),
}
NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
_ALONE: dict[Outcome, str] = {
    "PASS": "{adapter} survives {scheme} on {target}.",
    "NEEDS-QAT": "{adapter} does not survive {scheme} on {target} as it is: the base does, the adapter does not.",
    "FAIL-RECIPE": "{scheme}, as it was made here, is not fit for {target}: it fails whatever the adapter.",
    "FAIL-ADAPTER": "{adapter} is broken at full precision already; {scheme} is not to blame.",
    "INCONCLUSIVE": "Whether {adapter} survives {scheme} on {target} is too close to call.",
    "INVALID": "There is no answer for {adapter} under {scheme}: a control failed.",
}
_LOST_TO_ORDER = "{adapter} is lost to its order, not to {scheme} on {target}: merge it before quantizing, not after."
_ON_BOARD = "{adapter} under {scheme} passes here and not on the board, a {target}: see what it measured."
_STATUS = {
    "pass": ("good", "✓", "inside"),
    "fail": ("bad", "✕", "outside"),
    "undecided": ("open", "?", "open"),
    "not measured": ("open", NONE, "not measured"),
    "reported": ("", "", "no limit"),
}
_ARMS = {"base": "base", "adapted": "with LoRA", "both": "LoRA beside base"}


def isolated(name: str) -> str:
    """A name whose direction of writing leaves its surroundings alone (Unicode's FSI and PDI)."""
    return f"\u2068{name}\u2069"


def name(source: str) -> str:
    """The last part of a path, a hub id as it is."""
    return PurePath(source).name if source.startswith(("/", ".")) or source.endswith(".safetensors") else source


def adapters(report: Report) -> str:
    """The judged adapters' names without endings."""
    judged = [adapter for adapter in report.adapters if adapter.arms == "adapted"]
    return " + ".join(isolated(name(adapter.source).removesuffix(".safetensors")) for adapter in judged)


def headline(report: Report) -> str:
    """The verdict in one sentence."""
    words = {"adapter": adapters(report), "target": report.target}
    judged = [case for case in report.cases if not case.control] or report.cases
    if len(judged) == 1:
        case = judged[0]
        sentence = _LOST_TO_ORDER if order_loses(case) else _ALONE[case.verdict]
        if case.outcome != case.verdict:
            sentence = _ON_BOARD
        return sentence.format(scheme=isolated(case.scheme), **words)
    passed = sum(case.outcome == "PASS" for case in judged)
    open_cases = sum(KINDS[case.outcome][0] == "open" for case in judged)
    all_words = "both ways" if len(judged) == 2 else f"all {len(judged)} ways"
    passed_words = all_words if passed == len(judged) else f"{passed or 'none'} of the {len(judged)} ways"
    open_words = f"; {open_cases} {'is' if open_cases == 1 else 'are'} open" if open_cases else ""
    return "{adapter} survives {counted} to quantize it for {target}{rest}.".format(
        counted=passed_words, rest=open_words, **words
    )


_BY_PICTURES: dict[Outcome, str] = {
    "PASS": "The style survives in these pictures.",
    "NEEDS-QAT": "The style is lost in these pictures.",
    "INCONCLUSIVE": "Whether the style survives is too close to call from these pictures.",
}


def pictures_headline(report: PicturesReport) -> str:
    """The verdict on folders of pictures in one sentence."""
    return _BY_PICTURES.get(report.verdict, "These pictures give no answer.")


def best(report: Report) -> Case | None:
    """The case to ship."""
    place = recommended(report.cases)
    return None if place is None else report.cases[place]


def shown(report: Report) -> list[Case]:
    """The cases in the page's order: the one to ship is first, and the page opens on it."""
    first = recommended(report.cases)
    return sorted(report.cases, key=lambda case: first is None or case is not report.cases[first])


def kind(report: Report) -> tuple[Kind, str]:
    """The page's kind and sign: those of the only case, or of the best verdict among several cases."""
    if len(report.cases) == 1:
        return KINDS[report.cases[0].outcome]
    looks = [KINDS[case.outcome] for case in report.cases if not case.control] or [("open", "?")]
    return next(
        (look for preferred in ("good", "open", "bad") for look in looks if look[0] == preferred), ("open", "?")
    )


@dataclass(frozen=True)
class Glyph:
    """A measurement drawn on a line of its own scale: allowed range, bounds and value in percent of the line."""

    allowed: tuple[float, float]
    interval: tuple[float, float]
    value: float


def glyph(judged: Judged) -> Glyph | None:
    """None where there is no limit, or no finite number to draw."""
    if judged.limit is None or judged.value is None or not math.isfinite(judged.value):
        return None
    low, high = judged.limit.low, judged.limit.high
    ends = [end if end is not None and math.isfinite(end) else judged.value for end in (judged.low, judged.high)]
    points = [x for x in (*ends, judged.value, low, high) if x is not None]
    width = (max(points) - min(points)) or 1.0
    first, span = min(points) - 0.25 * width, 1.5 * width

    def place(x: float) -> float:
        return round(100 * (x - first) / span, 2)

    allowed = (0.0 if low is None else place(low), 100.0 if high is None else place(high))
    return Glyph(allowed, (place(ends[0]), place(ends[1])), place(judged.value))


@dataclass(frozen=True)
class Row:
    """A measurement as a table shows it; ``about`` says in a sentence what it is."""

    name: str
    about: str
    arm: str
    value: str
    bounds: str
    limit: str
    kind: str
    mark: str
    word: str
    where: str
    glyph: Glyph | None


def row(judged: Judged) -> Row:
    """A measurement with its numbers as text."""
    kind, mark, word = _STATUS[judged.status]
    known, definition = judged.value is not None, measurement.find(judged.name)
    sampled = known and judged.low not in {None, judged.high}
    return Row(
        name=judged.name,
        about=f"{definition.title}: {definition.sentence}",
        arm=_ARMS[judged.arm],
        value=f"{number(judged.value)} {definition.of(judged.arm).symbol}".strip() if known else NONE,
        bounds=f"{number(judged.low)} to {number(judged.high)}" if sampled else "",
        limit=numbers.limit(judged)
        .replace(">=", "≥")
        .replace("<=", "≤")
        .replace("..", "to")
        .replace("-", MINUS)
        .replace(" ", "\N{NO-BREAK SPACE}"),
        kind=kind,
        mark=mark,
        word=word,
        where=judged.where,
        glyph=glyph(judged),
    )


def number(value: float | None) -> str:
    """Three significant digits, a true minus."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    return (f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}").replace("e-0", "e-").replace("-", MINUS)


@dataclass(frozen=True)
class Overview:
    """One row of the table of schemes."""

    case: Case
    kind: Kind
    mark: str
    sizes: str
    memory: str
    latency: str
    builds: list[str]
    decided: Row | None
    why: str
    board: list[str]
    board_kind: Kind | Literal[""]


_BOARD_KINDS: dict[str, Kind] = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "open"}


def overview(case: Case) -> Overview:
    """A case in one row."""
    kind, mark = KINDS[case.outcome]
    decided, estimate = case.decided, case.estimate
    sizes = [megabytes(size) for size in (case.full_precision_bytes, *(f.bytes for f in case.artifact[:1])) if size]
    board = case.board
    memory = latency = "not estimated"
    if estimate is not None:
        room = f" of {estimate.memory_gb:g} GB" if estimate.memory_gb is not None else ""
        memory = f"{megabytes(1e6 * estimate.total_mb)}{room}" + (
            "" if estimate.fits is not False else ": does not fit"
        )
        latency = (
            f"no bound: {estimate.missing}"
            if estimate.call_ms is None
            else f"≥ {estimate.call_ms:.3g} ms a call, {estimate.bound}-bound"
        )
    if board is not None and (cost := board.denoiser.cost).latency is not None:
        doubted = ", inconclusive" if cost.doubts else ""
        latency = f"{cost.latency.median:.3g} ms a call on the board{doubted}; estimated {latency}"
    if board is not None and board.denoiser.cost.memory is not None:
        memory = f"{megabytes(board.denoiser.cost.memory)} for the denoiser on the board; estimated {memory}"
    return Overview(
        case=case,
        board=[] if board is None else [f"{board.verdict} on {board.title}", *board.reasons, *board_lines(board)],
        board_kind="" if board is None else _BOARD_KINDS[board.verdict],
        kind=kind,
        mark=mark,
        sizes=" → ".join(sizes) or NONE,
        memory=memory,
        latency=latency,
        builds=[build_line(build) for build in case.builds],
        decided=row(decided) if decided is not None else None,
        why="closest to its limit" if case.verdict == "PASS" else "decided" if decided is not None else case.reasons[0],
    )


@dataclass(frozen=True)
class Before:
    """A case's numbers before any cure, as the table of cures has those after it."""

    verdict: Outcome
    survival: float | None
    excess_error: float | None
    bytes: int | None

    def __getitem__(self, name: str) -> float | None:
        value: float | None = getattr(self, name)
        return value


def before(report: Report, title: str) -> Before | None:
    """Those of the case with that scheme and order; None where the report has it no longer."""
    case = next((case for case in report.cases if f"{case.scheme}, {case.order}" == title), None)
    if case is None:
        return None
    values = {m.name: m.value for m in case.measurements if m.arm == "adapted"}
    size = case.artifact[0].bytes if case.artifact else None
    return Before(case.verdict, values.get("effect_survival"), values.get("excess_error"), size)


def groups(report: Report) -> list[str]:
    """The groups of the prompts."""
    return [name for name in dict.fromkeys(report.spec.probes.groups) if name]


def group(report: Report, probe: int) -> str:
    """The group of a probe's prompt, empty where it is in none."""
    names = report.spec.probes.groups
    return names[probe] if probe < len(names) else ""


def status_kind(judged: Judged) -> str:
    """The class of a measurement's status."""
    return _STATUS[judged.status][0]


def follows(report: Report) -> str | None:
    """The command to type next, from within the report's folder."""
    return next_command(report)


def again(report: Report) -> str:
    """The command line that asks for the same check, from within the report's folder."""
    return command.line(command.words(report.spec))


def request(report: Report) -> str:
    """The request as report.json holds it, indented."""
    return report.spec.model_dump_json(indent=1)


def digests(report: Report) -> Sequence[tuple[str, str, str]]:
    """Inputs and artifacts of the check: what each is, its source and its digest."""
    provenance = report.provenance
    return [
        ("base", report.base.source, report.base.digest),
        *((_adapter_line(u.weight, u.arms), u.source, u.digest) for u in report.adapters),
        ("probes", report.probes.name, report.probes.digest),
        ("recipe", provenance.recipe, provenance.recipe_digest),
        ("limits", provenance.limits, provenance.limits_digest),
        *((f"artifact, {c.scheme} {c.order}, {f.compute}", f.path, f.digest) for c in report.cases for f in c.artifact),
    ]


def _adapter_line(weight: float | None, arms: str | None) -> str:
    return f"adapter at weight {1.0 if weight is None else weight:g}" + (", in both arms" if arms == "both" else "")


def limits_of(case: Case) -> Mapping[tuple[str, str], Limit]:
    """The limit of every gated measurement of a case."""
    return {(judged.name, judged.arm): judged.limit for judged in case.measurements if judged.limit is not None}


def has_maps(uris: Container[str], shown: Sequence[Pictures]) -> bool:
    """Whether the page holds a FLIP error map."""
    return any(name in uris for pictures in shown for name in pictures.flip)


def no_maps(judged: Iterable[Case | PicturesReport]) -> str:
    """Why there are no FLIP error maps."""
    told = (one.where for case in judged for one in case.measurements if one.name == "flip" and not one.measured)
    return next(told, "this report holds none")
