"""Several reports in one matrix, and a report compared with a baseline. Only report.json is read."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from qcheck.core.values import Value
from qcheck.judge.recommend import ALIKE, recommended, ships
from qcheck.result.measurement import Judged
from qcheck.result.report import Case, Report
from qcheck.result.verdict import Outcome
from qcheck.result.verified import Verified
from qcheck.spec.arm import Arm
from qcheck.spec.measurement import Limit

Direction = Literal["worse", "better", "other"]


class Cell(Value):
    """One report's result for one scheme in one order; ``bytes`` is the size of the artifact's file, None without one.

    ``reason`` is the first reason of the verdict; for a PASS it is the measurement that is closest to its limit.
    ``board`` is the verdict and the latency that a board measured, None where none was asked.
    """

    scheme: str
    order: str
    verdict: Outcome
    survival: Judged | None
    deciding: Judged | None
    bytes: int | None
    reason: str
    board: str | None = None


class Row(Value):
    """One report: its path, its adapters, its base, its target and its cases."""

    source: str
    adapter: str
    base: str
    target: str
    cells: list[Cell]


class Pick(Value):
    """What to ship to a target: a case of the report with index ``row``, and why; ``row`` is None to ship nothing."""

    target: str
    row: int | None
    scheme: str = ""
    order: str = ""
    why: str


class Matrix(Value):
    """One row for each report; ``columns`` are all pairs of scheme and order that any of them has.

    ``picks`` says what to ship, target by target.
    """

    columns: list[tuple[str, str]]
    rows: list[Row]
    picks: list[Pick]


def matrix(reports: Sequence[tuple[str, Report]]) -> Matrix:
    """The reports, each with its path, as rows of one table."""
    rows = [
        Row(
            source=source,
            adapter=adapter(report),
            base=Path(report.base.source).name,
            target=report.target,
            cells=[_cell(case) for case in report.cases],
        )
        for source, report in reports
    ]
    columns = dict.fromkeys((cell.scheme, cell.order) for row in rows for cell in row.cells)
    picks = [_pick(target, reports) for target in dict.fromkeys(report.target for _, report in reports)]
    return Matrix(columns=list(columns), rows=rows, picks=picks)


def _pick(target: str, reports: Sequence[tuple[str, Report]]) -> Pick:
    """The smallest file that passes for ``target``; among files as small the one with the most room to its limits.

    What passes in one report and not in another of the same files, scheme and order is not taken.
    """
    passing = [
        (n, case)
        for n, (_, report) in enumerate(reports)
        if report.target == target
        for case in filter(ships, report.cases)
    ]
    doubted = {_subject(report, case) for _, report in reports for case in report.cases if case.outcome != "PASS"}
    candidates = [(n, case) for n, case in passing if _subject(reports[n][1], case) not in doubted]
    if not candidates:
        why = "what passes in one report does not in another of the same files" if passing else _NONE
        return Pick(target=target, row=None, why=why)
    return _picked(target, candidates)


_NONE = "nothing that quantizes passes: `qcheck advise REPORT` tries cures"


def _subject(report: Report, case: Case) -> tuple[object, ...]:
    """The files, scheme, order and target that a case is about: two reports may answer differently on it."""
    adapters = [(use.digest, use.weight, use.arms) for use in report.adapters]
    return report.base.digest, *adapters, report.target, case.scheme, case.order


def _picked(target: str, candidates: Sequence[tuple[int, Case]], where: str = "") -> Pick:
    """The best of cases that ship, each with the index of its report; ``where`` says in words what was looked at."""
    best = recommended([case for _, case in candidates])
    row, case = candidates[best or 0]
    sizes = [other.artifact[0].bytes for _, other in candidates]
    smallest = sum(size <= ALIKE * min(sizes) for size in sizes)
    why = f"the smallest of the {len(sizes)} that pass{where}" if len(sizes) > 1 else f"the only one that passes{where}"
    if smallest > 1:
        why = f"of the {smallest} smallest that pass{where}, the one with the most room to its limits"
    return Pick(target=target, row=row, scheme=case.scheme, order=case.order, why=why)


def adapter(report: Report) -> str:
    """The names of a report's adapters, with their weights where those are not 1."""
    return " + ".join(
        Path(use.source).stem + (f" at {use.weight:g}" if use.weight not in (None, 1.0) else "")
        for use in report.adapters
    )


def _cell(case: Case) -> Cell:
    survival = next((judged for judged in case.measurements if judged.name == "effect_survival"), None)
    return Cell(
        scheme=case.scheme,
        order=case.order,
        verdict=case.verdict,
        survival=survival,
        deciding=case.decided,
        bytes=case.artifact[0].bytes if case.artifact else None,
        reason=_reason(case),
        board=None if case.board is None else _board(case.board),
    )


