"""The zoo's cases as they are stored, what the judges say of each, and how scores and limits agree with that."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.zoo import stored, style
from benchmarks.zoo.utility import Utility
from qcheck.judge.looks import until_decided
from qcheck.measure import effect
from qcheck.measure.control import Control, judged_error
from qcheck.measure.effect import Energies
from qcheck.measure.interval import measure_all
from qcheck.measure.sample import Sample
from qcheck.result.verdict import Outcome, Verdict
from qcheck.sampling import subject
from qcheck.spec.arm import Side
from qcheck.spec.limits import Gate, Limits, find
from qcheck.tasks.decide import Instrument, decide, held_against

HARMED = 0.75  # utility below which judge (a) calls a case damaged, the share of judge (b)
UNSURE = 0.125  # standard error of U beyond which 0.75 is not told from 1
WITNESS = "witness.json"  # what a second network says of cases, by their titles: benchmarks.witness
_RESAMPLED = 200
Rows = slice | np.ndarray


@dataclass(frozen=True)
class Case:
    """One adapter under one scheme in one order at one guidance; ``adapter`` is its file without the cases."""

    adapter: dict[str, Any]
    stored: dict[str, Any]

    @property
    def title(self) -> str:
        """Pipeline, adapter, guidance, scheme, order."""
        adapter = f"{self.adapter['pipeline']} {self.adapter['adapter']} {self.adapter['guidance']:g}"
        return f"{adapter} {self.scheme} {self.stored['order']}"

    @property
    def scheme(self) -> str:
        """The scheme's name, also of a file."""
        return Path(self.stored["scheme"]).stem

    @cached_property
    def utility(self) -> Utility:
        """What judge (a) says."""
        return Utility(**self.stored["utility"])

    @cached_property
    def style(self) -> style.Judgement | None:
        """What judge (b) says; None where it did not look."""
        if "style_f1" not in self.adapter:
            return None
        logits = (self.adapter["style_f0"], self.adapter["style_f1"], self.stored["style_q1"])
        wanted = self.adapter["styles"].index(self.adapter["style"])
        return style.judge(*(style.margins(np.array(seen), wanted) for seen in logits))

    @property
    def by_style(self) -> bool | None:
        """Whether judge (b) calls it damaged; None where it cannot tell or did not look."""
        return None if self.style is None or self.style.fate == "undefined" else self.style.fate == "damaged"

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

    @property
    def own_utility(self) -> float:
        """What the adapter gives on the quantized base, as a share of what it gives the base at full precision."""
        gain = self.adapter["loss_f0"] - self.adapter["loss_f1"]
        return float((self.stored["loss_q0"] - self.stored["loss_q1"]) / gain)

    @property
    def by_own_utility(self) -> bool | None:
        """As ``by_utility``, without what the scheme costs the base."""
        return None if self.by_utility is None else self.own_utility < HARMED

    @property
    def survival(self) -> float:
        """effect_survival on all probes."""
        return self.means["effect_survival", "adapted"]

    @property
    def half(self) -> float:
        """Survival at half of the adapter's weight."""
        return float(self.weakened(0.5).mean())

    def weakened(self, share: float) -> np.ndarray:
        """Survival [n] at a share of the adapter's weight."""
        return np.array(self.adapter["weakened"][str(share)])

    def samples(self, rows: Rows = slice(None)) -> list[Sample]:
        """The samples on probes ``rows``: of energies by today's code, others as they were stored."""
        today = {(sample.name, sample.arm): sample for sample in self._of_energies(self.energies(rows))}
        return [today.get((sample.name, sample.arm), sample) for sample in self._stored(rows)]

    def _stored(self, rows: Rows) -> Iterator[Sample]:
        for kept in self._kept:
            yield replace(kept, values=kept.values[rows])

    @cached_property
    def _kept(self) -> list[Sample]:
        return [
            Sample(
                kept["name"], kept["arm"], np.array(kept["values"], np.float64), tuple(kept["places"]), kept["worst"]
            )
            for kept in self.stored["samples"]
        ]

    def _of_energies(self, e: Energies) -> list[Sample]:
        floor = np.array(self.stored["floor"])
        timesteps = self.controls[-1].timesteps  # those of the compute control, which is taken at all of them
        return [sample for samples in effect.samples(e, floor, timesteps).values() for sample in samples]

    def energies(self, rows: Rows = slice(None)) -> Energies:
        """The inner products on probes ``rows``."""
        return Energies(**{name: value[rows] for name, value in self._energies.items()})

    @cached_property
    def _energies(self) -> dict[str, np.ndarray]:
        return {name: np.array(value) for name, value in self.stored["energies"].items()}

    @property
    def probes(self) -> int:
        """How many were looked at."""
        return len(self._energies["f1"])

    @property
    def looked_further(self) -> bool:
        """Whether it was looked at up to the last look of a check where 16 probes left it open."""
        return "probes" not in self.adapter  # older files say that all had 16

    def another_seed(self, side: Side) -> float | None:
        """How far another seed moves an arm's final latents, as a share of their size; None where nobody looked."""
        moved = self.adapter.get("yardsticks", {}).get(subject.name(side), {}).get("seed")
        return None if moved is None else float(np.mean(moved))

    @property
    def controls(self) -> list[Control]:
        """The controls of its scheme."""
        stored = self.stored["controls"]
        return [Control(c["name"], np.array(c["error"]), tuple(c["places"]), tuple(c["timesteps"])) for c in stored]

    @cached_property
    def means(self) -> dict[tuple[str, str], float]:
        """Every measurement's value, whatever the limits; NaN where it was not measured."""
        controls, _ = held_against(self.controls, judged_error(self.energies()), find("default"))
        every = [*controls, *measure_all(self.samples(), {}, 0.05)]
        return {(one.name, one.arm): float("nan") if one.value is None else one.value for one in every}

    def value(self, gate: Gate) -> float:
        """What a gate looks at, NaN where it was not measured."""
        return self.means.get((gate.name, gate.arm), float("nan"))

    def replayed(self, gates: Limits, looks: Sequence[int], rows: np.ndarray | None = None) -> tuple[str, int]:
        """The verdict of a check that looks at more and more probes, by what is stored, and how many it took.

        The probes are ``rows``, by default those that were stored; it ends where there are no more.
        """
        every = np.arange(self.probes) if rows is None else rows

        def judged(count: int) -> tuple[Outcome, None]:
            return self.verdict(gates, every[:count]).outcome, None

        count, outcome, _ = until_decided([count for count in looks if count <= len(every)], judged)
        return outcome, count

    def cause(self, gates: Limits) -> str:
        """The measurement that decides on all probes."""
        first = self.verdict(gates).deciding
        return "-" if first is None else f"{first.name} ({first.arm})"

    def verdict(self, gates: Limits, rows: Rows = slice(None)) -> Verdict:
        """The verdict on probes ``rows``, by the gates whose measurements are stored."""
        chosen = gates.computing(self.stored["compute"])
        known = {*self.means, ("weakened_survival", "adapted")}
        stored = [gate for gate in chosen.gates if (gate.name, gate.arm) in known]
        chosen = chosen.model_copy(update={"gates": stored})
        instrument = Instrument(self.controls, self.weakened, self.another_seed)
        return decide(chosen, instrument, self.samples(rows), self.energies(rows), [])


