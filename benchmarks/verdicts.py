"""How well gates and verdicts agree with what became of the zoo's adapters, by judges that are no metrics of qcheck.

``python -m benchmarks.verdicts`` reads ``zoo/*/cases/*.json``, which ``benchmarks.zoo.cases`` makes. Of the demo it
prints, for every gate, how its measurement ranks them, what limits one half of the adapters would set, and what lies
beyond today's on the other half; then verdicts by the limits of today, replayed look by look. At the end are the
verdicts of every pipeline at every guidance, on which no limit was set. Intervals resample adapters.

Setting a limit, on the setting half alone and by utility: where a measurement separates the damaged from the intact,
midway between them; elsewhere where 95 % of the intact cases are inside: a fault that the zoo does not have is for the
fault bench. The testing half was trained when the limits stood; the style judge looks at it alone.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judged import Case, auc, badness, balanced, best_cut, interval, kept_by, rank_correlation, read
from benchmarks.zoo import style
from qcheck.spec import limits
from qcheck.spec.limits import Gate, Limits

LOOKS = (8, 16)


def _limit(gate: Gate, cut: float) -> str:
    """The limit that a cut of badness stands for."""
    if np.isnan(cut):
        return "-"
    sides = ([f">= {gate.low - cut:.3g}"] if gate.low is not None else []) + (
        [f"<= {gate.high + cut:.3g}"] if gate.high is not None else []
    )
    return ", ".join(sides)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first row their titles."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _two(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def judges(cases: Sequence[Case], refused: Sequence[dict[str, Any]]) -> str:
    """Base rates, and where the judges disagree."""
    names = {True: "damaged", False: "intact", None: "undefined"}
    seen = Counter((names[c.by_utility], c.style.fate if c.style else "setting half") for c in cases)
    columns = ("setting half", *names.values())
    rows = [["utility \\ style, testing half", *columns]]
    rows += [[a, *(str(seen[a, b]) for b in columns)] for a in names.values()]
    untold = dict.fromkeys(c.adapter["adapter"] for c in cases if c.style and c.style.told > style.TOLD)
    void = dict.fromkeys(c.adapter["adapter"] for c in cases if c.by_utility is None)
    return "\n".join(
        (
            f"{len(cases)} cases of {len({c.adapter['adapter'] for c in cases})} adapters",
            table(rows),
            f"no style to be seen in f1 of {len(untold)} adapters: {', '.join(untold)}",
            f"utility void or unsure for {len(void)} adapters: {', '.join(void)}",
            *(f"refused by qcheck: {one['adapter']}: {one['refused']}" for one in refused),
        )
    )


def every_gate(cases: Sequence[Case], chosen: Limits) -> tuple[list[Gate], list[Gate]]:
    """The gates of sampled measurements, and stand-ins at 0 for what has none, as if low were bad."""
    gates = [gate for gate in chosen.gates if gate.role != "control"]
    gated = {(gate.name, gate.arm) for gate in gates}
    seen = dict.fromkeys((s.name, s.arm) for case in cases for s in case.samples())
    return gates, [Gate(name=name, arm=arm, role="adapter", low=0.0) for name, arm in seen if (name, arm) not in gated]


def gates_table(cases: Sequence[Case], chosen: Limits) -> str:
    """For every gate: how it ranks, what the setting half would set, and what is beyond today's on the testing half."""
    gates, others = every_gate(cases, chosen)
    told = [c for c in cases if c.by_style is not None and not c.utility.void]
    useful = [c for c in cases if c.by_utility is not None]
    known = [c for c in cases if c.damaged is not None]
    by_style, by_utility = np.array([c.by_style for c in told], bool), np.array([c.by_utility for c in useful], bool)
    utilities, fates = np.array([c.utility.value for c in useful]), np.array([c.damaged for c in known], bool)
    train = np.array([c.sets for c in known], bool)
    rows = [
        [
            "gate",
            "today",
            "AUC style [90 %]",
            "AUC U",
            "rank corr. U [90 %]",
            "set: separates",
            "with",
            "set: 95 % of intact",
            "tested: damaged beyond",
            "intact",
        ]
    ]
    for gate in (*gates, *others):
        seen, against, all_of = (
            badness(np.array([c.value(gate) for c in those]), gate) for those in (told, useful, known)
        )
        low, high = interval(told, lambda i, s=seen: auc(s[i], by_style[i]))
        least, most = interval(useful, lambda i, s=against: rank_correlation(s[i], utilities[i]))
        cut = best_cut(all_of[train], fates[train])
        beyond = (all_of > 0) & ~train
        rows.append(
            [
                f"{gate.name} ({gate.arm})",
                gate.text() if gate in gates else "none; low is bad?",
                f"{_two(auc(seen, by_style))} [{_two(low)}, {_two(high)}]",
                _two(auc(against, by_utility)),
                f"{_two(rank_correlation(against, utilities))} [{_two(least)}, {_two(most)}]",
                _limit(gate, cut),
                _two(balanced(all_of[train], fates[train], cut)),
                _limit(gate, kept_by(all_of[train], fates[train])),
                f"{int((beyond & fates).sum())}/{int((fates & ~train).sum())}" if gate in gates else "",
                f"{int((beyond & ~fates).sum())}/{int((~fates & ~train).sum())}" if gate in gates else "",
            ]
        )
    return table(rows)


