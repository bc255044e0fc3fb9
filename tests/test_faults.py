"""Faults injected into the demo's artifacts: each is caught, and the healthy artifacts beside them are not.

The table of docs/faults.md is what the bench gives; ``QCHECK_WRITE_DOCS=1`` writes it.
"""

import functools
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qcheck.core.cache import Cache
from qcheck.model.arms import Arms
from qcheck.result.measurement import Judged
from qcheck.result.verdict import Verdict
from qcheck.runtime.runner import MismatchError, Runner
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.spec import measurement
from qcheck.spec.arm import Arm, Side
from tests import faults
from tests.conftest import adapted_by
from tests.faults import CHOSEN, DIAGONAL, FAINT, FAULTS, LIMITS, Altered, Bench
from tests.test_trace import quiet, sampler_for, subject

PAGE = Path(__file__).parent.parent / "docs" / "faults.md"
MARKED = re.compile(r"(<!-- faults:begin -->\n)(.*?)(\n<!-- faults:end -->)", re.DOTALL)
NAMES = [f"healthy {adapter}" for adapter in ("flat", "faint")] + list(FAULTS)
Judge = Callable[[str], Verdict | None]
EVERY = measurement.every()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def bench(demo_arms: Arms, store: Cache) -> Bench:
    return faults.make(demo_arms, "int8", store)


@pytest.fixture(scope="module")
def verdict(bench: Bench, store: Cache) -> Judge:
    """The verdict on the healthy artifacts or on a fault of one of them, each traced once; None was refused."""

    @functools.cache
    def faint() -> Bench:
        return faults.make(adapted_by("faint"), "int4-g128", store)

    @functools.cache
    def judged(name: str) -> Verdict | None:
        if name not in FAULTS:
            return (bench if name.endswith("flat") else faint()).verdict()
        try:
            return FAULTS[name](faint() if name in FAINT else bench)
        except MismatchError:
            return None

    return judged


def _seen(verdict: Verdict | None, name: str, arm: Arm) -> Judged:
    assert verdict is not None
    return next(m for m in verdict.measurements if (m.name, m.arm) == (name, arm))


@pytest.mark.parametrize(("metric", "arm", "fault"), DIAGONAL, ids=lambda x: str(x).replace(" ", "-"))
def test_a_metric_fires_on_its_fault_and_not_on_healthy_artifacts(
    verdict: Judge, metric: str, arm: Arm, fault: str
) -> None:
    assert _seen(verdict(fault), metric, arm).status == "fail"
    for name in ("healthy flat", "healthy faint"):
        assert _seen(verdict(name), metric, arm).status != "fail"


GATED = {gate.name for gate in LIMITS.gates} | {"group_survival" for gate in LIMITS.gates if gate.each_group}
MOVED = [(name, fault) for name, defined in EVERY.items() if name not in GATED for fault in defined.faults]


def test_every_gate_fires_on_the_faults_that_its_definition_names() -> None:
    """``measurements.toml`` names them, ``DIAGONAL`` says of which arm."""
    assert {(name, fault) for name in GATED for fault in EVERY[name].faults} == {(m, f) for m, _, f in DIAGONAL}
    assert all(EVERY[name].faults for name in GATED)


@pytest.mark.parametrize(("metric", "fault"), MOVED, ids=lambda x: str(x).replace(" ", "-"))
def test_what_has_no_limit_moves_out_of_its_interval_on_its_fault(verdict: Judge, metric: str, fault: str) -> None:
    arm: Arm = "adapted" if "adapted" in EVERY[metric].arms else "both"
    healthy = _seen(verdict(f"healthy {'faint' if fault in FAINT else 'flat'}"), metric, arm)
    seen = _seen(verdict(fault), metric, arm)
    assert seen.low > healthy.high or seen.high < healthy.low  # type: ignore[operator]


SILENT = {"one NaN before a quantizer"}  # it becomes a code, as docs/faults.md says


@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in SILENT])
def test_a_fault_never_passes_unseen(verdict: Judge, fault: str) -> None:
    found = verdict(fault)
    assert found is None or found.outcome != "PASS" or found.warnings