def _board(board: Verified) -> str:
    """A board's verdict, and its latency where it was measured."""
    latency = board.denoiser.cost.latency
    doubted = " (inconclusive)" if board.denoiser.cost.doubts else ""
    timed = "" if latency is None else f", {latency.median:.3g} ms a call{doubted}"
    return f"{board.verdict} on {board.title}{timed}"


def _reason(case: Case) -> str:
    deciding = case.decided
    if case.verdict != "PASS" or deciding is None or deciding.limit is None:
        return case.reasons[0]
    return f"{deciding.name} ({deciding.arm}) {_value_text(deciding)}, limit {deciding.limit.text()}, is closest"


class Change(Value):
    """A result that differs: a verdict, a build, a measurement, or a case that only one of the two reports has."""

    scheme: str
    order: str
    name: str
    arm: Arm | None = None
    direction: Direction
    before: str
    after: str
    limit: Limit | None = None


class Difference(Value):
    """An input in which the two checks differ, so that a change may come from it."""

    name: str
    before: str
    after: str


class Comparison(Value):
    """A report against a baseline. ``compared`` counts the measurements that both have and that have a limit.

    ``matrix`` has both beside each other, and which case of the new report to ship, if any.
    """

    baseline: str
    new: str
    compared: int
    differences: list[Difference]
    changes: list[Change]
    matrix: Matrix

    @property
    def regressed(self) -> bool:
        """Whether anything got worse."""
        return any(change.direction == "worse" for change in self.changes)


def against(baseline: tuple[str, Report], new: tuple[str, Report]) -> Comparison:
    """What changed from the baseline to the new report; each is a pair of path and report."""
    before, after = _by_key(baseline[1].cases), _by_key(new[1].cases)
    both = [(before[key], after[key]) for key in before if key in after]
    changes = [_one_sided(case, "worse") for key, case in before.items() if key not in after]
    changes += [change for pair in both for change in _changes(*pair)]
    changes += [_one_sided(case, "other") for key, case in after.items() if key not in before]
    return Comparison(
        baseline=baseline[0],
        new=new[0],
        compared=sum(len(_gated(was) & _gated(now)) for was, now in both),
        differences=list(_differences(baseline[1], new[1])),
        changes=changes,
        matrix=matrix([baseline, new]).model_copy(update={"picks": [_pick_new(baseline[1], new[1], changes)]}),
    )


def _pick_new(baseline: Report, new: Report, changes: Sequence[Change]) -> Pick:
    """What to ship of a report that is held against a baseline: of what passes in it only what did not get worse."""
    worse = {(change.scheme, change.order) for change in changes if change.direction == "worse"}
    passing = [case for case in new.cases if ships(case)]
    kept = [case for case in passing if (case.scheme, case.order) not in worse]
    if kept:
        pick = _picked(new.target, [(1, case) for case in kept], " in the new report")
        left_out = len(passing) - len(kept)
        return pick.model_copy(update={"why": f"{pick.why}; {left_out} more got worse"}) if left_out else pick
    before = [(case.scheme, case.order) for case in baseline.cases if ships(case)]
    if not worse:
        why = _NONE
    elif before:
        why = "it got worse than the baseline, which passes: keep shipping that until the loss is explained"
    else:
        why = "it got worse, and nothing of the baseline passes either: `qcheck advise REPORT` tries cures"
    return Pick(target=new.target, row=None, why=why)


def _by_key(cases: Sequence[Case]) -> dict[tuple[str, str], Case]:
    return {(case.scheme, case.order): case for case in cases}


def _gated(case: Case) -> set[tuple[str, Arm]]:
    return {(judged.name, judged.arm) for judged in case.measurements if judged.limit is not None}


def _one_sided(case: Case, direction: Direction) -> Change:
    """A case that one report lacks; a case that only the baseline has is worse, because it is no longer checked."""
    sides = (case.verdict, "not checked") if direction == "worse" else ("not checked", case.verdict)
    return Change(
        scheme=case.scheme, order=case.order, name="case", direction=direction, before=sides[0], after=sides[1]
    )


