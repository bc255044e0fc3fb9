"""TensorRT through the program trtexec, whose traps a stand-in has."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcheck.device import built as engines
from qcheck.device import inspector, trtexec
from qcheck.device.bundle import Component
from qcheck.device.errors import CannotVerify
from qcheck.device.tensors import Tensor
from qcheck.device.trtexec import Program, Trtexec, build_by_trtexec
from tests.device.fakes import board as fakes
from tests.device.fakes import graph, model
from tests.device.fakes.board import FakeBoard


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], FakeBoard]:
    """A board that has trtexec alone."""

    def made(version: str) -> FakeBoard:
        board = FakeBoard(tmp_path / "board", version)
        fakes.trtexec(board.folder / "bin", version)
        monkeypatch.setenv("TRTEXEC", str(board.trtexec))
        return board

    return made


@pytest.fixture
def orin(use: Callable[[str], FakeBoard]) -> FakeBoard:
    return use("10.3.0")


@pytest.fixture
def component(tmp_path: Path) -> Component:
    return model.component(tmp_path)


def engine(board: FakeBoard, component: Component, **more: Any) -> Trtexec:
    """The runner on an engine as the stand-in writes it, without a build."""
    path = component.path.with_suffix(".engine")
    plan = {"onnx": str(component.path), "version": board.version, "detailed": True, "shapes": {}}
    path.write_text(json.dumps(plan), "utf-8")
    return Trtexec(path, component, Program(board.trtexec, board.version), **more)


def same_as_onnxruntime(outputs: dict[str, np.ndarray], component: Component) -> None:
    expected = graph.run(str(component.path), model.inputs())
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(outputs[name], values, strict=True)


@pytest.mark.parametrize(("version", "rows"), [("10.3.0", 2), ("10.16.2", None), ("11.1.0", 2)])
def test_every_release_builds_runs_times_and_inspects_the_same_file(
    version: str, rows: int | None, use: Callable[[str], FakeBoard], tmp_path: Path
) -> None:
    board, component = use(version), model.component(tmp_path, rows)
    program = trtexec.find()
    assert (program.path, program.version) == (board.trtexec, version)
    built = build_by_trtexec(model.job(component, tmp_path), program)
    assert (built.tensorrt, built.level, built.attempts) == (version, 3, ())
    assert (tmp_path / "timing.cache").exists()
    with Trtexec(built.engine, component, program) as runner:
        assert (runner.name, runner.deployed, runner.device_memory) == (f"TensorRT {version}", True, None)
        same_as_onnxruntime(runner(model.inputs()), component)
        assert runner.time(model.inputs(), runs=7) == [2.5] * 7
        found = inspector.precision(component.layers, component.compute, inspector.inspected(runner.inspect()))
    assert (found["status"], found["operands"]) == ("as asked", {"int8 x int8": 1})
    assert "--memPoolSize=workspace:384M" in board.calls[1]
    assert ("--stronglyTyped" in board.calls[1]) == (version < "11")
    again = build_by_trtexec(model.job(component, tmp_path), program)
    assert again == replace(built, reused=True)


def test_the_program_is_searched_in_the_variable_the_path_and_jetpacks_place(
    orin: FakeBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTEXEC", str(tmp_path / "gone"))
    with pytest.raises(CannotVerify, match=r"\$TRTEXEC names .*/gone, which cannot be run"):
        trtexec.find()
    monkeypatch.delenv("TRTEXEC")
    monkeypatch.setenv("PATH", str(orin.trtexec.parent))
    assert trtexec.find() == Program(orin.trtexec, "10.3.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotVerify, match=r"no trtexec: neither \$TRTEXEC nor PATH has it, and /usr/src/tensorrt"):
        trtexec.find()
    monkeypatch.setattr(trtexec, "PLACE", orin.trtexec)
    assert trtexec.find().version == "10.3.0"


def test_a_trtexec_without_strong_typing_or_without_a_version_is_refused(
    use: Callable[[str], FakeBoard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("8.6.1")
    with pytest.raises(CannotVerify, match=r"TensorRT 8\.6\.1 has no strong typing"):
        trtexec.find()
    monkeypatch.setenv("TRTEXEC", "/bin/echo")
    with pytest.raises(CannotVerify, match="/bin/echo does not say its version: "):
        trtexec.find()


def test_a_file_that_the_parser_refuses_is_not_tried_again(
    orin: FakeBoard, component: Component, tmp_path: Path
) -> None:
    orin.fail(refuse="conv")
    with pytest.raises(CannotVerify, match=r"TensorRT 10\.3\.0 refuses model\.onnx: .*Unsupported weight type INT4"):
        build_by_trtexec(model.job(component, tmp_path), trtexec.find())
    assert sum("--onnx" in call for call in orin.calls) == 1


def test_a_build_that_fails_is_tried_at_lower_levels_which_are_recorded(
    orin: FakeBoard, component: Component, tmp_path: Path
) -> None:
    orin.fail(crash_from=2)
    built = build_by_trtexec(model.job(component, tmp_path), trtexec.find())
    assert built.level == 1
    assert [level for level, _ in built.attempts] == [3, 2]
    assert all("ended with code 1: " in failure and "OutOfMemory" in failure for _, failure in built.attempts)


def test_inputs_of_twice_the_size_which_trtexec_reads_by_half_are_refused_here(
    orin: FakeBoard, component: Component
) -> None:
    wide = {**model.inputs(), "sample": model.inputs()["sample"].astype(np.float32)}
    with pytest.raises(CannotVerify) as failed:
        engine(orin, component)(wide)
    assert failed.value.problem == (
        "the input sample is float16[2, 4, 8, 8] of 1024 bytes, not float32[2, 4, 8, 8] of 2048 bytes"
    )
    assert orin.calls == []


def test_an_engine_of_half_the_width_does_not_read_half_of_the_bundles_inputs(
    orin: FakeBoard, component: Component
) -> None:
    wide = replace(component, inputs=(Tensor("sample", "float32", model.SHAPE), component.inputs[1]))
    given = {**model.inputs(), "sample": model.inputs()["sample"].astype(np.float32)}
    with pytest.raises(CannotVerify) as failed:
        engine(orin, wide)(given)  # the stand-in takes the file of twice the size, as trtexec does
    assert failed.value.problem == (
        "the engine of denoiser has the bindings sample.input.2.4.8.8.fp16.raw, "
        "and the bundle has sample.input.2.4.8.8.fp32.raw"
    )


def test_an_engine_with_other_outputs_is_refused_naming_both(orin: FakeBoard, component: Component) -> None:
    orin.fail(types={"out/eps:0": "FLOAT"})
    with pytest.raises(CannotVerify) as failed:
        engine(orin, component)(model.inputs())
    assert failed.value.problem == (
        "the engine of denoiser has the bindings out_eps_0.output.2.4.8.8.fp32.raw, "
        "and the bundle has out_eps_0.output.2.4.8.8.fp16.raw"
    )


def test_raw_outputs_keep_every_bit_and_nan(orin: FakeBoard, component: Component) -> None:
    orin.fail(nan=True)
    assert np.isnan(engine(orin, component)(model.inputs())["out/eps:0"]).all()


def test_from_11_on_outputs_are_those_of_the_run(use: Callable[[str], FakeBoard], component: Component) -> None:
    thor = use("11.1.0")
    same_as_onnxruntime(engine(thor, component)(model.inputs()), component)
    assert "--includeDataTransfers" in thor.calls[-1]


def test_time_is_that_of_the_gpu_without_copies_and_waiting(orin: FakeBoard, component: Component) -> None:
    orin.fail(compute_ms=8.0)
    times = engine(orin, component).time(model.inputs(), warmups=10, runs=100, seconds=0.1)
    assert times == [8.0] * 12  # as many as fit 0.1 s
    assert "--iterations=12 --warmUp=80 --duration=0" in orin.calls[-1]
    orin.fail(compute_ms=2000.0)
    assert len(engine(orin, component).time(model.inputs(), seconds=1.0)) == 1
    assert "--iterations=1 --warmUp=5000" in orin.calls[-1]


def test_from_11_on_time_is_measured_as_by_the_bindings(use: Callable[[str], FakeBoard], component: Component) -> None:
    thor = use("11.1.0")
    engine(thor, component).time(model.inputs(), runs=1)
    assert "--noCudaGraph" in thor.calls[-1]


def test_a_run_that_hangs_or_fails_is_told_with_its_last_words(orin: FakeBoard, component: Component) -> None:
    orin.fail(run_seconds=60)
    with pytest.raises(CannotVerify, match="trtexec took more than 3 s") as failed:
        engine(orin, component, limit=3.0)(model.inputs())
    assert failed.value.fix.startswith(f"Run it by hand to see more: {orin.trtexec} --loadEngine=")
    with pytest.raises(CannotVerify, match=r"trtexec ended with code 1: .*Unknown option: --noSuchOption"):
        engine(orin, component)._checked(component.path.parent, "--noSuchOption")


def test_names_of_raw_files_are_those_of_trtexecs_source() -> None:
    named = Tensor("a/b:0 é-,.x", "bfloat16", (1, 77))
    assert trtexec.raw_name("output", named) == "a_b_0___-,.x.output.1.77.bf16.raw"
    assert trtexec.raw_name("input", Tensor("t", "int64", ())) == "t.input..int64.raw"


def test_the_last_words_of_a_log_are_its_errors() -> None:
    log = "[I] a\n[E] first\n[I] b\n\n[E] second\n&&&& FAILED"
    assert engines.last_words(log) == "[E] first / [E] second"
    assert engines.last_words("a\nb\nc\nd\n") == "b / c / d"
    assert engines.last_words("") == ""


def test_the_stand_in_writes_json_outputs_as_badly_as_trtexec(orin: FakeBoard, component: Component) -> None:
    orin.fail(nan=True)
    runner = engine(orin, component)
    folder = component.path.parent
    for index, values in enumerate(model.inputs().values()):
        values.tofile(folder / f"{index}.bin")
    options = ["--loadInputs=sample:0.bin,timestep:1.bin", "--exportOutput=out.json", "--iterations=1"]
    command = [str(orin.trtexec), f"--loadEngine={runner._path}", *options]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    assert "nan, nan" in (folder / "out.json").read_text("utf-8")
