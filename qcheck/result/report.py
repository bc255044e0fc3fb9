"""What a check found: report.json is exactly this value."""

from typing import Literal

from pydantic import Field

from qcheck.core.values import Number, Value
from qcheck.result.build import Build
from qcheck.result.estimate import Estimate
from qcheck.result.measurement import Judged, NotMeasured
from qcheck.result.verdict import Deciding, Outcome
from qcheck.spec.scheme import RanAs

SCHEMA: Literal["qcheck-report/1"] = "qcheck-report/1"


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
    arguments: dict[str, str | float | int | bool | list[str] | list[float] | None]
    versions: dict[str, str]
    machine: str
    recipe: str
    recipe_digest: str
    limits: str
    limits_digest: str
    seconds: dict[str, float]


class Report(Value):
    """The whole result of one check."""

    schema_: Literal["qcheck-report/1"] = Field(default=SCHEMA, alias="schema")
    base: Input
    adapters: list[Input]
    changed_layers: int
    unmatched: list[str]
    target: str
    probes: Probing
    effect_size: Number
    limits_grounds: str
    cases: list[Case]
    not_measured: list[NotMeasured]
    provenance: Provenance

    def to_json(self) -> str:
        """Indented JSON with the contract's key ``schema``; non-finite numbers become the strings NaN, Infinity."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


def exit_code(report: Report, explicit: bool) -> int:
    """0 if every scheme passes (any when schemes were defaulted), 3 if none failed but some is open, else 1.

    Unquantized controls count only where they were named.
    """
    outcomes = [case.verdict for case in report.cases if explicit or not case.control]
    passed = [outcome == "PASS" for outcome in outcomes]
    if (all(passed) if explicit else any(passed)) and outcomes:
        return 0
    return 3 if all(outcome in ("PASS", "INCONCLUSIVE", "INVALID") for outcome in outcomes) else 1
