"""The report people look at: one HTML file that needs no network, rendered from an output folder alone.

A folder's report.json, evidence.json, pictures/ and, where cures were tried, advice.json are all it reads, so that it
can be rendered again at any time. Text from files goes through Jinja's autoescape or into JSON with ``<`` escaped;
a content security policy allows the page its own two scripts and nothing from outside.
"""

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from pydantic import ValidationError

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.core.values import Value
from qcheck.report.html import charts, view
from qcheck.report.html.charts import Chart
from qcheck.report.numbers import shown
from qcheck.report.wording import printable
from qcheck.result import evidence
from qcheck.result.evidence import CaseEvidence, Evidence, Pictures
from qcheck.result.measurement import NotMeasured
from qcheck.result.pictures import PicturesReport
from qcheck.result.report import Case, Report

NAME = "report.html"
BUDGET = 3_500_000  # bytes of pictures in one page; the rest stays in the folder, and the page says so
_VEGA = "window.vegaEmbed = vegaEmbed;"
Record = Mapping[str, Any]
V = TypeVar("V", bound=Value)


@dataclass(frozen=True)
class Source:
    """What a page is rendered from.

    ``pictures`` are data URIs by their name in the evidence, ``full`` the files in full size of those that were shrunk.
    """

    report: Report
    evidence: Evidence | None
    cures: Sequence[Record]
    pictures: Mapping[str, str]
    full: Mapping[str, str]


def write(folder: Path) -> Path:
    """Render ``folder``'s report.html from the other files in it.

    Raises:
        UserError: there is no report in it, or one of another version.
    """
    files.write(folder / NAME, render(read(folder)))
    return folder / NAME


def read(folder: Path) -> Source:
    """The report of an output folder, with its evidence, pictures and tried cures.

    Raises:
        UserError: no report, or a file that this version does not read.
    """
    report = _value(Report, folder / "report.json")
    if report is None:
        raise UserError(f"no report.json in {str(folder)!r}", "Give the --out folder of a finished check.")
    stored_evidence = _value(Evidence, folder / evidence.NAME)
    pictures = {} if stored_evidence is None else _pictures(stored_evidence, folder)
    full = {name: large for name in pictures if (folder / (large := evidence.full_size(name))).is_file()}
    return Source(report, stored_evidence, _cures(folder / "advice.json"), pictures, full)


def _value(kind: type[V], path: Path) -> V | None:
    """The value in a file; None where there is no file."""
    try:
        return kind.model_validate_json(files.read_bytes(path)) if path.exists() else None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}", "Run the check again with this version.") from error
    except OSError as error:
        raise UserError(f"{path}: {error}", "Give a folder that you may read.") from error


def _cures(path: Path) -> list[Record]:
    """The rows of the table of tried cures: the cures of ``qcheck advise``, each with its case."""
    try:
        advice = files.read_object(path) if path.exists() else {"cases": []}
        return [
            {"for": f"{case['scheme']}, {case['order']}", "cure": case["cure"] == place} | remedy
            for case in advice["cases"]
            for place, remedy in enumerate(case["tried"])
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no advice: {error}", "Remove it, or run qcheck advise again.") from error


def _pictures(stored_evidence: Evidence, folder: Path) -> dict[str, str]:
    """Pictures of all cases as data URIs."""
    return _within_budget(stored_evidence.pictures, len(stored_evidence.prompts), folder)


def _within_budget(shown: Sequence[Pictures], rows: int, folder: Path) -> dict[str, str]:
    """Data URIs by name, probe by probe until the budget is spent: first all pictures, then their FLIP maps."""
    groups = [[name for p in shown for name in p.of(row)] for row in range(rows)]
    maps = [[name for p in shown for name in p.flip[row : row + 1]] for row in range(rows)]
    uris, size = dict[str, str](), 0
    for names in (*groups, *maps):
        new = {name: _uri(folder, name) for name in dict.fromkeys(names) if name not in uris}
        size += sum(map(len, new.values()))
        if size > BUDGET and uris:
            break
        uris |= new
    return uris


def _uri(folder: Path, name: str) -> str:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder / evidence.NAME} names a file outside its folder: {name}", "Run the check again.")
    try:
        return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError as error:
        raise UserError(f"{path}: {error}", f"Run the check again, or take {evidence.NAME} away.") from error


@dataclass(frozen=True)
class Panel:
    """What the page shows of one case beyond the overview: ``seen`` is its evidence, ``layers`` its table of layers."""

    case: Case
    seen: CaseEvidence | None
    rows: Sequence[view.Row]
    reported: Sequence[view.Row]
    plots: Mapping[str, Sequence[Chart]]
    layers: Sequence[Record]


def panel(source: Source, case: Case) -> Panel:
    """One case's part of the page."""
    case_evidence = None
    if source.evidence is not None:
        case_evidence = next(
            (s for s in source.evidence.cases if (s.scheme, s.order) == (case.scheme, case.order)), None
        )
    rows = [view.row(m) for m in case.measurements]
    decisive = [shown(m) for m in case.measurements]
    layers = _layers(case, case_evidence, source.evidence.alignment if source.evidence is not None else {})
    return Panel(
        case=case,
        seen=case_evidence,
        rows=[r for r, decides in zip(rows, decisive, strict=True) if decides],
        reported=[r for r, decides in zip(rows, decisive, strict=True) if not decides],
        plots=_plots(source, case, case_evidence, layers),
        layers=layers,
    )