def by_scheme(cases: Sequence[Case], chosen: Limits, gate: Gate) -> str:
    """What one gate sees and does under every scheme, beside both judges."""
    title = f"{gate.name} ({gate.arm}) {gate.text()}"
    rows = [[title, "cases", "median", "median U", "median style kept", "intact", "of these beyond"]]
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.scheme, case.stored["order"]), []).append(case)
    for (name, order), those in groups.items():
        values = np.array([c.value(gate) for c in those])
        fine = np.array([c.damaged is False for c in those])
        utilities = [c.utility.value for c in those if c.by_utility is not None]
        kept = [c.style.kept for c in those if c.style and c.by_style is not None]
        rows.append(
            [
                f"{name} {order}",
                str(len(those)),
                _two(float(np.median(values))),
                _two(float(np.median(utilities))) if utilities else "-",
                _two(float(np.median(kept))) if kept else "-",
                str(int(fine.sum())),
                str(int((badness(values, gate) > 0)[fine].sum())),
            ]
        )
    return table(rows)


def margins(cases: Sequence[Case], chosen: Limits) -> np.ndarray:
    """The deciding score: how far the worst gate of a case is beyond its limit, in units of the limit's own size.

    -1 is far inside, 0 at a limit. A limit's size is half its width where it has two sides, else its absolute value.
    """
    worst = np.full(len(cases), -np.inf)
    for gate in every_gate(cases, chosen)[0]:
        if gate.role not in {"warning", "reference"}:
            sides = [side for side in (gate.low, gate.high) if side is not None]
            size = (sides[1] - sides[0]) / 2 if len(sides) == 2 else abs(sides[0])
            worst = np.maximum(worst, badness(np.array([c.value(gate) for c in cases]), gate) / size)
    return worst


def deciding(cases: Sequence[Case], chosen: Limits, title: str) -> str:
    """How the deciding score ranks cases by both judges."""
    told = [c for c in cases if c.by_style is not None and not c.utility.void]
    useful = [c for c in cases if c.by_utility is not None]
    known = [c for c in cases if c.damaged is not None]
    lines = [f"{title}: the deciding score"]
    for name, those, fates in (
        ("style judge", told, [c.by_style for c in told]),
        ("either judge", known, [c.damaged for c in known]),
        ("U < 0.75", useful, [c.by_utility for c in useful]),
    ):
        scores, damaged = margins(those, chosen), np.array(fates, bool)
        low, high = interval(those, lambda i, s=scores, d=damaged: auc(s[i], d[i]))
        lines.append(
            f"  AUC against {name}: {_two(auc(scores, damaged))} [{_two(low)}, {_two(high)}], "
            f"{int(damaged.sum())} damaged of {len(those)}"
        )
    utilities, scores = np.array([c.utility.value for c in useful]), margins(useful, chosen)
    low, high = interval(useful, lambda i: rank_correlation(-scores[i], utilities[i]))
    below = utilities < 0.95
    lines.append(
        f"  rank correlation with U: {_two(rank_correlation(-scores, utilities))} [{_two(low)}, {_two(high)}], "
        f"{len(useful)} cases; of the {int(below.sum())} with U < 0.95: "
        f"{_two(rank_correlation(-scores[below], utilities[below]))}"
    )
    return "\n".join(lines)


