"""What a board said of its own engines: verify.json, as ``qcheck.device`` writes it."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.core.size import megabytes
from qcheck.core.values import Number, Value, fault
from qcheck.result.measurement import Judged

SCHEMA: Literal["qcheck-verify/1"] = "qcheck-verify/1"
NAME = "verify.json"


class BoardMeasurement(Judged):
    """A measurement with ``rows`` [n][k], the numbers of each probe at each place, from which the others follow."""

    rows: list[list[Number]]


class Latency(Value):
    """Times of calls in ms; ``drift`` is how much slower the last third was than the first, as a share."""

    median: float
    p90: float
    p95: float
    min: float
    count: int
    drift: float


class Energy(Value):
    """Power in W and energy in J a call, gross and net of the idle board; indicative."""

    watts: float
    idle_watts: float
    net_watts: float
    joules: float
    net_joules: float
    samples: int
    rails: list[str]
    quality: str


class Cost(Value):
    """What a call of a component costs; ``memory`` in bytes of its engine and activations.

    ``available_drop`` is what the board's free memory lost meanwhile, ``resident_peak`` the verifier's own peak, in
    bytes. ``states`` are the board's before and after the calls. ``doubts`` say what makes the latency inconclusive,
    such as throttling; ``missing`` why a number is not there.
    """

    latency: Latency | None = None
    memory: int | None = None
    available_drop: int | None = None
    resident_peak: int | None = None
    energy: Energy | None = None
    states: dict[str, dict[str, Any]] = Field(default_factory=dict)
    doubts: list[str] = Field(default_factory=list)
    missing: dict[str, str] = Field(default_factory=dict)


class EnginePrecision(Value):
    """Whether an engine computes as the scheme asks: "as asked", "fell back" or "fused, cannot be told"."""

    status: Literal["as asked", "fell back", "fused, cannot be told"]
    text: str
    fell_back: list[str]


class Component(Value):
    """One component on the board: its file, its engine and its cost."""

    name: str
    role: Literal["denoiser", "base", "twin", "encoder", "decoder"]
    compute: str
    bytes: int
    build: dict[str, Any] | None
    precision: EnginePrecision | None
    cost: Cost


class Asked(Value):
    """What the bundle asks, and the host's verdict on its probes."""

    base: str
    adapter: str
    scheme: str
    order: str
    target: str
    guidance: float
    steps: int
    verdict: str
    host_machine: str
    base_digest: str
    adapter_digests: list[str]
    file_digest: str
    weights: list[float]
    limits_digest: str


class Runner(Value):
    """What ran the components; ``deployed`` says whether it is the engine that the board would run."""

    name: str
    deployed: bool


class Forecast(Value):
    """What the host said of the board before it was asked, in ms and bytes; None where it could not."""

    call_ms: float | None
    engine_bytes: int | None
    builder_bytes: int
    memory_bytes: int


class Verified(Value):
    """The whole file. ``explained`` are distances of the denoiser's output in dB, signal over error.

    ``others`` are the verifications of the other adapters that the same engine took.
    """

    schema_: Literal["qcheck-verify/1"] = Field(default=SCHEMA, alias="schema")
    bundle: str
    asked: Asked
    probes: int
    runner: Runner
    board: dict[str, Any]
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    reasons: list[str]
    measurements: list[BoardMeasurement]
    explained: dict[str, Number]
    components: list[Component]
    not_measured: dict[str, str]
    warnings: list[str]
    forecast: Forecast
    versions: dict[str, str]
    seconds: float
    others: list["Verified"] = Field(default_factory=list)

    @property
    def every(self) -> list["Verified"]:
        """The verification of each adapter."""
        return [self, *self.others]

    @property
    def denoiser(self) -> Component:
        """The quantized denoiser."""
        return next(component for component in self.components if component.role == "denoiser")

    @property
    def outcome(self) -> str:
        """The verdict, and that no engine was run where none was."""
        return self.verdict if self.runner.deployed else f"{self.verdict} (numerics only)"

    @property
    def title(self) -> str:
        """The board and what ran there, in words."""
        release = f", {self.board['release']}" if self.board.get("release") else ""
        numerics = "" if self.runner.deployed else ", numerics only"
        return f"{self.board.get('model', 'unknown board')}{release} ({self.runner.name}{numerics})"

    @property
    def image_ms(self) -> float | None:
        """The time of one picture in ms, computed from the medians of its parts.

        None where one was not timed, or its latency is inconclusive.
        """
        parts = [c for c in self.components if c.role in ("denoiser", "encoder", "decoder")]
        timed = {c.name: None if c.cost.doubts else c.cost.latency for c in parts}
        if any(latency is None for latency in timed.values()):
            return None
        medians = {name: latency.median for name, latency in timed.items() if latency is not None}
        return sum(medians.values()) + (self.asked.steps - 1) * medians[self.denoiser.name]

    def forecasts(self) -> list[tuple[str, str, str, str]]:
        """What was forecast beside what the board measured: name, forecast, measured, and the forecast's error."""
        cost, build = self.denoiser.cost, self.denoiser.build or {}
        call = None if cost.latency is None or cost.doubts else cost.latency.median
        pairs = (
            ("a denoiser call", self.forecast.call_ms, call, "at least {:.3g} ms", "{:.3g} ms"),
            ("engine", self.forecast.engine_bytes, build.get("engine_bytes"), "", ""),
            ("memory of the builder", self.forecast.builder_bytes, build.get("peak_bytes"), "", ""),
            ("memory of the denoiser", self.forecast.memory_bytes, cost.memory, "", ""),
        )
        rows = []
        for name, before, after, *words in pairs:
            shown = [
                "not known" if value is None else word.format(value) if word else megabytes(value)
                for value, word in zip((before, after), words, strict=True)
            ]
            error = "" if before is None or not after else f"{100 * (before / after - 1):+.0f} %"
            if after is not None:
                rows.append((name, shown[0], shown[1], error))
        return rows


def read(path: Path) -> Verified:
    """The file that a board wrote.

    Raises:
        UserError: it is none, or of another version.
    """
    path = path / NAME if path.is_dir() else path
    try:
        return Verified.model_validate_json(files.read_bytes(path))
    except OSError as error:
        raise UserError(f"{str(path)!r}: {error.strerror}", f"Give the {NAME} that the board wrote.") from error
    except ValidationError as error:
        raise UserError(
            f"{str(path)!r} is not of {SCHEMA} as this qcheck reads it: {fault(error)}",
            "Copy it from the board again; it has to be of a bundle that this version exported.",
        ) from error
