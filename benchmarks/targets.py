"""The targets that verdicts on the zoo are held to, each with what was measured; what is missed has its cause."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.judged import HARMED, Case, auc
from benchmarks.replays import FATES, LOOKS, Replay, Share, margins, two, why, with_fate
from qcheck.spec.limits import Limits


@dataclass(frozen=True)
class Target:
    """What was wanted and found, and whether that is met, None where it was not measured; why it is missed."""

    title: str
    value: str
    wanted: str
    met: bool | None
    cause: str = ""

    def text(self) -> str:
        """A line, and one of its cause where it is missed."""
        word = "not measured" if self.met is None else "met" if self.met else "MISSED"
        line = f"  {word:12} {self.title}: {self.value}, wanted {self.wanted}"
        return f"{line}\n{'':15}because: {self.cause}" if self.met is False and self.cause else line


def targets(replays: Sequence[Replay], chosen: Limits, others: Mapping[str, Share]) -> Iterator[Target]:
    """Every target, with what was measured on how many."""
    cases = [one.case for one in replays]
    for name in FATES:
        for pipeline in sorted({case.adapter["pipeline"] for case in cases}):
            yield _ranked(name, pipeline, [case for case in cases if case.adapter["pipeline"] == pipeline], chosen)
    both = [one for one in replays if one.case.by_style and one.case.by_utility]
    damaged, intact = [[one for one in replays if one.case.damaged is wanted] for wanted in (True, False)]
    further, last = [one for one in replays if one.case.looked_further], LOOKS[-1]
    missed, still = _missed(damaged), _open([one for one in replays if one.open], chosen)
    yield _share(
        "false PASS of what both judges call damaged", Share.of(both, lambda one: one.missed), 0, _missed(both)
    )
    yield _share("false PASS of what either calls damaged", Share.of(damaged, lambda one: one.missed), 0.02, missed)
    yield _share("false alarms", Share.of(intact, lambda one: one.alarm), 0.02, _alarms(intact, chosen))
    yield _share(f"open at {last} probes, where they were run", Share.of(further, lambda one: one.open), 0.1, still)
    yield _share(f"open at {last} probes, of all, older cases by a forecast", others["forecast"], 0.1, still)
    yield _share("alarms over harmless changes", others["harmless"], 0.01, least=1000)
    yield _share("half weight passes", others["half"], 0.01, _saturated(replays, chosen))
    same, median = others["reruns"], float(np.median([one.probes for one in replays]))
    yield Target("reruns with the same verdict", same.text(), ">= 95 %", same.count >= 0.95 * same.whole)
    yield Target("median probes", f"{median:g}", "<= 16", median <= 16)


def _ranked(fate: str, pipeline: str, cases: Sequence[Case], chosen: Limits) -> Target:
    """The AUC of the deciding score on a pipeline."""
    known, fates = with_fate(cases, FATES[fate])
    score, title, wanted = auc(margins(known, chosen), fates), f"AUC against {fate} on {pipeline}", ">= 0.95"
    if np.isnan(score):
        return Target(title, f"{int(fates.sum())} damaged of {len(fates)} cases", wanted, None)
    return Target(title, f"{score:.3f} ({len(fates)} cases)", wanted, score >= 0.95, _without(fate, cases, chosen))


def _without(fate: str, cases: Sequence[Case], chosen: Limits) -> str:
    """What the AUC is without the damage that this judge alone sees."""
    alone: Callable[[Case], bool] = _by_style_alone if fate == "style" else _by_base_alone
    left = [case for case in cases if not alone(case)]
    known, fates = with_fate(left, FATES[fate])
    what = "the style judge alone calls damaged" if fate == "style" else "the base alone makes damaged"
    return f"without the {len(cases) - len(left)} that {what}: {two(auc(margins(known, chosen), fates))}"


def _by_style_alone(case: Case) -> bool:
    return bool(case.by_style) and not case.by_utility and not case.by_own_utility


def _by_base_alone(case: Case) -> bool:
    return bool(case.by_utility) and not case.by_own_utility


def _share(title: str, share: Share, most: float, cause: str = "", least: int = 1) -> Target:
    wanted = f"<= {100 * most:g} %"
    if share.whole < least:
        return Target(title, share.text(), f"{wanted} of {least} or more", None)
    return Target(title, share.text(), wanted, share.count <= most * share.whole, cause)


def _missed(damaged: Sequence[Replay]) -> str:
    reasons = Counter(why(one.case, None) for one in damaged if one.missed)
    return "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())


def _alarms(intact: Sequence[Replay], chosen: Limits) -> str:
    alarms = [one for one in intact if one.alarm]
    reasons = Counter(f"{one.outcome} by {one.case.cause(chosen)}" for one in alarms)
    each = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    left = [one.case.utility.value for one in alarms]
    return (
        f"{each}; they keep {two(min(left, default=1))} to {two(max(left, default=1))} of U, where {HARMED:g} is damage"
    )


def _open(still: Sequence[Replay], chosen: Limits) -> str:
    reasons = Counter(f"{one.case.adapter['pipeline']}: {one.case.cause(chosen)}" for one in still)
    return "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(4))


def _saturated(replays: Sequence[Replay], chosen: Limits) -> str:
    (low,) = [gate.low for gate in chosen.gates if gate.name == "effect_survival"]
    sound = [one.case for one in replays if one.outcome != "FAIL-ADAPTER"]
    passing = [case for case in sound if case.half >= (low or 0)]
    halves = {f"{case.adapter['pipeline']} {case.adapter['adapter']}": case.half for case in passing}
    each = ", ".join(f"{name} {two(half)}" for name, half in halves.items())
    return f"half of the weight does nearly all of what these do, and a check weakens them further: {each}"
