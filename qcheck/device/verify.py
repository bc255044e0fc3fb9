"""The whole verification: every component through the runner, measurements beside limits, and the verdict.

Teacher-forced replay decides: the engine is evaluated at the latents that the host's full-precision reference visited,
so that errors do not add up differently on two machines. The distance to the host's own simulation explains.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Protocol, Sequence, Tuple

import numpy as np

from . import arithmetic, effect, gates, replay
from .bundle import Bundle, Component
from .errors import CannotVerify
from .gates import Gate, Measurement
from .replay import Results, Runner, Say

SCHEMA = "qcheck-verify/1"
Gates = Mapping[Tuple[str, str], Gate]
Arms = Dict[str, List[np.ndarray]]


@dataclass(frozen=True)
class Opened:
    """A component that is ready to run; ``build`` and ``precision`` are None where no engine was built.

    ``key`` names what its results depend on beside the bundle.
    """

    runner: Runner
    key: str
    build: Mapping[str, Any] | None = None
    precision: Mapping[str, Any] | None = None


class Backend(Protocol):
    """What runs components here.

    ``deployed`` says whether it is what the device would run.
    """

    name: str
    deployed: bool

    def open(self, component: Component) -> Opened:
        """Build the component's engine where there is none, and load it."""

    def cost(self, opened: Opened, inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Latency, memory and energy of calls with these inputs; what is missing has its reason."""

    def warnings(self) -> Sequence[str]:
        """What a person has to know beside the results."""


@dataclass(frozen=True)
class Outcome:
    """What was found: verify.json without the board. ``verdict`` is PASS, FAIL or INCONCLUSIVE."""

    verdict: str
    reasons: Sequence[str]
    measurements: Sequence[Measurement]
    explained: Mapping[str, Any]
    components: Sequence[Mapping[str, Any]]
    missing: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "measurements": [one.to_json() for one in self.measurements],
            "explained": {key: gates.written(value) for key, value in self.explained.items()},
            "components": [dict(one) for one in self.components],
            "not_measured": dict(self.missing),
        }


@dataclass(frozen=True)
class Verification:
    """One bundle on one backend; results are kept in ``work``, so that a killed run goes on."""

    bundle: Bundle
    backend: Backend
    work: Path
    say: Say
    free_run: bool = True

    def run(self) -> Outcome:
        """Run every component, one at a time, and judge."""
        bundle, gates_here = self.bundle, self.gates()
        forced, free, components = self._denoisers()
        measurements, missing = self._measured(forced, free, gates_here)
        for component in bundle.components:
            if component.role in ("encoder", "decoder"):
                described, errors, why = self._other(component, gates_here)
                components += described
                measurements += errors
                missing.update(why)
        twin = bundle.component("twin")
        if twin is not None and self.backend.deployed:
            components.append(self._timed(twin))
        limits = bundle.facts["limits"]
        judged = gates.judged(measurements, list(gates_here.values()), limits["alpha"])
        broken = [reason for component in components for reason in _fell_back(component)]
        tail = self._tail(self._energies(forced))
        verdict, reasons = gates.verdict(judged, broken, [*tail, *_unmeasured(measurements, gates_here, missing)])
        return Outcome(verdict, reasons, judged, self._explained(forced["adapted"]), components, missing)

    def gates(self) -> Gates:
        """The bundle's gates by measurement and arm."""
        every = [Gate(**gate) for gate in self.bundle.facts["limits"]["gates"]]
        return {(gate.name, gate.arm): gate for gate in every}

    def results(self, component: Component, opened: Opened) -> Path:
        """The folder of what a component gave: of this bundle, and of what ran it."""
        return self.work / "results" / f"{self.bundle.identity[:16]}-{component.name}-{opened.key}"

    def _opened(self, component: Component) -> Opened:
        self.say(f"{component.name}: {'build and load the engine' if self.backend.deployed else 'load'}")
        return self.backend.open(component)

    def _denoisers(self) -> tuple[Arms, Arms, list[Mapping[str, Any]]]:
        """Outputs and final latents of every arm that runs here, and what their components are and cost."""
        bundle, base = self.bundle, self.bundle.component("base")
        forced: Arms = {}
        free: Arms = {}
        components: list[Mapping[str, Any]] = []
        for arm, component in (("adapted", bundle.denoiser), ("base", base)):
            if component is None:
                continue
            opened = self._opened(component)
            with closing(opened.runner) as runner:
                results = Results(self.results(component, opened))
                forced[arm] = replay.forced(bundle, runner, arm, results, self.say)
                if bundle.solver is not None and self.free_run:
                    free[arm] = replay.free(bundle, bundle.solver, runner, arm, results, self.say)
                components.append(self._described(component, opened, self._first(arm)))
        return forced, free, components

    def _first(self, arm: str) -> dict[str, np.ndarray]:
        """The denoiser's inputs for the first probe at its first stratum."""
        return {name: values[0] for name, values in self.bundle.inputs(0, arm).items()}

    def _described(self, component: Component, opened: Opened, inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """A component as verify.json has it."""
        self.say(f"{component.name}: measure its cost" if self.backend.deployed else f"{component.name}: done")
        try:
            cost = self.backend.cost(opened, inputs)
        except CannotVerify as error:  # what was measured before stays a verdict
            cost = {"missing": {"latency, memory and energy": error.problem}}
        return _written(component, cost, opened)

    def _energies(self, forced: Arms) -> effect.Energies:
        bundle = self.bundle
        q0 = forced.get("base") or _Stored(bundle, "q0")
        f0, f1 = _Stored(bundle, "f0"), _Stored(bundle, "f1")
        return effect.energies(f0, f1, q0, forced["adapted"], bundle.facts["calibrated"])

    def _measured(self, forced: Arms, free: Arms, gates_here: Gates) -> tuple[list[Measurement], dict[str, str]]:
        """The denoiser's measurements that have a gate, and what is not measured with its reason."""
        bundle, missing = self.bundle, dict(self.bundle.facts["host_only"])
        e, places = self._energies(forced), [f"timestep {t:g}" for t in bundle.facts["strata"]]
        with np.errstate(all="ignore"):
            samples: dict[tuple[str, str], tuple[np.ndarray, list[str]]] = {
                ("effect_survival", "adapted"): (effect.survival(e), []),
                ("stratum_survival", "adapted"): (effect.stratum_survival(e), [places[i] for i in effect.awake(e)]),
            }
            for arm, latents in free.items():
                against = _Finals(bundle, "f1" if arm == "adapted" else "f0")
                samples["endpoint_error", arm] = arithmetic.relative(latents, against), []
        if not free:
            missing["endpoint_error"] = bundle.facts["no_solver"] or "free runs were left out"
        alpha = bundle.facts["limits"]["alpha"]
        asked = {key: sample for key, sample in samples.items() if key in gates_here}
        return [gates.measure(values, gates_here[key], alpha, at) for key, (values, at) in asked.items()], missing

    def _other(
        self, component: Component, gates_here: Gates
    ) -> tuple[list[Mapping[str, Any]], list[Measurement], dict[str, str]]:
        """A text encoder or the decoder: what it is and costs, and its error on the bundle's inputs.

        A processor has no kernels for bfloat16: there it is not measured, and the reason says so.
        """
        try:
            opened = self._opened(component)
        except CannotVerify as error:
            if self.backend.deployed:
                raise
            return [], [], {component.name: error.problem}
        errors = []
        with closing(opened.runner) as runner:
            inputs = self.bundle.component_inputs(component)
            for index in range(self.bundle.facts["component_samples"]):
                outputs = replay.once(component, runner, {name: values[index] for name, values in inputs.items()})
                reference = self.bundle.component_outputs(component, index)
                errors.append(_cosine(outputs, reference) if component.role == "encoder" else _rms(outputs, reference))
            described = self._described(component, opened, {name: values[0] for name, values in inputs.items()})
        name = "embedding_cosine" if component.role == "encoder" else "picture_error"
        return [described], [gates.worst(errors, gates_here[name, "adapted"], component.name)], {}

    def _timed(self, twin: Component) -> Mapping[str, Any]:
        """The denoiser in 16 bit, which is built and timed alone; why not, where that fails."""
        try:
            opened = self._opened(twin)
        except CannotVerify as error:
            return _written(twin, {"missing": {"latency": error.problem}})
        with closing(opened.runner):
            return self._described(twin, opened, self._first("adapted"))

    def _tail(self, e: effect.Energies) -> list[str]:
        """Why too many probes are bad, if they are."""
        limits = self.bundle.facts["limits"]
        low, high = limits["tail"]
        bad = effect.bad_probes(e, low, high)
        if sum(bad) <= limits["bad_share"] * len(bad):
            return []
        return [f"effect_survival is outside {low:g} .. {high:g} on {sum(bad)} of {len(bad)} probes"]

    def _explained(self, outputs: Sequence[np.ndarray]) -> dict[str, Any]:
        """How far the outputs are from the host's simulation of the same file, and that from full precision, in dB."""
        bundle = self.bundle
        gap = error = signal = 0.0
        for probe, here in enumerate(outputs):
            host, full = (bundle.outputs(probe, arm).astype(np.float64) for arm in ("q1", "f1"))
            gap += float(np.square(here - host).sum())
            error += float(np.square(host - full).sum())
            signal += float(np.square(full).sum())
        return {"host_gap_db": _ratio(signal, gap), "host_error_db": _ratio(signal, error)}


def _written(component: Component, cost: Mapping[str, Any], opened: Opened | None = None) -> dict[str, Any]:
    """A component as verify.json has it."""
    return {
        "name": component.name,
        "role": component.role,
        "compute": component.compute,
        "bytes": component.bytes,
        "build": None if opened is None else opened.build,
        "precision": None if opened is None else opened.precision,
        "cost": dict(cost),
    }


def _unmeasured(measurements: Sequence[Measurement], gates_here: Gates, missing: Mapping[str, str]) -> list[str]:
    """Gates without a measurement, with the reason: what was not measured is never passed."""
    measured = {(one.name, one.arm) for one in measurements}
    reasons = "; ".join(missing.values())
    return [
        f"{name} ({arm}) was not measured: {missing.get(name, reasons)}"
        for name, arm in gates_here
        if (name, arm) not in measured
    ]


def _ratio(signal: float, error: float) -> float:
    """10 log10(signal / error), at most 200 dB."""
    ratio = float(arithmetic.decibels(np.array(signal), np.array(error)))
    return ratio if math.isnan(ratio) else min(200.0, ratio)


class _Stored:
    """The host's guided outputs of an arm, one probe in memory at a time."""

    def __init__(self, bundle: Bundle, arm: str) -> None:
        self._bundle, self._arm = bundle, arm

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._bundle.outputs(probe, self._arm) for probe in range(self._bundle.probes))


class _Finals(_Stored):
    """The host's final latents of an arm."""

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._bundle.final(probe, self._arm) for probe in range(self._bundle.probes))


def _cosine(outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> float:
    """The lowest cosine between rows (tokens) of an encoder's outputs and of the reference's, over all outputs."""
    lowest = 1.0
    for name, expected in reference.items():
        a = outputs[name].astype(np.float64).reshape(-1, expected.shape[-1])
        b = expected.astype(np.float64).reshape(-1, expected.shape[-1])
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        with np.errstate(all="ignore"):
            cosines = np.where(lengths > 0, (a * b).sum(1) / lengths, np.nan)
        lowest = float(np.minimum(lowest, cosines.min()))
    return lowest


def _rms(outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> float:
    """The root mean square difference of pictures, whose range is 1, from pictures in [-1, 1]."""
    (name,) = reference
    difference = (np.clip(outputs[name], -1, 1) - np.clip(reference[name], -1, 1)) / 2
    return float(np.sqrt(np.square(difference.astype(np.float64)).mean()))


def _fell_back(component: Mapping[str, Any]) -> list[str]:
    """Why an engine's precision fails the board, if it does."""
    precision = component.get("precision") or {}
    if precision.get("status") != "fell back":
        return []
    layers = precision["fell_back"]
    shown = "; ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
    return [f"{component['name']}: the engine fell back to other types than the scheme asks: {shown}"]