def _cell(seen: Judged) -> str:
    value = "NaN" if seen.value != seen.value else f"{seen.value:.3g}"
    return {"fail": f"**{value}**", "undecided": f"{value}?"}.get(seen.status, value)


def _columns(found: Verdict, gated: bool) -> list[tuple[str, Arm]]:
    """Measurements of the adapted arm, and those of both where there is no other."""
    named = [(m.name, m.arm) for m in found.measurements if (m.limit is not None) == gated and m.arm != "base"]
    return [(name, arm) for name, arm in named if arm == "adapted" or (name, "adapted") not in named]


def _table(verdict: Judge, gated: bool) -> list[str]:
    healthy = verdict("healthy flat")
    assert healthy is not None
    columns = _columns(healthy, gated)
    lines = [["", *(name for name, _ in columns), "verdict"], ["---"] * (len(columns) + 2)]
    for name in NAMES:
        found = verdict(name)
        if found is None:
            lines.append([name, *[""] * len(columns), "refused: other probes"])
            continue
        outcome = found.outcome + (", warning" if found.warnings else "")
        lines.append([name, *(_cell(_seen(found, *column)) for column in columns), outcome])
    return ["| " + " | ".join(line) + " |" for line in lines]


def _over(table: str) -> list[list[bool]]:
    """Which cells of a table are beyond their limit."""
    return [["**" in cell for cell in row.split("|")] for row in table.splitlines()]


def test_the_page_has_a_row_for_every_fault_and_a_column_for_every_gate() -> None:
    found = MARKED.search(PAGE.read_text("utf-8"))
    assert found is not None
    gated, reported = found[2].split("\n\n")
    for part in (gated, reported):
        assert [row.split("|")[1].strip() for row in part.splitlines()[2:]] == NAMES
    assert set(re.findall(r"\w+", gated.splitlines()[0])) - {"verdict"} == GATED


def test_the_table_is_what_the_bench_gives(verdict: Judge) -> None:
    table = "\n\n".join("\n".join(_table(verdict, gated)) for gated in (True, False))
    text = PAGE.read_text("utf-8")
    if os.environ.get("QCHECK_WRITE_DOCS"):
        PAGE.write_text(MARKED.sub(lambda found: f"{found[1]}{table}{found[3]}", text), "utf-8")
    else:
        found = MARKED.search(text)
        assert found is not None
        assert _over(found[2]) == _over(table)


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
    sampling = sampler_for(demo_arms, bench.sampler.store.root, CHOSEN.model_copy(update={"seed": 41}), batch=8)
    other = sampling.reference(subject("seed", TorchRunner(bench.models["q1"])), quiet)
    with pytest.raises(MismatchError):
        bench.verdict(q1=other)


def test_a_shifted_timestep_of_the_artifact_is_caught(bench: Bench) -> None:
    late = Altered(TorchRunner(bench.models["q1"]), time=lambda t: max(t - 125, 0))
    found = bench.verdict(q1=bench.trace("shift1", late, "adapted"))
    assert found.outcome != "PASS"
    assert "ten times as strong" in " ".join(found.warnings)


def test_a_timestep_shifted_by_one_in_the_export_is_caught_by_the_control(bench: Bench) -> None:
    late = Altered(TorchRunner(bench.models["f1"]), time=lambda t: max(t - 1, 0))
    assert bench.verdict(exported=bench.trace("shift", late, "adapted")).outcome == "INVALID"


@pytest.mark.parametrize(("arm", "outcome"), [("q1", "NEEDS-QAT"), ("q0", "FAIL-RECIPE")])
def test_nan_in_one_layer_is_caught(bench: Bench, arm: str, outcome: str) -> None:
    bias = bench.models[arm].denoiser.get_submodule("conv_out").get_parameter("bias")
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
    loud = Altered(TorchRunner(bench.models["f1"]), output=lambda _, x: np.float32(factor) * x)
    name = f"loud {factor}"
    f1 = bench.sampler.reference(subject(name, loud), quiet)
    loud_bench = replace(bench, traces={"f1": f1, "exported": f1, "half": bench.traces["half"]})
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
