"""How well gates and verdicts agree with what became of the zoo's adapters, by judges that are no metrics of qcheck.

``python -m benchmarks.verdicts`` reads ``zoo/cases/*.json`` (made by ``benchmarks.zoo.cases``) and prints, for every
gate, how its measurement ranks the cases, what limits one half of the adapters would set, and what lies beyond today's
on the other half; then verdicts by the limits of today, replayed look by look. Intervals resample adapters.

Setting a limit, on the setting half alone: where a measurement separates the damaged from the intact, midway between
them; elsewhere where 95 % of the intact cases are inside: a fault that the zoo does not have is for the fault bench.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.zoo import style
from benchmarks.zoo.utility import Utility
from qcheck import limits
from qcheck.limits import Gate, Limits
from qcheck.measurement import Measurement
from qcheck.metric.statistics import Sample, measure_all
from qcheck.verdict import judge

LOOKS = (8, 16)
HARMED = 0.75  # utility below which judge (a) calls a case damaged, the share of judge (b)
UNSURE = 0.125  # standard error of U beyond which 0.75 is not told from 1
_RESAMPLED = 200


@dataclass(frozen=True)
class Case:
    """One adapter under one scheme in one order; ``adapter`` is its file without the cases."""

    adapter: dict[str, Any]
    stored: dict[str, Any]

    @property
    def title(self) -> str:
        """Adapter, scheme, order."""
        return f"{self.adapter['adapter']} {self.scheme} {self.stored['order']}"

    @property
    def scheme(self) -> str:
        """The scheme's name, also of a file."""
        return Path(self.stored["scheme"]).stem

    @cached_property
    def utility(self) -> Utility:
        """What judge (a) says."""
        return Utility(**self.stored["utility"])

    @cached_property
    def style(self) -> style.Judgement:
        """What judge (b) says."""
        logits = (self.adapter["style_f0"], self.adapter["style_f1"], self.stored["style_q1"])
        return style.judge(*(style.margins(np.array(seen), self.adapter["style"]) for seen in logits))

    @property
    def by_style(self) -> bool | None:
        """Whether judge (b) calls it damaged; None where it cannot tell."""
        return None if self.style.fate == "undefined" else self.style.fate == "damaged"

    @property
    def by_utility(self) -> bool | None:
        """Whether judge (a) calls it damaged; None where it is void or too noisy to say."""
        return None if self.utility.void or self.utility.error > UNSURE else self.utility.value < HARMED

    @property
    def damaged(self) -> bool | None:
        """Damaged by one judge; intact by (a) and not damaged by (b); None for void adapters or where (a) is unsure."""
        if self.utility.void:
            return None
        if self.by_style or self.by_utility:
            return True
        return None if self.by_utility is None else False

    def samples(self, count: int | None = None) -> list[Sample]:
        """The samples on the first ``count`` probes; what is not a row for each probe stays whole."""
        probes = len(self.adapter["style_f0"])
        found = []
        for kept in self.stored["samples"]:
            values = np.array(kept["values"], np.float64)
            rows = values[:count] if len(values) == probes else values
            found.append(Sample(**kept | {"values": rows, "places": tuple(kept["places"])}))
        return found

    def measured(self, gates: Limits, count: int | None = None) -> list[Measurement]:
        """Controls and measurements beside their limits."""
        controls = [Measurement.model_validate(found) for found in self.stored["controls"]]
        return [*controls, *measure_all(self.samples(count), gates.ranges, gates.alpha)]

    @cached_property
    def means(self) -> dict[tuple[str, str], float]:
        """Every measurement's value, whatever the limits; NaN where it was not measured."""
        controls = {(found["name"], found["arm"]): found["value"] for found in self.stored["controls"]}
        sampled = {(found.name, found.arm): found.value for found in measure_all(self.samples(), {}, 0.05)}
        return {key: float("nan") if found is None else found for key, found in (controls | sampled).items()}

    def value(self, gate: Gate) -> float:
        """What a gate looks at, NaN where it was not measured."""
        return self.means.get((gate.name, gate.arm), float("nan"))

    def replayed(self, gates: Limits, looks: Sequence[int]) -> tuple[str, int]:
        """The verdict of a check that looks at more and more probes, by what is stored, and how many it took."""
        chosen = gates.computing(self.stored["compute"])
        stored = [gate for gate in chosen.gates if (gate.name, gate.arm) in self.means]
        chosen, outcome, count = chosen.model_copy(update={"gates": stored}), "INVALID", 0
        for count in looks:
            kept = next(s.values for s in self.samples(count) if s.name == "effect_survival")
            low, high = chosen.tail
            bad = [i for i, s in enumerate(kept) if not low <= s <= high]
            outcome = judge(self.measured(chosen, count), bad, chosen).outcome
            if outcome != "INCONCLUSIVE":
                break
        return outcome, count


def read(zoo: Path) -> tuple[list[Case], list[dict[str, Any]]]:
    """All cases, and the adapters that qcheck refused to judge."""
    files = [json.loads(path.read_text()) for path in sorted((zoo / "cases").glob("*.json"))]
    heads = [{key: value for key, value in found.items() if key != "cases"} for found in files]
    cases = [Case(head, one) for head, found in zip(heads, files, strict=True) for one in found["cases"]]
    return cases, [head for head in heads if "refused" in head]


