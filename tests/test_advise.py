"""Remedies in order of cost, each a request of its own; results that are found again; a command that says the same."""

import io
import json
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from rich.console import Console
from safetensors import safe_open

from qcheck.api.request import check_spec
from qcheck.cli import advise as cli
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress, Silent
from qcheck.demo import library
from qcheck.result import store as stored
from qcheck.result.advice import Advice
from qcheck.result.report import Report
from qcheck.result.verdict import Outcome
from qcheck.spec import command, recipe, scheme, target
from qcheck.spec.check import CheckSpec
from qcheck.spec.order import Order
from qcheck.tasks import advise, remedies
from qcheck.tasks import check as task
from qcheck.tasks.remedies import FailingCase
from tests import reports
from tests.conftest import Finished, run


def _spec(named: str, order: Order = "quantize-merge") -> CheckSpec:
    """A case of the demo's faint adapter on a device that runs every scheme."""
    return check_spec(library.NAME, "faint", scheme=named, order=order, target="jetson-thor-t5000", max_probes=16)


def test_a_file_of_ranges_goes_with_its_scheme_and_its_method_alone() -> None:
    """A remedy that keeps the file would be refused, and all advice with it."""
    spec = _spec("int8").changed(ranges="ranges.json")
    for remedy in remedies.remedies(FailingCase(spec, "NEEDS-QAT", lambda _: True, lambda _: [("conv_a",)])):
        assert remedy.spec is not None
        same = remedy.spec.schemes == spec.schemes and remedy.spec.recipe.method == spec.recipe.method
        assert (remedy.spec.ranges is not None) == same, remedy.title


def _kinds(named: str, verdict: Outcome, order: Order = "quantize-merge") -> list[str]:
    ill = FailingCase(_spec(named, order), verdict, lambda _: True, lambda _: [("conv_a",), ("conv_a", "conv_b")])
    return list(dict.fromkeys(found.kind for found in remedies.remedies(ill)))


def test_remedies_come_in_order_of_cost() -> None:
    assert _kinds("int4-g128", "NEEDS-QAT") == ["order", "group", "smoothing", "mixed precision", "scheme", "qat"]
    assert _kinds("int8", "NEEDS-QAT")[:2] == ["order", "ranges"]


@pytest.mark.parametrize("named", ["int4-g128", "nvfp4"])
def test_wider_schemes_are_tried_from_the_smallest(named: str) -> None:
    failing = FailingCase(_spec(named), "NEEDS-QAT", lambda _: True, remedies.no_keeps)
    every = [remedies.bits(remedy.spec.schemes[0]) for remedy in remedies.wider_schemes(failing) if remedy.spec]
    assert len(every) > 1
    assert every == sorted(every)
    assert every[0] > remedies.bits(failing.scheme)


def test_the_base_s_own_failure_is_not_cured_by_the_order_or_by_training_the_adapter() -> None:
    assert not {"order", "qat"} & set(_kinds("int4-g128", "FAIL-RECIPE"))


def test_an_adapter_that_is_broken_at_full_precision_is_retrained_and_told_why() -> None:
    (found,) = remedies.remedies(FailingCase(_spec("int8"), "FAIL-ADAPTER", lambda _: True, remedies.no_keeps))
    assert found.spec is None
    assert "QAT would teach" in found.why


def test_an_open_verdict_gets_all_probes_first() -> None:
    first = next(remedies.remedies(FailingCase(_spec("int8"), "INCONCLUSIVE", lambda _: True, remedies.no_keeps)))
    assert first.kind == "probes"
    assert first.spec is not None
    assert first.spec.bounds.looks[-1] == 64


def test_what_is_not_installed_or_not_run_by_the_target_is_not_offered() -> None:
    spec = _spec("int4-g128").changed(target=target.find("jetson-agx-orin-64gb"))
    found = [
        r.title for r in remedies.remedies(FailingCase(spec, "NEEDS-QAT", lambda s: not s.needs, remedies.no_keeps))
    ]
    assert "scheme int8" in found
    assert not {"scheme fp8", "scheme int4-awq", "scheme int4-g128-int8"} & set(found)


def test_kept_layers_join_those_that_the_recipe_keeps() -> None:
    ill = FailingCase(_spec("int8"), "NEEDS-QAT", lambda _: False, lambda _: [("mid_block.x",)])
    (found,) = remedies.kept_layers(ill)
    assert found.spec is not None
    assert found.spec.recipe.keep == (*ill.spec.recipe.keep, "mid_block.x")


