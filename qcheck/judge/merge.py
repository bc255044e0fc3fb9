"""A board's own measurements in the report of the host."""

from qcheck.core.errors import UserError
from qcheck.result.report import Case, Report
from qcheck.result.verified import Verified


def merged(report: Report, verified: Verified) -> Report:
    """The report with what a board said of one of its cases.

    Raises:
        UserError: the board verified another base, adapter, target or case.
    """
    asked = verified.asked
    pairs = (
        ("base", report.base.digest, asked.base_digest),
        ("adapter", [one.digest for one in report.adapters if one.arms == "adapted"], asked.adapter_digests),
        ("weight", [one.weight for one in report.adapters if one.arms == "adapted"], asked.weights),
        ("target", report.target, asked.target),
        ("guidance", report.probes.guidance, asked.guidance),
        ("number of steps", report.probes.steps, asked.steps),
        ("set of limits", report.provenance.limits_digest, asked.limits_digest),
    )
    for name, here, there in pairs:
        if here != there:
            raise UserError(
                f"the board verified another {name}: {there}, and the report has {here}",
                "Give the report of the check whose bundle was verified.",
            )
    key = (asked.scheme, asked.order)
    if key not in [(case.scheme, case.order) for case in report.cases]:
        known = ", ".join(f"{case.scheme} {case.order}" for case in report.cases)
        raise UserError(
            f"the board verified {' '.join(key)}, and the report has {known}", "Give the report that has it."
        )
    cases = [_with(case, verified) if (case.scheme, case.order) == key else case for case in report.cases]
    return report.model_copy(update={"cases": cases})


def _with(case: Case, verified: Verified) -> Case:
    following = case.next if verified.verdict == "PASS" else _NEXT[verified.verdict]
    return case.model_copy(update={"board": verified, "next": following})


_NEXT = {
    "FAIL": "Do not ship it: the board's own engine does not pass, for the reasons beside it. Try another scheme.",
    "INCONCLUSIVE": "The board's own engine is open: verify it again with more --bundle-probes.",
}
