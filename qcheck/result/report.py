"""The result of a check: report.json is exactly this value."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from qcheck.core import files
from qcheck.core.values import Number, Value
from qcheck.result.basis import Basis
from qcheck.result.build import Build
from qcheck.result.estimate import Estimate
from qcheck.result.measurement import Judged, NotMeasured
from qcheck.result.verdict import Deciding, Outcome
from qcheck.result.verified import Verified
from qcheck.spec.arm import Arm
from qcheck.spec.check import CheckSpec
from qcheck.spec.order import ORDERS
from qcheck.spec.scheme import RanAs

SCHEMA: Literal["qcheck-report/2"] = "qcheck-report/2"
REPORT = "report.json"


class Input(Value):
    """A base or an adapter: where it came from, what it is, how strongly it was applied and in which arms.

    An adapter that ``qcheck qat`` calibrated is in q1 alone; its original, the "reference", is in f1.
    """

    source: str
    digest: str
    weight: float | None = None
    arms: Literal["adapted", "both", "reference"] | None = None


class Probing(Value):
    """The probes that every arm was sampled on; a case that was decided early used its first ``probes_used``."""

    name: str
    digest: str
    prompts: list[str]
    steps: int
    guidance: float
    seed: int
    timesteps: list[float]


class ArtifactFile(Value):
    """One file of an artifact, relative to the report; absolute where someone else made it.

    ``sha256`` are those of the file, of the file of its tensors and of what else the board takes with it, by path.
    ``digest`` is that of the file and its tensors together.
    """

    path: str
    arm: Literal["base", "adapted"]
    compute: str
    digest: str
    bytes: int
    sha256: dict[str, str] = Field(default_factory=dict)


class LayerShare(Value):
    """One quantized layer's share of the case's gap: of the sum of squared errors that the layers make one by one.

    ``weight`` and ``activation`` are the shares of the same sum that rounding its weight or its input alone would make.
    ``share`` is that of both together, whose errors may point alike. ``standard_error`` is that of ``share``, over
    states and draws.
    """

    name: str
    block: str
    kind: str
    share: Number
    standard_error: Number
    weight: Number
    activation: Number


STEADY = 0.9  # of reruns that end alike; below it a verdict is worth asking again


class Trust(Value):
    """How far a verdict can be trusted.

    ``detectable_loss`` is the smallest share of the adapter's effect whose loss would have kept these probes from PASS
    four times of five, None where a value is not finite or no limit bounds it. ``rerun_stability`` is the share of
    checks on other probes that would end alike, by drawing these again; None where a value is not finite.
    """

    detectable_loss: Number | None
    rerun_stability: Number | None

    def text(self) -> str:
        """Both in words, with what to do where reruns often end otherwise; what was not measured says why."""
        loss, stability = self.detectable_loss, self.rerun_stability
        caught = "the smallest detectable loss was not measured: no limit bounds it, or a value is not finite"
        same = "reruns were not measured: a value is not finite"
        if loss is not None:
            caught = f"a loss of {100 * loss:.0f} % of the effect would have been caught"
        if stability is not None:
            same = f"{100 * stability:.0f} % of reruns on other probes would say the same"
            if stability < STEADY:
                same += ": ask others by --seed random, or more of them by later `looks` in a limits file"
        return f"{caught}; {same}"


class GroupSurvival(Value):
    """How much of the effect survives in one group of prompts: the mean over its probes with its own bounds.

    ``probes`` are their numbers, from 1, and ``outside`` those of them whose own survival is outside of the limit.
    """

    name: str
    survival: Judged
    probes: list[int]
    outside: list[int]

    def text(self) -> str:
        """All of it in words."""
        words = {"pass": "kept", "fail": "not kept", "undecided": "open"}
        numbers = f"; outside by itself: probe {', '.join(map(str, self.outside[:_NAMED]))}" if self.outside else ""
        more = f" and {len(self.outside) - _NAMED} more" if len(self.outside) > _NAMED else ""
        own = self.survival
        bounds = f"{own.value:.2f} [{own.low:.2f}, {own.high:.2f}] of {len(self.probes)} probes"
        return f"group {self.name}: survival {bounds}, {words.get(own.status, own.status)}{numbers}{more}"


_NAMED = 8  # probes of a group that its text names


class Case(Value):
    """One scheme in one order: its verdict and everything it rests on.

    ``deciding`` names the measurement that the verdict rests on: of a PASS the one closest to its limit, else the one
    of the first reason; None where something else decided, such as a build.
    ``layers`` are those that are quantized, the one with most of the gap first; empty where that was not estimated.
    ``steps`` holds step_jitter and latent_kl_excess of each arm at every step of its free runs.
    ``groups`` are those of the prompts, where they have groups.
    ``quantized_layers`` is None for a file that someone else made: what it quantizes is not known. ``trust`` is None
    where nothing was run. ``board`` is what a board said of its own engine, once it was asked (docs/board.md).
    ``basis`` holds the numbers of each probe from which ``qcheck audit`` computes all of this again.
    """

    scheme: str
    order: str
    verdict: Outcome
    deciding: Deciding | None
    reasons: list[str]
    next: str
    warnings: list[str]
    probes_used: int
    measurements: list[Judged]
    stratum_sqnr: dict[str, list[Number]]
    steps: dict[str, list[Number]]
    quantized_layers: int | None
    kept_layers: list[str]
    layers: list[LayerShare] = Field(default_factory=list)
    artifact: list[ArtifactFile]
    compute: str
    ran_as: RanAs
    control: bool
    full_precision_bytes: int | None
    estimate: Estimate | None
    builds: list[Build]
    seconds: float
    trust: Trust | None = None
    groups: list[GroupSurvival] = Field(default_factory=list)
    board: Verified | None = None
    basis: Basis | None = None

    def __getitem__(self, key: str | tuple[str, Arm]) -> Judged:
        """The measurement of that name, of the only arm that has it or else the adapted one; or of (name, arm).

        Raises:
            KeyError: it has none.
        """
        name, arm = (key, None) if isinstance(key, str) else key
        by_arm = {measurement.arm: measurement for measurement in self.measurements if measurement.name == name}
        if arm is None and by_arm:
            return by_arm["adapted"] if "adapted" in by_arm else next(iter(by_arm.values()))
        if arm is None or arm not in by_arm:
            known = ", ".join(
                dict.fromkeys(f"{measurement.name} ({measurement.arm})" for measurement in self.measurements)
            )
            raise KeyError(f"{key}; measured are {known}")
        return by_arm[arm]

    def why(self) -> str:
        """The verdict, what led to it and what to do next, in sentences."""
        return "\n".join([f"{self.verdict}: {self.next}", *(f"because {reason}" for reason in self.reasons)])

    @property
    def outcome(self) -> Outcome:
        """The verdict, with the board's where the host's is PASS or open: what fails there needs another recipe."""
        if self.board is None or self.verdict not in ("PASS", "INCONCLUSIVE") or self.board.verdict == "PASS":
            return self.verdict
        return "FAIL-RECIPE" if self.board.verdict == "FAIL" else "INCONCLUSIVE"

    @property
    def decided(self) -> Judged | None:
        """The measurement that the verdict rests on; None where something else decided."""
        key = None if self.deciding is None else (self.deciding.name, self.deciding.arm)
        return next(
            (measurement for measurement in self.measurements if (measurement.name, measurement.arm) == key), None
        )


class Provenance(Value):
    """The versions, machine, recipe and limits that made this file, and the seconds of each stage.

    ``device`` is the product that computed ("cpu", or a GPU and its platform), ``device_memory`` the most bytes that
    torch's tensors took on it, None for the processor. ``reference_error`` is the highest relative error of a reference
    in TF32 against float32, in dB, None for a reference in float32.
    """

    qcheck: str
    commit: str | None
    created: str
    versions: dict[str, str]
    machine: str
    device: str
    device_memory: int | None
    reference_error: Number | None
    recipe: str
    recipe_digest: str
    limits: str
    limits_digest: str
    seconds: dict[str, float]


class Report(Value):
    """The whole result of one check. ``spec`` is the whole request: the same check can be run again from it.

    ``ranges`` is the request's file of ranges, if it has one, ``style_pictures`` those of its pictures that
    were used, ``judges`` the networks that looked at pictures.
    """

    schema_: Literal["qcheck-report/2"] = Field(default=SCHEMA, alias="schema")
    spec: CheckSpec
    base: Input
    adapters: list[Input]
    ranges: Input | None = None
    style_pictures: Input | None = None
    judges: list[Input] = Field(default_factory=list)
    changed_layers: int
    unmatched: list[str]
    idle: list[str]
    target: str
    probes: Probing
    effect_size: Number
    limits_grounds: str
    cases: Annotated[list[Case], Field(min_length=1)]
    not_measured: list[NotMeasured]
    provenance: Provenance

    @model_validator(mode="after")
    def _cases_are_the_requests(self) -> Self:
        """Commands that work on a report ask again for its cases, so each has to be one of the request's."""
        schemes = {scheme.name for scheme in self.spec.schemes}
        for case in self.cases:
            own = case.quantized_layers is not None  # a file of another tool has neither scheme nor order
            if own and not (case.scheme in schemes and case.order in ORDERS):
                raise ValueError(f"the request has no case {case.scheme!r} {case.order!r}")
        uses = (*self.spec.adapters, *self.spec.references, *self.spec.common)
        if len(self.adapters) != len(uses):
            raise ValueError(f"{len(self.adapters)} adapters are listed, and the request has {len(uses)}")
        return self

    @property
    def passed(self) -> bool:
        """Whether the request's cases passed: all of them, or any where it asks for any."""
        return exit_code(self) == 0

    def __getitem__(self, key: str | tuple[str, str]) -> Case:
        """The case of a scheme, where it was judged in one order alone, or of (scheme, order).

        Raises:
            KeyError: there is none, or there are several.
        """
        scheme, order = (key, None) if isinstance(key, str) else key
        cases = [case for case in self.cases if case.scheme == scheme and order in (None, case.order)]
        if len(cases) != 1:
            known = ", ".join(f"({case.scheme!r}, {case.order!r})" for case in self.cases)
            raise KeyError(f"{key} names {len(cases)} cases of {known}")
        return cases[0]

    def save(self, folder: str | Path) -> Path:
        """Write report.json into ``folder``, which ``qcheck.load_report`` and ``qcheck report`` read; its path.

        Artifacts, pictures and the page are written by a check that has ``out``.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        files.write(path / REPORT, self.to_json())
        return path / REPORT


def exit_code(report: Report) -> int:
    """0 if every case passes (any where the request asks for any), 3 if none failed but some is open, else 1.

    Where any will do, unquantized controls do not count. Where a board was asked, it has to pass there too.
    """
    whole = report.spec.require == "all"
    outcomes = [case.outcome for case in report.cases if whole or not case.control]
    passed = [outcome == "PASS" for outcome in outcomes]
    if (all(passed) if whole else any(passed)) and outcomes:
        return 0
    return 3 if all(outcome in ("PASS", "INCONCLUSIVE", "INVALID") for outcome in outcomes) else 1