def test_a_written_recipe_is_read_back(tmp_path: Path) -> None:
    changed = {
        "name": "mine",
        "method": "percentile",
        "percentile": 99.9,
        "title": 'Two "kept" layers',
        "keep": ("a.b",),
    }
    held = recipe.find("emoji").model_copy(update=changed)
    (tmp_path / "mine.toml").write_text(command.text(held))
    assert recipe.find(str(tmp_path / "mine.toml")) == held


def _failing(finished: Finished, folder: Path) -> Path:
    """The session's report as if its case had not passed."""
    report = json.loads((finished.folder / "report.json").read_text())
    report["cases"][0]["verdict"] = "NEEDS-QAT"
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_a_report_gives_the_request_that_made_it(finished: Finished, tmp_path: Path) -> None:
    report = stored.read(_failing(finished, tmp_path))
    ((case, spec),) = advise.requests(report)
    assert (case, spec) == (report.cases[0], report.spec)
    assert not list(advise.requests(stored.read(finished.folder)))


def test_the_predicted_size_is_that_of_the_tensors(finished: Finished) -> None:
    predicted = advise.predicted_bytes(str(library.PIPELINE), scheme.find("int8"), recipe.find("emoji"))
    assert predicted == pytest.approx(finished.report["cases"][0]["artifact"][0]["bytes"], rel=0.2)
    with safe_open(library.PIPELINE / "unet" / "diffusion_pytorch_model.safetensors", "pt") as stream:
        total = sum(stream.get_tensor(name).numel() for name in stream.keys())  # noqa: SIM118
    bare = scheme.find("fp16")
    assert advise.predicted_bytes(str(library.PIPELINE), bare, recipe.find("emoji")) == 2 * total


def test_layers_are_kept_where_they_save_most_within_what_weights_may_grow(finished: Finished, tmp_path: Path) -> None:
    report = stored.read(_failing(finished, tmp_path))
    ((case, spec),) = advise.requests(report)
    sizes = advise.tensors(spec.base, spec.schemes[0], spec.recipe)
    whole = sum(size.stored for size in sizes.values() if size.quantized)
    shares = {one.name: one.share for one in case.layers}
    grown, kept = [], []
    for layers in advise.choices_to_keep(case, spec):
        held = [sizes[f"{layer}.weight"] for layer in layers]
        grown.append(sum(size.wide - size.stored for size in held) / whole)
        kept.append(sum(shares[layer] for layer in layers))
    assert grown == sorted(grown)
    assert kept == sorted(kept)
    assert 0 < grown[0] <= grown[-1] <= 0.4
    assert kept[0] > 0.3  # a few small layers carry most of this gap
    full = case.model_copy(update={"estimate": case.estimate.model_copy(update={"memory_gb": 0.0})})  # type: ignore[union-attr]
    assert not list(advise.choices_to_keep(full, spec))


def test_the_room_for_wider_layers_is_what_the_estimate_leaves_of_the_memory() -> None:
    sizes = {"denoiser_mb": 300.0, "others_mb": 150.0, "activations_mb": 50.0, "call_ms": None, "bound": None}
    for memory, room in ((2.0, 1.5e9), (0.4, 0.0), (None, float("inf"))):
        case = reports.report(reports.case(estimate={**sizes, "memory_gb": memory, "missing": "no number"})).cases[0]
        assert advise._room(case) == room


