"""Measurements and limits to a verdict. It compares; every statistic came with the measurements."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from qcheck.result.measurement import Judged, Measurement, Status
from qcheck.result.verdict import BuildStatus, Outcome, Verdict
from qcheck.spec.arm import Arm
from qcheck.spec.limits import Gate, Limits


def _beyond(seen: Sequence[Measurement], limits: Limits) -> set[tuple[str, Arm]]:
    """Sampled measurements that lie beyond their limit, by Holm's step-down over all of them at the look's alpha.

    Warnings blame nobody: each of them is compared by itself.
    """
    told = {(gate.name, gate.arm) for gate in limits.gates if gate.role == "warning"}
    every = [(m.p, m.name, m.arm) for m in seen if m.p is not None]
    found = {(name, arm) for p, name, arm in every if (name, arm) in told and p <= limits.alpha}
    sampled = sorted((item for item in every if item[1:] not in told), key=lambda item: item[0])
    for index, (p, name, arm) in enumerate(sampled):
        if p > limits.alpha / (len(sampled) - index):
            break
        found.add((name, arm))
    return found


def _status(seen: Measurement, gate: Gate | None, beyond: set[tuple[str, Arm]]) -> Status:
    if seen.value is None:
        return "not measured"
    if gate is None:
        return "reported"
    if gate.holds(seen):
        return "pass"
    sampled = seen.p is not None and seen.value == seen.value
    return "undecided" if sampled and (seen.name, seen.arm) not in beyond else "fail"


def _judged(measurements: Sequence[Measurement], limits: Limits) -> tuple[Judged, ...]:
    beyond = _beyond(measurements, limits)
    gates = {(gate.name, gate.arm): gate for gate in limits.gates}
    found = []
    for seen in measurements:
        gate = gates.get((seen.name, seen.arm))
        text = gate.text() if gate is not None else None
        warns = gate is not None and gate.role == "warning"
        found.append(Judged(**seen.model_dump(), limit=text, status=_status(seen, gate, beyond), warns=warns))
    return tuple(found)


def _sentence(seen: Judged) -> str:
    at = f" at {seen.where}" if seen.where else ""
    if seen.value is None:
        return f"{seen.name} ({seen.arm}) was not measured{at}"
    if seen.value != seen.value:
        return f"{seen.name} ({seen.arm}) is not finite{at}; limit {seen.limit}"
    return (
        f"{seen.name} ({seen.arm}) {seen.value:.3g} {seen.unit} [{seen.low:.3g}, {seen.high:.3g}]{at}; "
        f"limit {seen.limit}"
    )


class Compiled(Protocol):
    """What a verdict reads of a build: how it ended, and the words for it."""

    @property
    def status(self) -> BuildStatus:
        """How it ended."""

    @property
    def detail(self) -> str:
        """Why, or where."""


def _ended(builds: Sequence[Compiled], ends: Mapping[str, str]) -> list[str]:
    return [f"{ends[made.status]}: {made.detail}" for made in builds if made.status in ends]


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
    by_key = {(seen.name, seen.arm): seen for seen in judged}
    absent = [gate for gate in limits.gates if (gate.name, gate.arm) not in by_key]

    def those(status: str, roles: set[str], arms: set[str]) -> list[str]:
        wanted = [g for g in limits.gates if g.role in roles and g.arm in arms and g not in absent]
        return [_sentence(s) for g in wanted if (s := by_key[g.name, g.arm]).status == status]

    everywhere = {"base", "adapted", "both"}
    every_role = {"control", "reference", "absolute", "adapter"}
    broken = [f"{gate.name} ({gate.arm}) was not measured" for gate in absent]
    broken += those("not measured", every_role, everywhere)
    broken += _ended(builds, {"crashed": "the builder crashed"})
    unfit = _ended(builds, {"refused": "the build was refused", "fell back": "the build fell back"})
    unsound, base_open = those("undecided", {"reference"}, everywhere), those("undecided", {"absolute"}, {"base"})
    own = those("fail", {"adapter"}, everywhere)
    ladder: tuple[tuple[Outcome, list[str]], ...] = (
        ("FAIL-ADAPTER", those("fail", {"reference"}, everywhere)),
        ("INVALID", broken + those("fail", {"control"}, everywhere)),
        ("FAIL-RECIPE", unfit + those("fail", {"absolute"}, {"base"})),
        ("INCONCLUSIVE", unsound),
        ("NEEDS-QAT", own if base_open else those("fail", {"absolute", "adapter"}, everywhere)),
        ("INCONCLUSIVE", base_open),
        ("INCONCLUSIVE", those("undecided", every_role, everywhere) + _tail(bad_probes, limits)),
    )
    warnings = tuple(f"hidden by quantization: {told}" for told in those("fail", {"warning"}, everywhere))
    for outcome, reasons in ladder:
        if reasons:
            return Verdict(outcome, tuple(reasons), judged, warnings)
    inside = "every gated measurement is inside its limit with 95 % confidence over all looks"
    return Verdict("PASS", (inside,), judged, warnings)


def _tail(bad_probes: Sequence[int], limits: Limits) -> list[str]:
    if not bad_probes:
        return []
    low, high = limits.tail
    shown = ", ".join(str(i + 1) for i in bad_probes[:8])
    return [f"tail gate: effect_survival outside {low:g} .. {high:g} on {len(bad_probes)} probes (number {shown})"]
