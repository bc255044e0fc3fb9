"""How well the verdicts agree with what became of the zoo's adapters, by judges that are no measurements of qcheck.

``python -m benchmarks.verdicts`` reads ``zoo/*/cases`` and ``zoo/*/harmless``, which ``benchmarks.zoo.cases`` and
``benchmarks.zoo.harmless`` make, and prints: every pipeline at every guidance with the causes of alarms and of what
passed although it is damaged; each pipeline with the limits that the other pipelines alone would set; harmless changes;
half of an adapter's weight; reruns. Intervals resample adapters. Targets that are missed are listed at the end.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judged import Case, auc, badness, balanced, best_cut, interval, read, witnessed
from benchmarks.replays import ALARMS, FATES, LOOKS, Replay, Share, margins, table, two, why, with_fate
from benchmarks.targets import targets
from benchmarks.zoo.pipelines import PIPELINES
from benchmarks.zoo.style import TOLD
from qcheck.spec import limits
from qcheck.spec.limits import Gate, Limits

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
MARKED = re.compile(r"(<!-- verdicts:begin -->\n).*?(<!-- verdicts:end -->)", re.DOTALL)
PSNR, SSIM = 30.0, 0.95  # bars that golden pictures are often held to
_RERUNS = 20


def grouped(replays: Sequence[Replay]) -> dict[tuple[str, float], list[Replay]]:
    """By pipeline and guidance."""
    groups: dict[tuple[str, float], list[Replay]] = {}
    for one in replays:
        groups.setdefault((one.case.adapter["pipeline"], one.case.adapter["guidance"]), []).append(one)
    return dict(sorted(groups.items()))


def by_pipeline(replays: Sequence[Replay], chosen: Limits) -> str:
    """Every pipeline at every guidance: verdicts by the limits of today beside the judges."""
    rows = [
        [
            "pipeline, guidance",
            "adapters",
            "cases",
            "damaged by both",
            "PASS",
            "by either",
            "PASS",
            "intact",
            "alarms",
            "open",
            "probes",
            *(f"AUC {name}" for name in FATES),
        ]
    ]
    for (pipeline, guidance), those in [*grouped(replays).items(), (("all", 0.0), list(replays))]:
        cases = [one.case for one in those]
        ranked = [with_fate(cases, fate) for fate in FATES.values()]
        scores = [auc(margins(known, chosen), damaged) for known, damaged in ranked]
        both = [one for one in those if one.case.by_style and one.case.by_utility]
        damaged, intact = [[one for one in those if one.case.damaged is wanted] for wanted in (True, False)]
        rows.append(
            [
                pipeline if pipeline == "all" else f"{pipeline} {guidance:g}",
                str(len({PIPELINES[case.adapter["pipeline"]].adapter(case.adapter["adapter"]) for case in cases})),
                str(len(those)),
                str(len(both)),
                str(sum(one.missed for one in both)),
                str(len(damaged)),
                str(sum(one.missed for one in damaged)),
                str(len(intact)),
                str(sum(one.alarm for one in intact)),
                str(sum(one.open for one in those)),
                f"{np.median([one.probes for one in those]):g}",
                *map(two, scores),
            ]
        )
    return table(rows)


def causes(replays: Sequence[Replay], chosen: Limits, witness: Mapping[str, float]) -> str:
    """What raised alarms, what left cases open, and why damaged cases passed."""
    lines = ["alarms over cases that both judges call intact:"]
    alarms = Counter(f"{_where(one)}: {one.outcome} by {one.case.cause(chosen)}" for one in replays if one.alarm)
    lines += [f"  {count} x {cause}" for cause, count in alarms.most_common()] or ["  none"]
    lines.append("open after all probes that were run:")
    still = Counter(f"{_where(one)}: {one.case.cause(chosen)}, {one.probes} probes" for one in replays if one.open)
    lines += [f"  {count} x {cause}" for cause, count in still.most_common()] or ["  none"]
    lines.append("passed although a judge calls it damaged:")
    for one in replays:
        if one.missed:
            style = one.case.style
            seen = "" if style is None else f", style {two(style.kept)} ({style.fate})"
            lines.append(
                f"  {one.case.title}: U {two(one.case.utility.value)}, beyond the base's own loss "
                f"{two(one.case.own_utility)}{seen}, survival {two(one.case.survival)}: "
                f"{why(one.case, witness.get(one.case.title))}"
            )
    return "\n".join(lines)


def unjudged(cases: Sequence[Case]) -> str:
    """Of how many cases, and where, the style judge does not know the base's own samples."""
    unknown = [case for case in cases if case.style is not None and case.style.base > TOLD]
    where = Counter(f"{case.adapter['pipeline']} {case.adapter['guidance']:g}" for case in unknown)
    each = ", ".join(f"{name} {count}" for name, count in where.most_common())
    share = Share(len(unknown), len(cases)).text()
    return f"not judged by style, where the base's own samples are not known as the base's: {share}; {each}"