def _changes(was: Case, now: Case) -> Iterator[Change]:
    """Every change of one case: verdict, builds, then measurements."""
    if was.verdict != now.verdict:
        yield _change(now, "verdict", _step("PASS", was.verdict, now.verdict), was.verdict, now.verdict)
    before, after = ("not asked" if case.board is None else case.board.outcome for case in (was, now))
    if before != after:
        step = _standing(now.board) - _standing(was.board)
        yield _change(now, "the board", "better" if step > 0 else "worse" if step < 0 else "other", before, after)
    statuses = (
        {build.builder: build.status for build in was.builds},
        {build.builder: build.status for build in now.builds},
    )
    for builder in dict.fromkeys([*statuses[0], *statuses[1]]):
        before, after = (side.get(builder, "not run") for side in statuses)
        if before != after:
            yield _change(now, f"build by {builder}", _step("built", before, after), before, after)
    measurements = {(m.name, m.arm): m for m in was.measurements}, {(m.name, m.arm): m for m in now.measurements}
    for key in dict.fromkeys([*measurements[0], *measurements[1]]):
        old, new = (side.get(key) for side in measurements)
        limit = next((m.limit for m in (new, old) if m is not None and m.limit is not None), None)
        direction = compare(old, new, limit) if limit is not None else None
        if direction is not None:
            change = _change(now, key[0], direction, _value_text(old), _value_text(new))
            yield change.model_copy(update={"arm": key[1], "limit": limit})


def _change(case: Case, name: str, direction: Direction, before: str, after: str) -> Change:
    return Change(scheme=case.scheme, order=case.order, name=name, direction=direction, before=before, after=after)


def _standing(board: Verified | None) -> int:
    """How much a board's answer vouches for: its engine passed, its numbers passed, nothing is known, it failed."""
    if board is None or board.verdict == "INCONCLUSIVE":
        return 1
    return 0 if board.verdict != "PASS" else 3 if board.runner.deployed else 2


def _step(good: str, before: str, after: str) -> Direction:
    return "worse" if before == good else "better" if after == good else "other"


def compare(was: Judged | None, now: Judged | None, limit: Limit) -> Direction | None:
    """How a measurement changed with respect to ``limit``; None where the change is uncertain or small.

    A change is uncertain where the two intervals touch. The room of a value is its distance to the nearest side of the
    limit: a change is small unless more than a quarter of the better value's room is gone, or the status changed. A
    measurement that was not sampled has no interval: it changes when its status changes. A value that is missing or not
    finite in the new report alone is worse: not measured is never passed.
    """
    old, new = _number(was), _number(now)
    if was is None or now is None or old is None or new is None:
        return "worse" if old is not None else "other" if new is not None else None
    if was.p is None or now.p is None:
        return _step("pass", was.status, now.status) if was.status != now.status else None
    before, after = _interval(was), _interval(now)
    if after[0] <= before[1] and before[0] <= after[1]:
        return None
    gain = _room(new, limit) - _room(old, limit)
    if was.status == now.status and abs(gain) <= _MATTERS * abs(max(_room(old, limit), _room(new, limit))):
        return None
    return "worse" if gain < 0 else "better"


_MATTERS = 0.25


def _room(value: float, limit: Limit) -> float:
    """The distance of a value to the nearest side of its limit; negative outside."""
    low, high = limit.low, limit.high
    return min([*([] if low is None else [value - low]), *([] if high is None else [high - value])])


def _number(judged: Judged | None) -> float | None:
    return judged.value if judged is not None and judged.value is not None and math.isfinite(judged.value) else None


def _interval(judged: Judged) -> tuple[float, float]:
    """The bounds; one that is not known is infinite."""
    low, high = (math.nan if bound is None else bound for bound in (judged.low, judged.high))
    return (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)


def _value_text(judged: Judged | None) -> str:
    if judged is None or judged.value is None:
        return "not measured"
    has_interval = judged.low is not None and judged.high is not None and judged.low != judged.high
    return f"{judged.value:.3g}" + (f" [{judged.low:.3g}, {judged.high:.3g}]" if has_interval else "")


def _differences(before: Report, after: Report) -> Iterator[Difference]:
    pairs = zip(_inputs(before).items(), _inputs(after).values(), strict=True)
    for (name, old), new in pairs:
        if old != new:
            yield Difference(name=name, before=old, after=new)


def _inputs(report: Report) -> dict[str, str]:
    """The inputs that a report's numbers depend on, by name; files are identified by digest."""
    provenance, probes = report.provenance, report.probes
    adapters = [f"{Path(a.source).name} {a.digest} at {a.weight:g} in {a.arms}" for a in report.adapters]
    return {
        "base": f"{Path(report.base.source).name} {report.base.digest}",
        "adapters": " + ".join(adapters),
        "target": report.target,
        "probes": f"{probes.name} {probes.digest}",
        "sampling": f"{probes.steps} steps at guidance {probes.guidance:g} from seed {probes.seed}",
        "recipe": f"{provenance.recipe} {provenance.recipe_digest}",
        "limits": f"{provenance.limits} {provenance.limits_digest}",
        "qcheck": f"{provenance.qcheck} {provenance.commit or ''}".strip(),
        "libraries": ", ".join(f"{name} {version}" for name, version in provenance.versions.items()),
    }