def test_advice_stops_at_the_first_cure_and_is_found_again(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the check itself: an interrupted advice costs only what it had not finished."""
    (tmp_path / "given").mkdir()
    failing, asked = _failing(finished, tmp_path / "given"), list[str]()

    def check(spec: CheckSpec, folder: Path, cache: Cache, progress: Progress) -> Report:
        asked.append(f"{spec.orders[0]} {spec.recipe.method}")
        if len(asked) == 2:
            raise KeyboardInterrupt
        report = stored.read(finished.folder)
        verdict: Outcome = "PASS" if spec.recipe.method == "percentile" else "NEEDS-QAT"
        (case,) = report.cases
        return report.model_copy(update={"cases": [case.model_copy(update={"verdict": verdict})]})

    monkeypatch.setattr(task, "check", check)
    out, kept, report = tmp_path / "out", Cache(tmp_path / "kept"), stored.read(failing)
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        advise.advise(report, "mine", out, kept, Silent())
    found = advise.advise(report, "mine", out, kept, Silent())
    assert asked == ["unmerged max", "merge-quantize mse", "merge-quantize mse", "merge-quantize percentile"]
    (case,) = found.cases
    assert case.cure is not None
    cure = case.tried[case.cure]
    assert (cure.title, cure.verdict) == ("ranges by percentile", "PASS")
    assert [tried.verdict for tried in case.tried[case.cure + 1 :]] == [None] * (len(case.tried) - case.cure - 1)
    words = shlex.split(cure.command)
    assert words[:2] == ["qcheck", "check"]
    assert recipe.find(str(out / words[words.index("--recipe") + 1])).method == "percentile"
    assert found.cured
    assert json.loads((out / "advice.json").read_text())["schema"] == "qcheck-advice/1"


def test_no_cure_is_exit_1_and_a_list_alone_is_0(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "given").mkdir()
    failing = str(_failing(finished, tmp_path / "given"))
    monkeypatch.setattr(remedies, "KINDS", (remedies.other_orders,))
    monkeypatch.setattr(task, "check", lambda *_: stored.read(Path(failing)))
    assert run("advise", failing, "--dry-run", "--out", str(tmp_path / "listed")).exit_code == 0
    result = run("advise", failing, "--out", str(tmp_path / "tried"))
    assert result.exit_code == 1
    assert "no cure passed" in result.output


def _shown(advice: Advice, out: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    cli._render(advice, out, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def _advice(**changed: object) -> Advice:
    attempt = {"kind": "order", "title": "order unmerged", "why": "", "predicted_bytes": 7, "predicted_survival": 0.98}
    case = {"scheme": "int8", "order": "quantize-merge", "verdict": "NEEDS-QAT", "tried": [attempt | changed]}
    cure = 0 if changed else None
    return Advice.model_validate(
        {"schema": "qcheck-advice/1", "report": "", "ran": True, "cases": [case | {"cure": cure}]}
    )


def test_a_forecast_is_never_shown_as_a_measurement(tmp_path: Path) -> None:
    """What weights alone predict stands in a column that says so."""
    shown = _shown(_advice(survival=1.03, bytes=8_000_000, verdict="PASS"), tmp_path).splitlines()
    titles, below, row = (
        next(re.split("[│┃]", line) for line in shown if text in line)
        for text in ("forecast", "artifact file", "order unmerged")
    )
    columns = [f"{a.strip()} {b.strip()}".strip() for a, b in zip(titles, below, strict=True)]
    assert row[columns.index("forecast survival")].strip() == "0.98"
    assert [cell.strip() for cell, title in zip(row, columns, strict=True) if title == "survival"] == ["1.03"]


def test_a_cure_is_settings_a_report_and_an_export(tmp_path: Path) -> None:
    """Paths in the advice's folder are as the current one names them, names stay."""
    (tmp_path / "new.safetensors").touch()
    settings = {"base": "demo", "lora": "new.safetensors", "scheme": ["int8", "fp8"], "weight": 0.5}
    made = _advice(verdict="PASS", command="qcheck check demo", export="qcheck export demo", settings=settings)
    shown = _shown(made, tmp_path)
    table = tomllib.loads(shown[shown.index("[check]") : shown.index("check it again")])["check"]
    assert table == settings | {"lora": str(tmp_path / "new.safetensors")}
    assert f"cd {tmp_path} && qcheck check demo --out int8-quantize-merge-cured" in shown
    assert f"qcheck audit {tmp_path}/int8-quantize-merge-cured" in shown


def test_what_is_no_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report\.json"):
        stored.read(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="is not of qcheck-report/2"):
        stored.read(tmp_path)


@pytest.mark.slow
def test_killed_advice_goes_on_with_what_it_had_not_finished(
    finished: Finished, cache_root: Path, tmp_path: Path
) -> None:
    """A real check of a real measure, killed as soon as it has traced something."""
    (tmp_path / "given").mkdir()
    failing, store = _failing(finished, tmp_path / "given"), cache_root / "qcheck"
    words = [sys.executable, "-m", "qcheck", "advise", str(failing), "--threads", "1"]

    def traces() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in store.glob("trace/[!.]*/probe.safetensors")}

    before = traces()
    with subprocess.Popen([*words, "--out", str(tmp_path / "killed")], stderr=subprocess.DEVNULL) as running:
        while len(traces()) == len(before) and running.poll() is None:
            time.sleep(0.01)
        running.kill()
    assert running.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    left = traces()
    result = run(*words[3:], "--out", str(tmp_path / "whole"))
    assert result.exit_code == 0, result.output
    assert "cure: order unmerged" in result.output
    assert {path: when for path, when in traces().items() if path in left} == left
    assert len(traces()) > len(left) > len(before)
