"""What to do after a verdict, in words."""

from collections.abc import Sequence

from qcheck.judge.recommend import recommended
from qcheck.result.build import Build
from qcheck.result.report import Case
from qcheck.result.verdict import Outcome
from qcheck.spec import order as orders
from qcheck.spec.order import ORDERS

NEXT: dict[Outcome, str] = {
    "PASS": "Ship it, and measure its speed on the board.",
    "NEEDS-QAT": "The scheme is fine for the base but not for this adapter: try another order, other ranges or another "
    "scheme first, which need no training; QAT of the adapter comes last.",
    "FAIL-RECIPE": "The scheme breaks the base itself: change the recipe or the scheme. The adapter is not to blame.",
    "FAIL-ADAPTER": "The adapter is broken at full precision: retrain it. QAT cannot help.",
    "INCONCLUSIVE": "An interval straddles its limit or a probe is far off: allow more probes by --max-probes, beyond "
    "the last of `looks` by a limits file.",
    "INVALID": "A control failed, so no number here can be trusted: see the reasons.",
}


def next_step(outcome: Outcome, order: str, deployed: str | None, builds: Sequence[Build]) -> str:
    """What to do next; ``deployed`` is the file for the device, None where PyTorch quantizes while it loads.

    An order that loses adapters is the first thing to change. A file that no builder compiled is not shipped.
    """
    merge = (
        orders.merge(orders.find(order)) if order in ORDERS else None
    )  # the order of a file that someone else quantized is not known
    if outcome == "NEEDS-QAT" and merge is not None and merge.rounds_change_alone:
        return "Merging into a quantized base loses what is below half a step: use merge-quantize or unmerged."
    if outcome == "NEEDS-QAT" and merge is not None and merge.ranges == "shared":
        return "The base's ranges may be too narrow for this adapter: check merge-quantize, an engine of its own."
    if outcome == "INVALID" and any(build.status == "crashed" for build in builds):
        return "The builder crashed, so whether this file builds is open: see the reason; --no-build judges without it."
    if outcome == "FAIL-RECIPE" and any(build.status in ("refused", "fell back") for build in builds):
        return "The target does not run this file as asked: see the reason, then change the scheme or the target."
    if outcome == "PASS" and deployed is not None:
        return _ship(deployed, builds)
    return NEXT[outcome]


def among(cases: Sequence[Case]) -> list[Case]:
    """The cases of one check; for one that needs a cure the next step is what passes beside it, where anything does.

    The same scheme in another order comes first, then the smallest file of any scheme.
    """
    return [
        case.model_copy(update={"next": _instead(case, cases)}) if case.verdict == "NEEDS-QAT" else case
        for case in cases
    ]


def _instead(case: Case, cases: Sequence[Case]) -> str:
    for others in ([other for other in cases if other.scheme == case.scheme], cases):
        best = recommended(others)
        if best is not None:
            cure = others[best]
            return f"{cure.scheme} in order {cure.order} passes in this check: take that. No training is needed."
    return case.next


def _ship(deployed: str, builds: Sequence[Build]) -> str:
    finished = [build for build in builds if build.status == "built"]
    if not finished:
        return f"The numbers pass, but nothing has compiled {deployed} for the device yet: build it before you ship it."
    if any(build.realised is not None and not build.realised.complete for build in finished):
        return f"The numbers pass and {deployed} builds, but its precision could not be read: measure it on the board."
    return f"Ship {deployed}, and measure its speed on the board."