def read(zoo: Path) -> tuple[list[Case], list[dict[str, Any]]]:
    """All cases, and the adapters that qcheck refused to judge."""
    held = [stored.read(path) for path in sorted(zoo.glob("*/cases/*.json.gz"))]
    files = [file for file in held if "weakened" in file or "refused" in file]  # older ones lack a control of today
    heads = [{key: value for key, value in found.items() if key != "cases"} for found in files]
    cases = [Case(head, one) for head, found in zip(heads, files, strict=True) for one in found["cases"]]
    return cases, [head for head in heads if "refused" in head]


def witnessed(zoo: Path) -> dict[str, float]:
    """The style survival by a second network, of the cases it was asked about, by their titles."""
    said: dict[str, float] = json.loads((zoo / WITNESS).read_text("utf-8")) if (zoo / WITNESS).exists() else {}
    return said


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
    """90 % interval of a statistic of case indices when adapters are drawn again; NaN without any case."""
    groups: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        groups.setdefault(case.adapter["adapter"], []).append(index)
    parts, draws = list(groups.values()), np.random.default_rng(0)
    found = []
    for _ in range(_RESAMPLED):
        chosen = draws.integers(len(parts), size=len(parts))
        found.append(statistic(np.array([index for part in chosen for index in parts[part]], int)))
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