def _where(one: Replay) -> str:
    return f"{one.case.adapter['pipeline']} {one.case.adapter['guidance']:g}"


def left_out(cases: Sequence[Case], chosen: Limits) -> str:
    """Each pipeline by the limits that the others alone would set on survival, and by the score of today's limits."""
    rows = [
        [
            "left out",
            "survival: others say",
            "balanced accuracy here",
            "lowest timestep: others say",
            "balanced accuracy here",
            *(f"AUC {name} [90 %]" for name in FATES),
        ]
    ]
    for name in sorted({case.adapter["pipeline"] for case in cases}):
        here = [case for case in cases if case.adapter["pipeline"] == name]
        others = [case for case in cases if case.adapter["pipeline"] != name]
        cells = []
        for measured in ("effect_survival", "stratum_survival"):
            gate = Gate(name=measured, arm="adapted", role="adapter", low=1.0)
            (learned, fates), (tested, truth) = with_fate(others, _own_fate), with_fate(here, _own_fate)
            cut = best_cut(badness(np.array([case.value(gate) for case in learned]), gate), fates)
            seen = badness(np.array([case.value(gate) for case in tested]), gate)
            cells += [f">= {1 - cut:.2f}", two(balanced(seen, truth, cut))]
        for fate in FATES.values():
            known, damaged = with_fate(here, fate)
            scores = margins(known, chosen)
            low, high = interval(known, lambda i, s=scores, d=damaged: auc(s[i], d[i])) if known else (np.nan, np.nan)
            cells.append(f"{two(auc(scores, damaged))} [{two(low)}, {two(high)}]")
        rows.append([name, *cells])
    return table(rows)


def _own_fate(case: Case) -> bool | None:
    """Whether the adapter itself is damaged: by style, or by what it still gives on the quantized base."""
    if case.by_style or case.by_own_utility:
        return True
    return case.by_own_utility


def harmless(zoo: Path) -> tuple[str, Share]:
    """False alarms over harmless changes, beside gates on PSNR and SSIM of the same runs; and their share.

    An adapter that fails at full precision fails with and without a change: its trials are no part of it.
    """
    files = {path: json.loads(path.read_text()) for path in sorted(zoo.glob("*/harmless/*.json"))}
    every_trial = [(path.parent.parent.name, one) for path, every in files.items() for one in every]
    trials = [(at, one) for at, one in every_trial if one["outcome"] != "FAIL-ADAPTER"]
    rows = [["harmless change", "trials", "alarms", "open", f"PSNR < {PSNR:g}", f"SSIM < {SSIM:g}"]]
    names = [*dict.fromkeys(one["change"] for _, one in trials)]
    groups: list[tuple[str, list[dict[str, Any]]]] = [
        (name, [one for _, one in trials if one["change"] == name]) for name in names
    ]
    groups += [
        (f"on {name}", [one for at, one in trials if at == name]) for name in sorted({name for name, _ in trials})
    ]
    groups.append(("all", [one for _, one in trials]))
    for name, those in groups:
        counts = (
            sum(one["outcome"] in ALARMS for one in those),
            sum(one["outcome"] == "INCONCLUSIVE" for one in those),
            sum(one["psnr"] < PSNR for one in those),
            sum(one["ssim"] < SSIM for one in those),
        )
        rows.append([name, str(len(those)), *(Share(count, len(those)).text() for count in counts)])
    share = Share(sum(one["outcome"] in ALARMS for _, one in trials), len(trials))
    alarms = Counter(
        f"{at} {one['change']}: {one['outcome']}: {one['reasons'][0]}" for at, one in trials if one["outcome"] in ALARMS
    )
    lines = [table(rows), *(f"  {count} x {what}" for what, count in alarms.most_common(8))]
    if left_out := len(every_trial) - len(trials):
        lines.append(f"  {left_out} more trials of adapters that fail at full precision are left out")
    return "\n".join(lines), share