def verdicts(cases: Sequence[Case], chosen: Limits, title: str, fate: Callable[[Case], bool | None]) -> str:
    """Verdicts by the limits of today on cases of known fate."""
    told = [(c, fate(c)) for c in cases if fate(c) is not None]
    found = [(c, damaged, *c.replayed(chosen, LOOKS)) for c, damaged in told]
    outcomes = sorted({outcome for *_, outcome, _ in found})
    rows = [[title, "cases", *outcomes]]
    for name, wanted in (("damaged", True), ("intact", False)):
        those = [outcome for _, damaged, outcome, _ in found if damaged is wanted]
        rows.append([name, str(len(those)), *(str(those.count(outcome)) for outcome in outcomes)])

    def share(outcome: str, wanted: bool) -> str:
        those = [seen == outcome for _, damaged, seen, _ in found if damaged is wanted]
        return f"{sum(those)}/{len(those)}" + (f" ({100 * np.mean(those):.0f} %)" if those else "")

    probes = [count for *_, count in found] or [0]
    inconclusive = sum(outcome == "INCONCLUSIVE" for *_, outcome, _ in found)
    return "\n".join(
        (
            table(rows),
            f"false PASS {share('PASS', True)}, false NEEDS-QAT {share('NEEDS-QAT', False)}, INCONCLUSIVE "
            f"{inconclusive}/{len(found)}; probes: median {np.median(probes):g}, 90 % {np.quantile(probes, 0.9):g}, "
            f"of looks {LOOKS}",
            *(f"false PASS: {c.title}" for c, damaged, outcome, _ in found if damaged and outcome == "PASS"),
        )
    )


def by_pipeline(cases: Sequence[Case], chosen: Limits) -> str:
    """Every pipeline at every guidance: verdicts by the limits of today beside both judges, and what causes alarms."""
    groups: dict[tuple[str, float], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.adapter["pipeline"], case.adapter["guidance"]), []).append(case)
    rows = [
        [
            "pipeline, guidance",
            "cases",
            "damaged",
            "of these PASS",
            "intact",
            "of these alarms",
            "open",
            "AUC",
            "median U",
        ]
    ]
    causes: Counter[str] = Counter()
    for (pipeline, guidance), those in sorted(groups.items()):
        found = [(case, *case.replayed(chosen, LOOKS)) for case in those]
        known = [case for case in those if case.damaged is not None]
        fates = np.array([case.damaged for case in known], bool)
        damaged = [outcome for case, outcome, _ in found if case.damaged]
        intact = [(case, outcome) for case, outcome, _ in found if case.damaged is False]
        alarms = [(case, outcome) for case, outcome in intact if outcome not in {"PASS", "INCONCLUSIVE"}]
        causes.update(f"{pipeline} {guidance:g}: {outcome} by {case.cause(chosen)}" for case, outcome in alarms)
        rows.append(
            [
                f"{pipeline} {guidance:g}",
                str(len(those)),
                str(len(damaged)),
                str(damaged.count("PASS")),
                str(len(intact)),
                str(len(alarms)),
                str(sum(outcome == "INCONCLUSIVE" for _, outcome, _ in found)),
                _two(auc(margins(known, chosen), fates)) if known else "-",
                _two(float(np.median([case.utility.value for case in those]))),
            ]
        )
    alarmed = [f"  {count} x {cause}" for cause, count in causes.most_common()]
    return "\n".join((table(rows), "alarms over cases that both judges call intact:", *alarmed))


def listing(cases: Sequence[Case]) -> str:
    """Every case with what both judges say."""
    rows = [["case", "U", "se", "style kept", "se", "fate", "verdict"]]
    for c in cases:
        shown = ("void", "") if c.utility.void else (_two(c.utility.value), _two(c.utility.error))
        known = (_two(c.style.kept), _two(c.style.error), c.style.fate) if c.style else ("", "", "")
        rows.append([c.title, *shown, *known, c.stored["verdict"]])
    return table(rows)


def main() -> None:
    """Print it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    parser.add_argument("--limits", default="default")
    parser.add_argument("--gate", nargs="*", default=[], metavar="NAME:ARM", help="by scheme too")
    parser.add_argument("--list", action="store_true", help="every case too")
    asked = parser.parse_args()
    chosen = limits.find(asked.limits)
    gates = chosen.computing("float16")
    cases, refused = read(asked.zoo)
    everywhere, cases = cases, [c for c in cases if c.adapter["pipeline"] == "demo" and c.adapter["guidance"] == 3]
    held = [c for c in cases if not c.sets]
    parts = [
        judges(cases, refused),
        gates_table(cases, gates),
        *(by_scheme(cases, gates, gate) for gate in gates.gates if f"{gate.name}:{gate.arm}" in asked.gate),
        deciding(held, gates, "testing half"),
        verdicts(held, chosen, "testing half, by style", lambda c: None if c.utility.void else c.by_style),
        verdicts(held, chosen, "testing half, by utility", lambda c: c.by_utility),
        verdicts(held, chosen, "testing half, by either", lambda c: c.damaged),
        verdicts([c for c in cases if c.sets], chosen, "setting half, by utility", lambda c: c.damaged),
        by_pipeline(everywhere, chosen),
        *([listing(everywhere)] if asked.list else []),
    ]
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
