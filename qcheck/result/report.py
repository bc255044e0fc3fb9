"""What a check found: report.json is exactly this value."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from qcheck.core.values import Number, Value
from qcheck.result.build import Build
from qcheck.result.estimate import Estimate
from qcheck.result.measurement import Judged, NotMeasured
from qcheck.result.verdict import Deciding, Outcome
from qcheck.spec.arm import Arm
from qcheck.spec.check import CheckSpec
from qcheck.spec.scheme import RanAs

SCHEMA: Literal["qcheck-report/2"] = "qcheck-report/2"
REPORT = "report.json"


class Input(Value):
    """A base or an adapter: where it came from, what it is, how strongly it was applied and in which arms.

    An adapter that was calibrated is in q1 alone; the one that it came from, the "reference", is in f1.
    """

    source: str
    digest: str
    weight: float | None = None
    arms: Literal["adapted", "both", "reference"] | None = None


class Probing(Value):
    """The probes that every arm answered; a case that was decided early saw the first ``probes_used`` of them."""

    name: str
    digest: str
    prompts: list[str]
    steps: int
    guidance: float
    seed: int
    timesteps: list[float]


class ArtifactFile(Value):
    """One file of an artifact, relative to the report; absolute where someone else made it."""

    path: str
    arm: Literal["base", "adapted"]
    compute: str
    digest: str
    bytes: int


class LayerShare(Value):
    """What one quantized layer has of the case's gap: its share of the squared errors that all layers make alone.

    ``weight`` and ``activation`` are what rounding its weight or its input alone would make of the same sum; ``share``
    is of both together, where errors may point alike. ``standard_error`` is of ``share``, over states and draws.
    """

    name: str
    block: str
    kind: str
    share: Number
    standard_error: Number
    weight: Number
    activation: Number


class Case(Value):
    """One scheme in one order: its verdict and everything it rests on.

    ``deciding`` names the measurement that the verdict rests on: of a PASS the one closest to its limit, else the one
    of the first reason; None where something else decided, such as a build.
    ``layers`` are those that are quantized, the one with most of the gap first; empty where that was not estimated.
    ``steps`` holds step_jitter and latent_kl_excess of each arm at every step of its free runs.
    ``quantized_layers`` is None for a file that someone else made: what it quantizes is not known.
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

    def __getitem__(self, key: str | tuple[str, Arm]) -> Judged:
        """The measurement of that name, of the only arm that has it or else the adapted one; or of (name, arm).

        Raises:
            KeyError: it has none.
        """
        name, arm = (key, None) if isinstance(key, str) else key
        found = {seen.arm: seen for seen in self.measurements if seen.name == name}
        if arm is None and found:
            return found["adapted"] if "adapted" in found else next(iter(found.values()))
        if arm is None or arm not in found:
            known = ", ".join(dict.fromkeys(f"{seen.name} ({seen.arm})" for seen in self.measurements))
            raise KeyError(f"{key}; measured are {known}")
        return found[arm]

    def why(self) -> str:
        """The verdict, what led to it and what to do next, in sentences."""
        return "\n".join([f"{self.verdict}: {self.next}", *(f"because {reason}" for reason in self.reasons)])

    @property
    def decided(self) -> Judged | None:
        """The measurement that the verdict rests on; None where something else decided."""
        named = None if self.deciding is None else (self.deciding.name, self.deciding.arm)
        return next((seen for seen in self.measurements if (seen.name, seen.arm) == named), None)


class Provenance(Value):
    """Who made this file, from what, with which arguments."""

    qcheck: str
    commit: str | None
    created: str
    versions: dict[str, str]
    machine: str
    recipe: str
    recipe_digest: str
    limits: str
    limits_digest: str
    seconds: dict[str, float]


class Report(Value):
    """The whole result of one check. ``spec`` is what was asked, whole: the same check can be asked for again from it.

    ``ranges`` is the file of ranges that was given, if one was.
    """

    schema_: Literal["qcheck-report/2"] = Field(default=SCHEMA, alias="schema")
    spec: CheckSpec
    base: Input
    adapters: list[Input]
    ranges: Input | None = None
    changed_layers: int
    unmatched: list[str]
    target: str
    probes: Probing
    effect_size: Number
    limits_grounds: str
    cases: list[Case]
    not_measured: list[NotMeasured]
    provenance: Provenance

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
        found = [case for case in self.cases if case.scheme == scheme and order in (None, case.order)]
        if len(found) != 1:
            known = ", ".join(f"({case.scheme!r}, {case.order!r})" for case in self.cases)
            raise KeyError(f"{key} names {len(found)} cases of {known}")
        return found[0]

    def save(self, folder: str | Path) -> Path:
        """Write report.json into ``folder``, which ``qcheck.load_report`` and ``qcheck report`` read; its path.

        Artifacts, pictures and the page are written by a check that has ``out``.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / REPORT).write_text(self.to_json(), "utf-8")
        return place / REPORT

    def to_json(self) -> str:
        """Indented JSON with the contract's key ``schema``; non-finite numbers become the strings NaN, Infinity."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


def exit_code(report: Report) -> int:
    """0 if every case passes (any where the request asks for any), 3 if none failed but some is open, else 1.

    Where any will do, unquantized controls do not count.
    """
    whole = report.spec.require == "all"
    outcomes = [case.verdict for case in report.cases if whole or not case.control]
    passed = [outcome == "PASS" for outcome in outcomes]
    if (all(passed) if whole else any(passed)) and outcomes:
        return 0
    return 3 if all(outcome in ("PASS", "INCONCLUSIVE", "INVALID") for outcome in outcomes) else 1