def halves(replays: Sequence[Replay], chosen: Limits) -> tuple[str, Share]:
    """Survival at half of the weight, of every adapter and guidance, and the share that would pass for the whole.

    An adapter that fails at full precision passes at no weight.
    """
    (low,) = [gate.low for gate in chosen.gates if gate.name == "effect_survival"]
    cases = [one.case for one in replays if one.outcome != "FAIL-ADAPTER"]
    known = {(c.adapter["pipeline"], c.adapter["adapter"], c.adapter["guidance"]): c.half for c in cases}
    values = np.array(list(known.values()))
    passed = int((values >= (low or 0)).sum())
    spread = ", ".join(two(float(np.quantile(values, q))) for q in (0, 0.05, 0.5, 0.95, 1))
    share = Share(passed, len(values))
    return f"half weight: {share.text()} would pass; survival at quantiles 0, 5, 50, 95, 100 %: {spread}", share


def reruns(replays: Sequence[Replay], chosen: Limits) -> tuple[str, Share]:
    """How often a check on other probes, drawn again from these, ends with the verdict that the case had."""
    draws, same, whole = np.random.default_rng(0), Counter[str](), Counter[str]()
    for one in replays:
        for _ in range(_RERUNS):
            rows = draws.integers(one.case.probes, size=one.case.probes)
            again, _ = one.case.replayed(chosen, LOOKS, rows)
            same[one.outcome] += again == one.outcome
            whole[one.outcome] += 1
    share = Share(sum(same.values()), sum(whole.values()))
    each = ", ".join(f"{name} {Share(same[name], whole[name]).text()}" for name in sorted(whole))
    return f"reruns with the same verdict: {share.text()}; of {each}", share


def forecast(replays: Sequence[Replay], chosen: Limits) -> Share:
    """How many are open after 64 probes; those that were not looked at further have theirs drawn again from 16."""
    draws = np.random.default_rng(1)
    still = [one.case for one in replays if one.outcome == "INCONCLUSIVE"]
    drawn = [(case, draws.integers(case.probes, size=LOOKS[-1])) for case in still if case.probes < LOOKS[-1]]
    said = [case.replayed(chosen, LOOKS, rows)[0] for case, rows in drawn]
    return Share(len(still) - len(said) + said.count("INCONCLUSIVE"), len(replays))


def listing(replays: Sequence[Replay]) -> str:
    """Every case with what both judges say."""
    rows = [["case", "U", "se", "beyond base", "style kept", "se", "fate", "survival", "verdict", "probes"]]
    for one in replays:
        case = one.case
        shown = ("void", "") if case.utility.void else (two(case.utility.value), two(case.utility.error))
        seen = (two(case.style.kept), two(case.style.error), case.style.fate) if case.style else ("", "", "")
        own, kept = two(case.own_utility), two(case.survival)
        rows.append([case.title, *shown, own, *seen, kept, one.outcome, str(one.probes)])
    return table(rows)


def main() -> None:
    """Print it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    parser.add_argument("--limits", default="default")
    parser.add_argument("--list", action="store_true", help="every case too")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name} too")
    asked = parser.parse_args()
    chosen = limits.find(asked.limits)
    cases, refused = read(asked.zoo)
    replays = [Replay(case, *case.replayed(chosen, LOOKS)) for case in cases]
    quiet, alarms = harmless(asked.zoo)
    half, passing = halves(replays, chosen)
    again, same = reruns(replays, chosen)
    shares = {"harmless": alarms, "half": passing, "reruns": same, "forecast": forecast(replays, chosen)}
    missing = [f"refused by qcheck: {one['pipeline']} {one['adapter']}: {one['refused']}" for one in refused]
    parts = [
        by_pipeline(replays, chosen),
        causes(replays, chosen, witnessed(asked.zoo)),
        unjudged(cases),
        left_out(cases, chosen),
        quiet,
        f"{half}\n{again}",
        "\n".join(["targets:", *(one.text() for one in targets(replays, chosen, shares))]),
        *missing,
        *([listing(replays)] if asked.list else []),
    ]
    text = "\n\n".join(parts)
    print(text)
    if asked.write:
        write(PAGE, MARKED, text)


def write(page: Path, marked: re.Pattern[str], text: str) -> None:
    """Put ``text`` between the two marks, which are groups of ``marked``, of a page."""
    whole = marked.sub(lambda marks: f"{marks[1]}```\n{text}\n```\n{marks[2]}", page.read_text("utf-8"))
    page.write_text(whole, "utf-8")


if __name__ == "__main__":
    main()