def halves(zoo: Path) -> tuple[set[str], set[str]]:
    """Adapters to set limits on and adapters to test them on: every second of each kind, twins together."""
    made = json.loads((zoo / "training.json").read_text())
    sides: tuple[set[str], set[str]] = (set(), set())
    for kind in dict.fromkeys(one["kind"] for one in made):
        recipes = [one["name"] for one in made if one["kind"] == kind]
        for name in recipes:
            first = name.replace("twin", "healthy")
            sides[recipes.index(first if first in recipes else name) % 2].add(name)
    return sides


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties half; NaN without both."""
    ups = int(positive.sum())
    downs = len(positive) - ups
    if not ups or not downs:
        return float("nan")
    return float((stats.rankdata(scores)[positive].sum() - ups * (ups + 1) / 2) / (ups * downs))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, NaN where one of them does not vary."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def interval(cases: Sequence[Case], statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """90 % interval of a statistic of case indices when adapters are drawn again."""
    groups: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        groups.setdefault(case.adapter["adapter"], []).append(index)
    parts, draws = list(groups.values()), np.random.default_rng(0)
    found = []
    for _ in range(_RESAMPLED):
        chosen = draws.integers(len(parts), size=len(parts))
        found.append(statistic(np.array([index for part in chosen for index in parts[part]])))
    finite = np.array(found)[np.isfinite(found)]
    return (float("nan"),) * 2 if not len(finite) else tuple(float(x) for x in np.quantile(finite, (0.05, 0.95)))  # type: ignore[return-value]


def badness(values: np.ndarray, gate: Gate) -> np.ndarray:
    """How far towards the wrong side values lie, in the gate's unit; not finite is worst. Beyond the limit is > 0."""
    low = gate.low - values if gate.low is not None else np.full_like(values, -np.inf)
    high = values - gate.high if gate.high is not None else np.full_like(values, -np.inf)
    found: np.ndarray = np.nan_to_num(np.maximum(low, high), nan=1e6, posinf=1e6, neginf=-1e6)
    return found


def best_cut(scores: np.ndarray, damaged: np.ndarray) -> float:
    """The cut of badness with the best balanced accuracy, midway between two cases; NaN without both."""
    if damaged.all() or not damaged.any():
        return float("nan")
    steps = np.unique(scores)
    cuts = [*((steps[1:] + steps[:-1]) / 2), steps[-1] + 1e-9]
    return float(max(cuts, key=lambda cut: balanced(scores, damaged, cut)))


def kept_by(scores: np.ndarray, damaged: np.ndarray) -> float:
    """The cut of badness that 95 % of the intact cases keep; NaN without any."""
    return float(np.quantile(scores[~damaged], 0.95)) if (~damaged).any() else float("nan")


def balanced(scores: np.ndarray, damaged: np.ndarray, cut: float) -> float:
    """Balanced accuracy of "damaged above the cut"; NaN without both."""
    if damaged.all() or not damaged.any():
        return float("nan")
    return float(((scores > cut)[damaged].mean() + (scores <= cut)[~damaged].mean()) / 2)


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
    seen = Counter((names[c.by_utility], names[c.by_style]) for c in cases)
    order = ("damaged", "intact", "undefined")
    rows = [["utility \\ style", *order]] + [[a, *(str(seen[a, b]) for b in order)] for a in order]
    adapters = {c.adapter["adapter"]: c for c in cases}
    without = [name for name, c in adapters.items() if c.by_style is None]
    void = dict.fromkeys(c.adapter["adapter"] for c in cases if c.by_utility is None)
    return "\n".join(
        (
            f"{len(cases)} cases of {len(adapters)} adapters",
            table(rows),
            f"style judge undefined for {len(without)} adapters: {', '.join(without)}",
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


def gates_table(cases: Sequence[Case], chosen: Limits, setting: set[str]) -> str:
    """For every gate: how it ranks, what the setting half would set, and what is beyond today's on the testing half."""
    gates, others = every_gate(cases, chosen)
    told = [c for c in cases if c.by_style is not None and not c.utility.void]
    useful = [c for c in cases if c.by_utility is not None]
    known = [c for c in cases if c.damaged is not None]
    by_style, by_utility = np.array([c.by_style for c in told], bool), np.array([c.by_utility for c in useful], bool)
    utilities, fates = np.array([c.utility.value for c in useful]), np.array([c.damaged for c in known], bool)
    train = np.array([c.adapter["adapter"] in setting for c in known], bool)
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
    rows = [[title, "cases", "median", "median U", "median style kept", "intact by both", "of these beyond"]]
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.scheme, case.stored["order"]), []).append(case)
    for (name, order), those in groups.items():
        values = np.array([c.value(gate) for c in those])
        fine = np.array([c.by_style is False and c.by_utility is False for c in those])
        utilities = [c.utility.value for c in those if c.by_utility is not None]
        kept = [c.style.kept for c in those if c.by_style is not None]
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


def listing(cases: Sequence[Case]) -> str:
    """Every case with what both judges say."""
    rows = [["case", "U", "se", "style kept", "se", "fate", "verdict"]]
    for c in cases:
        shown = ("void", "") if c.utility.void else (_two(c.utility.value), _two(c.utility.error))
        known = (_two(c.style.kept), _two(c.style.error)) if c.by_style is not None else ("", "")
        rows.append([c.title, *shown, *known, c.style.fate, c.stored["verdict"]])
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
    setting, testing = halves(asked.zoo)
    held = [c for c in cases if c.adapter["adapter"] in testing]
    parts = [
        judges(cases, refused),
        gates_table(cases, gates, setting),
        *(by_scheme(cases, gates, gate) for gate in gates.gates if f"{gate.name}:{gate.arm}" in asked.gate),
        deciding(held, gates, "testing half"),
        verdicts(held, chosen, "testing half, by style", lambda c: None if c.utility.void else c.by_style),
        verdicts(held, chosen, "testing half, by utility", lambda c: c.by_utility),
        verdicts(held, chosen, "testing half, by either", lambda c: c.damaged),
        verdicts([c for c in cases if c not in held], chosen, "setting half, by either", lambda c: c.damaged),
        *([listing(cases)] if asked.list else []),
    ]
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
