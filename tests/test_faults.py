"""Faults injected into the demo's artifacts: each is caught, and the healthy artifact beside them passes.

The quantized arms are simulated in torch, which ``quantize/test_onnx`` proves equal to the artifact.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from qcheck import limits, pipeline, recipe, scheme, trace
from qcheck.backend.base import MismatchError, Runner
from qcheck.backend.torch import TorchRunner
from qcheck.cache import Cache
from qcheck.metric import control, effect
from qcheck.metric.statistics import measure_all
from qcheck.model.arms import Arms, Side
from qcheck.probe import Probe, ProbeSet
from qcheck.quantize import fake, plan
from qcheck.quantize.ranges import Histogram, observed
from qcheck.trace import Setup, Trace
from qcheck.verdict import Verdict, judge
from tests.test_trace import quiet, setup_for, subject

CHOSEN = ProbeSet(
    name="faults",
    prompts=("red apple", "panda", "ghost", "fish", "tulip", "cactus", "pig face", "cupcake"),
    seed=40,
    steps=8,
    guidance=3.0,
)
LIMITS = limits.find("default").computing("float16")


@dataclass(frozen=True)
class Bench:
    """Four healthy arms and what a fault needs to trace another one."""

    setup: Setup
    probes: tuple[Probe, ...]
    models: Mapping[str, Any]
    traces: Mapping[str, Trace]
    store: Cache

    def trace(self, name: str, runner: Runner, side: Side) -> Trace:
        return trace.arm(self.setup, self.traces["f1"], subject(name, runner, side), self.probes, self.store, quiet)

    def verdict(self, q0: Trace | None = None, q1: Trace | None = None, exported: Trace | None = None) -> Verdict:
        """Judge as the pipeline does, with some arms replaced."""
        reference = {"base": self.traces["f0"], "adapted": self.traces["f1"]}
        quantized = {"base": q0 or self.traces["q0"], "adapted": q1 or self.traces["q1"]}
        floor = np.full(len(self.setup.strata), 1e-6)
        samples, energies = pipeline.measure(self.setup, reference, quantized, floor)
        found = measure_all(samples, LIMITS.ranges, LIMITS.alpha)
        times = self.setup.timesteps()
        through = exported or self.traces["exported"]
        controls = [
            control.measure("export_control", control.noise(through.outputs(), self.traces["f1"].outputs()), times),
            control.measure("compute_control", floor, times),
        ]
        return judge([*controls, *found], effect.bad_probes(energies, self.setup.weights, *LIMITS.tail), LIMITS)


@pytest.fixture(scope="module")
def bench(demo_arms: Arms, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    store, chosen = Cache(tmp_path_factory.mktemp("bench")), scheme.find("int8")
    setup, probes = setup_for(demo_arms, CHOSEN, batch=8)
    models: dict[str, Any] = {}
    sides: tuple[tuple[Side, str], ...] = (("base", "0"), ("adapted", "1"))
    for side, digit in sides:
        models[f"f{digit}"] = copy.deepcopy(demo_arms.entry(side))
    f1 = trace.reference(setup, subject("f1", TorchRunner(models["f1"])), probes, store, quiet)
    for side, digit in sides:
        layers = plan.chosen_layers(models[f"f{digit}"].denoiser, chosen, recipe.find("emoji"))
        seen = Histogram()
        with observed(layers, [seen]):
            trace.visit(setup, f1, TorchRunner(models[f"f{digit}"]), side, probes, quiet)
        models[f"q{digit}"] = copy.deepcopy(models[f"f{digit}"])
        ranges = {layer: plan.Input(inputs.absmax) for layer, inputs in seen.seen().items()}
        numbers = plan.make(layers, models[f"f{digit}"].denoiser.state_dict(), chosen, ranges)
        fake.simulated(models[f"q{digit}"].denoiser, numbers).__enter__()
    healthy: tuple[tuple[str, str, Side], ...] = (
        ("f0", "f0", "base"),
        ("q0", "q0", "base"),
        ("q1", "q1", "adapted"),
        ("exported", "f1", "adapted"),
    )
    traces = {"f1": f1}
    for name, source, of in healthy:
        traces[name] = trace.arm(setup, f1, subject(name, TorchRunner(models[source]), of), probes, store, quiet)
    return Bench(setup, probes, models, traces, store)


@dataclass(frozen=True)
class Altered:
    """A runner with a fault around it."""

    inner: Runner
    time: Callable[[float], float] = lambda t: t
    output: Callable[[np.ndarray], np.ndarray] = lambda x: x
    name: str = "altered"

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        moved = {"timestep": np.array([self.time(float(inputs["timestep"][0]))], np.float32)}
        return self.output(self.inner({**inputs, **moved}))


def test_the_healthy_artifact_passes(bench: Bench) -> None:
    found = bench.verdict()
    assert found.outcome == "PASS", found.reasons


def test_swapped_arms_are_caught(bench: Bench) -> None:
    found = bench.verdict(
        q0=bench.trace("swap0", TorchRunner(bench.models["q1"]), "base"),
        q1=bench.trace("swap1", TorchRunner(bench.models["q0"]), "adapted"),
    )
    assert found.outcome in ("FAIL-RECIPE", "NEEDS-QAT")
    survival = next(m for m in found.measurements if m.name == "effect_survival")
    assert survival.value == pytest.approx(-1, abs=0.1)
    exported = bench.verdict(exported=bench.trace("swapped-export", TorchRunner(bench.models["f0"]), "adapted"))
    assert exported.outcome == "INVALID"


def test_a_dropped_adapter_is_caught(bench: Bench) -> None:
    found = bench.verdict(q1=bench.trace("dropped", TorchRunner(bench.models["q0"]), "adapted"))
    assert found.outcome == "NEEDS-QAT"
    survival = next(m for m in found.measurements if m.name == "effect_survival")
    assert survival.value == pytest.approx(0, abs=0.1)
    assert survival.status == "fail"


def test_a_wrong_seed_is_refused(bench: Bench, demo_arms: Arms) -> None:
    setup, probes = setup_for(demo_arms, CHOSEN.model_copy(update={"seed": 41}), batch=8)
    other = trace.reference(setup, subject("seed", TorchRunner(bench.models["q1"])), probes, bench.store, quiet)
    with pytest.raises(MismatchError):
        bench.verdict(q1=other)


def test_a_shifted_timestep_of_the_artifact_is_caught(bench: Bench) -> None:
    late = Altered(TorchRunner(bench.models["q1"]), time=lambda t: max(t - 125, 0))
    found = bench.verdict(q1=bench.trace("shift1", late, "adapted"))
    assert found.outcome == "NEEDS-QAT"


def test_a_timestep_shifted_by_one_in_the_export_is_caught_by_the_control(bench: Bench) -> None:
    late = Altered(TorchRunner(bench.models["f1"]), time=lambda t: max(t - 1, 0))
    assert bench.verdict(exported=bench.trace("shift", late, "adapted")).outcome == "INVALID"


@pytest.mark.parametrize(("arm", "outcome"), [("q1", "NEEDS-QAT"), ("q0", "FAIL-RECIPE")])
def test_nan_in_one_layer_is_caught(bench: Bench, arm: str, outcome: str) -> None:
    bias = bench.models[arm].denoiser.get_submodule("mid_block.resnets.0.conv1").get_parameter("bias")
    side: Side = "adapted" if arm == "q1" else "base"
    kept = bias.data.clone()
    bias.data[0] = float("nan")
    traced = bench.trace(f"nan-{arm}", TorchRunner(bench.models[arm]), side)
    bias.data = kept
    found = bench.verdict(**{arm: traced})
    assert found.outcome == outcome
    assert "not finite" in " ".join(found.reasons)


@pytest.mark.parametrize("factor", [20.0, float("nan")], ids=["saturated", "not-finite"])
def test_an_adapter_that_breaks_the_base_at_full_precision_is_blamed_itself(bench: Bench, factor: float) -> None:
    loud = Altered(TorchRunner(bench.models["f1"]), output=lambda x: np.float32(factor) * x)
    name = f"loud {factor}"
    f1 = trace.reference(bench.setup, subject(name, loud), bench.probes, bench.store, quiet)
    loud_bench = Bench(bench.setup, bench.probes, bench.models, {"f1": f1, "exported": f1}, bench.store)
    runners: dict[str, tuple[Runner, Side]] = {
        "f0": (TorchRunner(bench.models["f0"]), "base"),
        "q0": (TorchRunner(bench.models["q0"]), "base"),
        "q1": (loud, "adapted"),
    }
    traces = {arm: loud_bench.trace(f"{name} {arm}", *runner) for arm, runner in runners.items()}
    loud_bench = replace(loud_bench, traces=traces | loud_bench.traces)
    found = loud_bench.verdict()
    assert found.outcome == "FAIL-ADAPTER", found.measurements


def test_a_quantizer_that_does_nothing_is_seen_as_no_error_at_all(bench: Bench) -> None:
    found = bench.verdict(
        q0=bench.trace("noop0", TorchRunner(bench.models["f0"]), "base"),
        q1=bench.trace("noop1", TorchRunner(bench.models["f1"]), "adapted"),
    )
    sqnr = next(m for m in found.measurements if m.name == "stratum_sqnr" and m.arm == "adapted")
    assert sqnr.value is not None
    assert sqnr.value > 80
