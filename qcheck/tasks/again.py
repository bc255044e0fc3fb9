"""Every interval, p-value and verdict of a report again, from the numbers of its probes, without a model.

The functions that judged are the ones that judge again; only the runs are replaced by what they gave.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from qcheck.core.errors import UserError
from qcheck.judge import board
from qcheck.measure import classifier, effect
from qcheck.measure.interval import measure_all
from qcheck.measure.sample import BROKEN
from qcheck.result.audit import AuditedCase
from qcheck.result.basis import Basis
from qcheck.result.measurement import Judged, Measurement
from qcheck.result.report import Case, Report
from qcheck.result.verdict import Verdict
from qcheck.result.verified import Verified
from qcheck.spec.limits import Limits
from qcheck.tasks import basis as bases
from qcheck.tasks import on_board, trust
from qcheck.tasks.decide import broken, decide, grouped

_RELATIVE, _ABSOLUTE = 1e-6, 1e-9  # machines add in another order
_RERUNS = 0.025  # two of a hundred, which such sums can turn
_LIMIT, _NUMBERS = ("limit", "status", "warns"), ("value", "low", "high", "p")


def of_case(
    report: Report, case: Case, limits: Limits | None = None, lapsed: Sequence[str] = (), trusted: bool = True
) -> AuditedCase:
    """The verdict of one case again, by the report's limits and by those given.

    ``trusted`` is whether its trust is computed again too: a hundred verdicts more, which for a thousand pages of a
    sweep would take minutes.
    """
    audited = AuditedCase(scheme=case.scheme, order=case.order, stated=case.verdict, evidence=None, lapsed=list(lapsed))
    if case.basis is None:
        missing = "the report keeps no numbers of its probes, so nothing can be computed again"
        return audited.model_copy(update={"differences": [missing]})
    try:
        return _again(report, case, case.basis, limits, audited, trusted)
    except (ArithmeticError, LookupError, TypeError, ValueError, UserError) as error:
        reason = f"the numbers of its probes do not fit together: {str(error).splitlines()[0]}"
        return audited.model_copy(update={"differences": [reason]})


@BROKEN
def _again(
    report: Report, case: Case, basis: Basis, limits: Limits | None, audited: AuditedCase, trusted: bool
) -> AuditedCase:
    own = report.spec.bounds
    verdict = by(case, basis, own, report.spec.probes.groups)
    last = verdict if limits is None else _by_others(report, case, basis, limits)
    differences = [
        *_looked(case, basis, own, verdict),
        *_differences(report, case, basis, own, verdict),
        *_regrouped(report, case, basis, own),
        *(_trusted(report, case, basis, own, verdict) if trusted else ()),
        *([] if case.board is None else _on_board(case, case.board, own)),
    ]
    update = {"evidence": verdict.outcome, "reasons": list(last.reasons), "differences": differences}
    return audited.model_copy(update=update | ({} if limits is None else {"given": last.outcome}))


def by(case: Case, basis: Basis, limits: Limits, group_of: Sequence[str] = ()) -> Verdict:
    """The verdict of a case by limits, from the numbers of its probes, which are in groups where ``group_of`` says."""
    chosen, samples = _chosen(case, limits), bases.samples(basis.samples)
    if not basis.energies:
        return broken(chosen, samples)
    return decide(chosen, bases.instrument(basis), samples, bases.energies(basis), case.builds, group_of)


def _chosen(case: Case, limits: Limits) -> Limits:
    """The limits that hold for a case."""
    return limits.alone() if case.quantized_layers is None else limits.computing(case.compute)


def _by_others(report: Report, case: Case, basis: Basis, limits: Limits) -> Verdict:
    """The verdict by limits that the probes were not run for: open where these ask for more, or for fewer looks."""
    verdict = by(case, basis, limits, report.spec.probes.groups)
    taken = [look for look in report.spec.bounds.looks if look <= case.probes_used]
    reasons, name = [], f"limits {limits.name!r}"
    if case.probes_used < limits.looks[0]:
        reasons.append(f"{case.probes_used} probes were run, and the first look of {name} is at {limits.looks[0]}")
    if len(taken) > len(limits.looks):
        reasons.append(f"{len(taken)} looks were taken, and the alpha of {name} is for {len(limits.looks)}")
    return replace(verdict, outcome="INCONCLUSIVE", reasons=tuple(reasons)) if reasons and basis.energies else verdict


def _looked(case: Case, basis: Basis, limits: Limits, verdict: Verdict) -> Iterator[str]:
    """Whether the check ended at a look where it may end."""
    rows = {len(one.rows) for one in basis.samples} | {len(rows) for rows in basis.energies.values()}
    if rows != {case.probes_used}:
        yield f"probes_used is {case.probes_used}, and numbers of {', '.join(map(str, sorted(rows)))} probes are kept"
    if case.probes_used not in limits.looks:
        yield f"{case.probes_used} probes are no look of the limits: {', '.join(map(str, limits.looks))}"
    if verdict.outcome == "INCONCLUSIVE" and case.probes_used < limits.looks[-1]:
        yield f"the evidence is open at {case.probes_used} probes, and the check did not go on to {limits.looks[-1]}"


def _differences(report: Report, case: Case, basis: Basis, limits: Limits, verdict: Verdict) -> Iterator[str]:
    """The numbers of a case that are stated otherwise than the probes give them."""
    yield from repeated(case.measurements)
    stated = {(one.name, one.arm): one for one in case.measurements}
    rest = [Judged(**one.model_dump()) for one in _ungated(report, case, basis, limits)]
    for one in (*verdict.measurements, *rest):
        other = stated.pop((one.name, one.arm), None)
        if other is None:
            yield f"{one.name} ({one.arm}) is not in the report"
        else:
            yield from compared(other, one)
    for one in stated.values():
        if one.measured:
            yield f"{one.name} ({one.arm}) is {one.value:g} in the report, and no number of a probe gives it"
    if case.deciding != verdict.deciding and case.verdict == verdict.outcome:
        yield f"the verdict rests on {verdict.deciding}, and the report says {case.deciding}"


def _regrouped(report: Report, case: Case, basis: Basis, limits: Limits) -> Iterator[str]:
    """The groups of prompts that are stated otherwise than the probes give them."""
    again = grouped(limits, bases.samples(basis.samples), report.spec.probes.groups) if basis.energies else []
    if [(one.name, one.probes, one.outside) for one in case.groups] != [
        (one.name, one.probes, one.outside) for one in again
    ]:
        yield "the groups of prompts in the report are not those that the request and the probes give"
        return
    for stated, given in zip(case.groups, again, strict=True):
        yield from (f"group {given.name}: {text}" for text in compared(stated.survival, given.survival))


def repeated(measurements: Sequence[Judged]) -> Iterator[str]:
    """The measurements that are there twice: only one of them would be held against the numbers."""
    counts = Counter((one.name, one.arm, one.where if one.p is None else "") for one in measurements)
    yield from (f"{name} ({arm}) is there {count} times" for (name, arm, _), count in counts.items() if count > 1)


def _trusted(report: Report, case: Case, basis: Basis, limits: Limits, verdict: Verdict) -> Iterator[str]:
    """How far the verdict can be trusted, where that is stated otherwise than the probes give it."""
    stated = case.trust
    if (stated is None) != (not basis.energies):
        yield f"how far the verdict can be trusted is {'not ' if stated is None else ''}in the report"
    if stated is None or not basis.energies:
        return
    chosen = _chosen(case, limits)
    samples, energies = bases.samples(basis.samples), bases.energies(basis)
    given = trust.of(
        verdict, chosen, bases.instrument(basis), samples, energies, case.builds, report.spec.probes.groups
    )
    if not alike(stated.detectable_loss, given.detectable_loss):
        losses = _number(stated.detectable_loss), _number(given.detectable_loss)
        yield "the smallest detectable loss is {} in the report, and the probes give {}".format(*losses)
    if not alike(stated.rerun_stability, given.rerun_stability, _RERUNS):
        shares = _number(stated.rerun_stability), _number(given.rerun_stability)
        yield "{} of reruns end alike in the report, and the probes give {}".format(*shares)


def _on_board(case: Case, verified: Verified, limits: Limits) -> Iterator[str]:
    """The numbers and the verdict of every adapter of a board that are stated otherwise than its probes give them.

    The limit of endpoint_error is that of the case, which knows how far another seed moves.
    """
    limits = limits.allowing(
        {
            (one.name, one.arm): one.limit.high
            for one in case.measurements
            if one.name == "endpoint_error" and one.limit is not None and one.limit.high is not None
        }
    )
    for one in verified.every:
        yield from repeated(one.measurements)
        for stated in one.measurements:
            yield from (f"the board's {text}" for text in compared(stated, on_board.again(stated, limits, one.probes)))
        yield from board.differences(one, limits)


def _ungated(report: Report, case: Case, basis: Basis, limits: Limits) -> list[Measurement]:
    """The measurements without a limit again."""
    measurements = measure_all(bases.samples(basis.reported), {}, limits.alpha)
    arrays = {side: bases.array(rows) for side, rows in basis.classifier.items()}
    measurements += [classifier.of_scores(side, scores, limits.alpha) for side, scores in arrays.items()]
    if case.quantized_layers is not None and basis.energies:
        energies = bases.energies(basis)
        prompts = report.spec.probes.prompts[: len(energies.f1)]
        measurements.append(effect.worst_prompt(energies, bases.array(basis.floor), prompts))
    return measurements


def compared(stated: Judged, given: Judged) -> Iterator[str]:
    """What is stated of a measurement otherwise than it is given, in sentences."""
    title = f"{given.name} ({given.arm})"
    for name in _NUMBERS:
        here, there = getattr(stated, name), getattr(given, name)
        if not alike(here, there):
            yield f"{title}: {name} is {_number(here)} in the report, and the probes give {_number(there)}"
    for name in _LIMIT if given.limit is not None or stated.limit is not None else ():
        here, there = getattr(stated, name), getattr(given, name)
        if here != there:
            yield f"{title}: {name} is {_words(here)} in the report, and the evidence gives {_words(there)}"


def alike(a: float | None, b: float | None, tolerance: float = _ABSOLUTE) -> bool:
    """Whether two machines could both have computed it."""
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=tolerance) or (math.isnan(a) and math.isnan(b))


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.6g}"


def _words(value: Any) -> str:
    return value.text() if hasattr(value, "text") else str(value)