def _layers(case: Case, case_evidence: CaseEvidence | None, alignment: Mapping[str, float]) -> list[Record]:
    """Rows by layer: delta survival and alignment from the evidence, sensitivity from the report."""
    rows: dict[str, dict[str, Any]] = {
        layer.name: layer.model_dump(include={"kind", "share", "weight", "activation"}) for layer in case.layers
    }
    for arrival in case_evidence.arrivals if case_evidence is not None else ():
        numbers = {"survival": charts.finite(arrival.survival), "snr": charts.finite(arrival.snr)}
        rows[arrival.layer] = rows.get(arrival.layer, {}) | numbers
    for name, decibels in alignment.items():
        if name in rows:
            rows[name]["alignment"] = charts.finite(decibels)
    return [{"layer": name} | row for name, row in rows.items()]


def _plots(
    source: Source, case: Case, case_evidence: CaseEvidence | None, layers: Sequence[Record]
) -> dict[str, list[Chart]]:
    sensitive = [row for row in layers if row.get("share") is not None]
    plots = {"layers": [charts.shares(sensitive)] if sensitive else []}
    if case_evidence is None or source.evidence is None:
        return plots
    plots["layers"] += [charts.arrivals(case_evidence.arrivals)] if case_evidence.arrivals else []
    return plots | {
        "steps": charts.steps(source.report, source.evidence, case, case_evidence, view.limits_of(case)),
        "spectra": charts.spectra(source.evidence, case_evidence),
        "latents": charts.latents(case_evidence),
    }


def missing(source: Source, panels: Sequence[Panel]) -> list[NotMeasured]:
    """What was not measured: the report's own list, and the sections for which the folder holds no data."""
    items = [*source.report.not_measured]
    if source.evidence is None:
        items.append(NotMeasured(name="pictures and curves", reason=f"the folder has no {evidence.NAME}"))
    if not any(row.get("share") is not None for p in panels for row in p.layers):
        items.append(NotMeasured(name="sensitivity by layer", reason="this report holds none"))
    reasons = {p.seen.no_arrivals: p for p in panels if p.seen is not None and p.seen.no_arrivals}
    items += [NotMeasured(name="delta survival by layer", reason=reason) for reason in reasons]
    if not source.cures:
        items.append(NotMeasured(name="cures", reason="none was tried: the folder has no advice.json"))
    return items


def render(source: Source) -> str:
    """The whole page."""
    cases = view.shown(source.report)
    panels = [panel(source, case) for case in cases]
    scripts = {
        "vega": _vega(),
        "own": _asset("page.js"),
        "divider": _asset("divider.js"),
        "probes": _asset("probes.js"),
    }
    data = {
        "plots": [{f"{group}-{i}": c.spec for group, cs in p.plots.items() for i, c in enumerate(cs)} for p in panels],
        "layers": [p.layers for p in panels],
        "survivals": [[] if p.seen is None else [charts.finite(x) for x in p.seen.survivals] for p in panels],
        "allowed": [_allowed(p.case) for p in panels],
    }
    text: str = template().render(
        source=source,
        report=source.report,
        evidence=source.evidence,
        panels=panels,
        overviews=[view.overview(case) for case in cases],
        missing=missing(source, panels),
        view=view,
        data=data,
        style=Markup(_asset("style.css")),  # noqa: S704  # the package's own file
        scripts={name: Markup(text) for name, text in scripts.items()},  # noqa: S704  # the package's and the library's
        policy=" ".join(f"'sha256-{digest(script)}'" for script in scripts.values()),
    )
    return text


def _allowed(case: Case) -> tuple[float | None, float | None]:
    """The limits of a probe's survival."""
    limit = next((m.limit for m in case.measurements if (m.name, m.arm) == ("effect_survival", "adapted")), None)
    return (None, None) if limit is None else (limit.low, limit.high)


def pictures_page(report: PicturesReport, folder: Path) -> str:
    """The page of ``qcheck pictures``: the same parts, without what a black box cannot tell.

    Pictures beyond the budget stay in the folder.
    """
    uris = _within_budget(report.shown, len(report.shown_pairs), folder)
    scripts = [_asset("page.js"), _asset("divider.js")]
    rows = [view.row(judged) for judged in report.measurements]
    decisive = [judged.limit is not None for judged in report.measurements]
    text: str = template("pictures.html.jinja").render(
        report=report,
        uris=uris,
        rows=[row for row, decides in zip(rows, decisive, strict=True) if decides],
        reported=[row for row, decides in zip(rows, decisive, strict=True) if not decides],
        view=view,
        data={"plots": [{}], "layers": [[]]},
        style=Markup(_asset("style.css")),  # noqa: S704  # the package's own file
        scripts=[Markup(script) for script in scripts],  # noqa: S704  # the package's own files
        policy=" ".join(f"'sha256-{digest(script)}'" for script in scripts),
    )
    return text


def digest(script: str) -> str:
    """The SHA-256 of a script, as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    return vl_convert.javascript_bundle(_VEGA)


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text("utf-8")


def template(name: str = "page.html.jinja", package: str = __name__) -> Template:
    """A template of a package of pages: what it shows is escaped, and a name that it does not have is an error."""
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        finalize=printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
