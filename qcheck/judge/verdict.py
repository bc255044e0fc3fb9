"""Measurements and limits to a verdict. It compares; every statistic came with the measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qcheck.judge import deciding, holm
from qcheck.result.measurement import Judged, Measurement, Status
from qcheck.result.verdict import BuildStatus, Outcome, Verdict
from qcheck.spec.arm import Arm
from qcheck.spec.limits import Gate, Limits, Role

_EVERY: frozenset[Arm] = frozenset({"base", "adapted", "both"})
_BLAMING: frozenset[Role] = frozenset({"control", "reference", "absolute", "adapter"})


class Compiled(Protocol):
    """What a verdict reads of a build: how it ended, and the words for it."""

    @property
    def status(self) -> BuildStatus:
        """How it ended."""

    @property
    def detail(self) -> str:
        """Why, or where."""


@dataclass(frozen=True)
class Reason:
    """A sentence, and the measurement it is about, where it is about one."""

    text: str
    seen: Judged | None = None


def _status(seen: Measurement, gate: Gate | None, beyond: set[tuple[str, Arm]]) -> Status:
    if seen.value is None:
        return "not measured"
    if gate is None:
        return "reported"
    if gate.holds(seen.low, seen.high):
        return "pass"
    sampled = seen.p is not None and seen.value == seen.value
    return "undecided" if sampled and (seen.name, seen.arm) not in beyond else "fail"


def _judged(measurements: Sequence[Measurement], limits: Limits) -> tuple[Judged, ...]:
    beyond = holm.beyond(measurements, limits)
    gates = {(gate.name, gate.arm): gate for gate in limits.gates}
    found = []
    for seen in measurements:
        gate = gates.get((seen.name, seen.arm))
        limit, warns = (None, False) if gate is None else (gate.limit, gate.role == "warning")
        found.append(Judged(**seen.model_dump(), limit=limit, status=_status(seen, gate, beyond), warns=warns))
    return tuple(found)


def _reason(seen: Judged) -> Reason:
    at = f" at {seen.where}" if seen.where else ""
    held = f"; limit {seen.limit.text()}" if seen.limit is not None else ""
    if seen.value is None:
        return Reason(f"{seen.name} ({seen.arm}) was not measured{at}", seen)
    if seen.value != seen.value:
        return Reason(f"{seen.name} ({seen.arm}) is not finite{at}{held}", seen)
    interval = f"[{seen.low:.3g}, {seen.high:.3g}]"
    return Reason(f"{seen.name} ({seen.arm}) {seen.value:.3g} {seen.unit} {interval}{at}{held}", seen)


def _ended(builds: Sequence[Compiled], ends: Mapping[str, str]) -> list[Reason]:
    return [Reason(f"{ends[made.status]}: {made.detail}") for made in builds if made.status in ends]


def _tail(bad_probes: Sequence[int], limits: Limits) -> list[Reason]:
    if not bad_probes:
        return []
    low, high = limits.tail
    shown = ", ".join(str(i + 1) for i in bad_probes[:8])
    told = f"tail gate: effect_survival outside {low:g} .. {high:g} on {len(bad_probes)} probes (number {shown})"
    return [Reason(told)]


@dataclass(frozen=True)
class _Seen:
    """What was judged, to be asked for by status, role and arm in the order of the limits' gates."""

    gates: Sequence[Gate]
    by_key: Mapping[tuple[str, Arm], Judged]

    def those(self, status: Status, roles: frozenset[Role] = _BLAMING, arms: frozenset[Arm] = _EVERY) -> list[Reason]:
        wanted = [(g.name, g.arm) for g in self.gates if g.role in roles and g.arm in arms]
        return [_reason(s) for key in wanted if (s := self.by_key.get(key)) is not None and s.status == status]

    def absent(self) -> list[Reason]:
        missing = [gate for gate in self.gates if (gate.name, gate.arm) not in self.by_key]
        return [Reason(f"{gate.name} ({gate.arm}) was not measured") for gate in missing]


def judge(
    measurements: Sequence[Measurement], bad_probes: Sequence[int], limits: Limits, builds: Sequence[Compiled] = ()
) -> Verdict:
    """Apply the limits in the order of blame: adapter at full precision, instrument, scheme on the base, adapter.

    A build that was refused, or whose engine computes in other types than were asked, condemns the scheme here; one
    that crashed says nothing about it and makes the verdict INVALID, as a gate without its measurement does: not
    measured is never passed. Nothing is blamed while the full-precision adapter is open. While the base is open, the
    adapter is blamed for what it has beyond the base, and not for what either arm may have by itself.
    """
    judged = _judged(measurements, limits)
    seen = _Seen(limits.gates, {(found.name, found.arm): found for found in judged})
    base: frozenset[Arm] = frozenset({"base"})
    absolute, adapter = frozenset[Role]({"absolute"}), frozenset[Role]({"adapter"})
    broken = seen.absent() + seen.those("not measured") + _ended(builds, {"crashed": "the builder crashed"})
    unfit = _ended(builds, {"refused": "the build was refused", "fell back": "the build fell back"})
    base_open = seen.those("undecided", absolute, base)
    own = seen.those("fail", adapter)
    ladder: tuple[tuple[Outcome, list[Reason]], ...] = (
        ("FAIL-ADAPTER", seen.those("fail", frozenset({"reference"}))),
        ("INVALID", broken + seen.those("fail", frozenset({"control"}))),
        ("FAIL-RECIPE", unfit + seen.those("fail", absolute, base)),
        ("INCONCLUSIVE", seen.those("undecided", frozenset({"reference"}))),
        ("NEEDS-QAT", own if base_open else seen.those("fail", absolute | adapter)),
        ("INCONCLUSIVE", base_open),
        ("INCONCLUSIVE", seen.those("undecided") + _tail(bad_probes, limits)),
    )
    warnings = tuple(f"hidden by quantization: {told.text}" for told in seen.those("fail", frozenset({"warning"})))
    for outcome, reasons in ladder:
        if reasons:
            first = deciding.named(reasons[0].seen)
            return Verdict(outcome, tuple(reason.text for reason in reasons), judged, warnings, first)
    inside = "every gated measurement is inside its limit with 95 % confidence over all looks"
    return Verdict("PASS", (inside,), judged, warnings, deciding.named(deciding.closest(judged)))
