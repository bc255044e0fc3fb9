"""The verdict from measurements and limits. It only compares: the measurements hold every statistic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qcheck.judge import deciding, holm
from qcheck.result.measurement import Judged, Measurement, Status
from qcheck.result.verdict import BuildStatus, Outcome, Verdict
from qcheck.spec.arm import Arm
from qcheck.spec.limits import Gate, Limits, Role
from qcheck.spec.measurement import Limit, beside

_EVERY: frozenset[Arm] = frozenset({"base", "adapted", "both"})
_BLAMING: frozenset[Role] = frozenset({"control", "reference", "absolute", "adapter"})
_REFERENCE: frozenset[Role] = frozenset({"reference"})


class Compiled(Protocol):
    """The part of a build that a verdict needs."""

    @property
    def status(self) -> BuildStatus:
        """How the build ended."""

    @property
    def detail(self) -> str:
        """The reason or the place, in words."""


@dataclass(frozen=True)
class Reason:
    """A sentence of a verdict, and the measurement that it is about, if any."""

    text: str
    seen: Judged | None = None


def status(measurement: Measurement, limit: Limit | None, beyond: set[tuple[str, Arm]]) -> Status:
    """How a measurement compares with its limit; ``beyond`` are the sampled ones that lie beyond theirs."""
    if measurement.value is None:
        return "not measured"
    if limit is None:
        return "reported"
    if limit.holds(measurement.low, measurement.high):
        return "pass"
    sampled = measurement.p is not None and measurement.value == measurement.value
    return "undecided" if sampled and (measurement.name, measurement.arm) not in beyond else "fail"


def _judged(measurements: Sequence[Measurement], limits: Limits) -> tuple[Judged, ...]:
    beyond = holm.beyond(measurements, limits)
    gates = {(gate.name, gate.arm): gate for gate in limits.gates}
    judged = []
    for measurement in measurements:
        gate = gates.get((measurement.name, measurement.arm))
        limit, warns = (None, False) if gate is None else (gate.limit, gate.role == "warning")
        judged.append(
            Judged(**measurement.model_dump(), limit=limit, status=status(measurement, gate, beyond), warns=warns)
        )
    return tuple(judged)


def _warning(judged: Judged) -> Judged:
    """The same, deciding nothing."""
    return judged.model_copy(update={"warns": True})


def _reason(judged: Judged, gate: Gate) -> Reason:
    """The measurement in words, and what it means to be outside of its limit, where it is."""
    at = f" at {judged.where}" if judged.where else ""
    limit = f"; limit {judged.limit.text()}" if judged.limit is not None else ""
    if judged.value is None:
        return Reason(f"{judged.name} ({judged.arm}) was not measured{at}", judged)
    if judged.value != judged.value:
        return Reason(f"{judged.name} ({judged.arm}) is not finite{at}{limit}", judged)
    value, low, high = (_number(number, judged) for number in (judged.value, judged.low, judged.high))
    outside = gate.outside(judged.value) if judged.status == "fail" else ""
    means = f": {outside}" if outside else ""
    return Reason(f"{judged.name} ({judged.arm}) {value} {judged.unit} [{low}, {high}]{at}{limit}{means}", judged)


def _number(number: float | None, judged: Judged) -> str:
    return "-" if number is None else beside(number, judged.limit, ".3g")


def _build_reasons(builds: Sequence[Compiled], ends: Mapping[str, str]) -> list[Reason]:
    return [Reason(f"{ends[build.status]}: {build.detail}") for build in builds if build.status in ends]


def _tail_reasons(bad: Sequence[bool], limits: Limits) -> list[Reason]:
    numbers = [index + 1 for index, one in enumerate(bad) if one]
    if len(numbers) <= limits.bad_share * len(bad):
        return []
    low, high = limits.tail
    first = ", ".join(map(str, numbers[:8]))
    return [
        Reason(
            f"tail gate: effect_survival outside {low:g} .. {high:g} on {len(numbers)} of {len(bad)} probes (number "
            f"{first}), more than {100 * limits.bad_share:g} %"
        )
    ]


@dataclass(frozen=True)
class _GatedMeasurements:
    """The measurements that have a gate, selected by status, role and arm in the order of the limits' gates."""

    gates: Sequence[Gate]
    by_key: Mapping[tuple[str, Arm], Judged]

    def reasons(self, status: Status, roles: frozenset[Role] = _BLAMING, arms: frozenset[Arm] = _EVERY) -> list[Reason]:
        gates = [gate for gate in self.gates if gate.role in roles and gate.arm in arms]
        seen = [(self.by_key.get((gate.name, gate.arm)), gate) for gate in gates]
        return [_reason(one, gate) for one, gate in seen if one is not None and one.status == status]

    def unmeasured(self) -> list[Reason]:
        missing = [gate for gate in self.gates if (gate.name, gate.arm) not in self.by_key]
        return [Reason(f"{gate.name} ({gate.arm}) was not measured") for gate in missing]


def judge(
    measurements: Sequence[Measurement],
    bad_probes: Sequence[bool],
    limits: Limits,
    builds: Sequence[Compiled] = (),
    last: bool = False,
) -> Verdict:
    """Apply the limits in the order of blame: adapter at full precision, instrument, scheme on the base, adapter.

    A build that was refused, or whose engine computes in other types than the scheme asks, fails the scheme on this
    target. A build that crashed says nothing about the scheme: the verdict is INVALID, as it is where a gate has no
    measurement (not measured is never passed). While a gate of the full-precision adapter is undecided, the quantized
    adapter is not blamed; at the ``last`` look, where there is nothing to blame it for, that is a warning. While an
    absolute gate of the base is undecided, the adapter is blamed only by gates with the role "adapter", which measure
    what it has beyond the base. ``bad_probes`` [n] says which probes are in the tail.
    """
    judged = _judged(measurements, limits)
    gated = _GatedMeasurements(
        limits.gates, {(measurement.name, measurement.arm): measurement for measurement in judged}
    )
    base: frozenset[Arm] = frozenset({"base"})
    absolute, adapter = frozenset[Role]({"absolute"}), frozenset[Role]({"adapter"})
    invalid = (
        gated.unmeasured() + gated.reasons("not measured") + _build_reasons(builds, {"crashed": "the builder crashed"})
    )
    failed_builds = _build_reasons(builds, {"refused": "the build was refused", "fell back": "the build fell back"})
    base_open = gated.reasons("undecided", absolute, base)
    blamed = gated.reasons("fail", adapter if base_open else absolute | adapter)
    unsettled = gated.reasons("undecided", _REFERENCE)
    reference_first = blamed or not last or not any(gate.role in absolute | adapter for gate in limits.gates)
    ladder: tuple[tuple[Outcome, list[Reason]], ...] = (
        ("FAIL-ADAPTER", gated.reasons("fail", _REFERENCE)),
        ("INVALID", invalid + gated.reasons("fail", frozenset({"control"}))),
        ("FAIL-RECIPE", failed_builds + gated.reasons("fail", absolute, base)),
        ("INCONCLUSIVE", unsettled if reference_first else []),
        ("NEEDS-QAT", blamed),
        ("INCONCLUSIVE", base_open),
        ("INCONCLUSIVE", gated.reasons("undecided", _BLAMING - _REFERENCE) + _tail_reasons(bad_probes, limits)),
    )
    outcome, reasons = next((step for step in ladder if step[1]), ("PASS", []))
    warnings = tuple(reason.text for reason in gated.reasons("fail", frozenset({"warning"})))
    if reasons is not unsettled:
        warnings += tuple(f"{one.text}: open whether the LoRA is sound at full precision" for one in unsettled)
        judged = tuple(_warning(one) if any(one is reason.seen for reason in unsettled) else one for one in judged)
    if reasons:
        first = deciding.named(reasons[0].seen)
        return Verdict(outcome, tuple(reason.text for reason in reasons), judged, warnings, first)
    which = "gated measurement of what quantization does" if unsettled else "gated measurement"
    inside = f"every {which} is inside its limit with 95 % confidence over all looks"
    return Verdict("PASS", (inside,), judged, warnings, deciding.named(deciding.closest(judged)))
