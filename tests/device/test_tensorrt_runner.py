"""TensorRT's bindings in four faces: engines are built in a child process, run, timed and inspected."""

import json
import os
import subprocess
import sys
import zipapp
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcheck.device import built as engines
from qcheck.device import cudart, inspector, tensorrt_engine
from qcheck.device.built import Built, Job
from qcheck.device.bundle import Component
from qcheck.device.errors import CannotVerify
from qcheck.device.tensorrt_engine import Engine, bindings, build_in_child
from qcheck.device.tensors import TYPES, Tensor
from tests import builder
from tests.device.fakes import board as fakes
from tests.device.fakes import graph, model
from tests.device.fakes.board import FakeBoard

pytestmark = fakes.needs_compiler

CHILD = """
import sys
from pathlib import Path
from qcheck.device.tensorrt_engine import answer
answer(Path(sys.argv[2]))
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    path = tmp_path / "child.py"
    path.write_text(CHILD, "utf-8")
    return [str(path)]


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], FakeBoard]:
    def made(version: str) -> FakeBoard:
        board = fakes.make(tmp_path / "board", version)
        board.use(monkeypatch)
        return board

    return made


@pytest.fixture
def orin(use: Callable[[str], FakeBoard]) -> FakeBoard:
    return use("10.3.0")


@pytest.fixture
def component(tmp_path: Path) -> Component:
    return model.component(tmp_path)


def planned(component: Component, path: Path) -> Path:
    """An engine as the fake builder writes it, without a child process."""
    plan = {"onnx": str(component.path), "version": bindings().__version__, "detailed": True, "shapes": {}}
    path.write_text(json.dumps(plan), "utf-8")
    return path


@pytest.fixture
def engine(orin: FakeBoard, component: Component, tmp_path: Path) -> Engine:
    return Engine(planned(component, tmp_path / "a.engine"), component, bindings(), cudart.find())


def same_as_onnxruntime(outputs: dict[str, np.ndarray], component: Component) -> None:
    expected = graph.run(str(component.path), model.inputs())
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(outputs[name], values, strict=True)


@pytest.mark.parametrize("version", ["10.3.0", "10.16.2", "11.1.0"])
@pytest.mark.parametrize("rows", [2, None], ids=["fixed", "open"])
def test_every_face_builds_runs_times_and_inspects_the_same_file(
    version: str, rows: int | None, use: Callable[[str], FakeBoard], tmp_path: Path, program: list[str]
) -> None:
    board, component = use(version), model.component(tmp_path, rows)
    built = build_in_child(model.job(component, tmp_path), program)
    assert (built.tensorrt, built.level, built.attempts, built.reused) == (version, 3, (), False)
    assert built.bytes == built.engine.stat().st_size > 0
    assert built.peak_bytes is not None
    assert built.peak_bytes > 10_000_000
    (seen,) = board.seen
    assert seen["flags"] == 2  # strongly typed
    assert seen["pools"] == {"WORKSPACE": 3 << 27}
    assert seen["oom_score_adj"] == "1000"
    assert seen["shapes"] == ({} if rows else {"sample": [2, 4, 8, 8], "timestep": [2]})
    with Engine(built.engine, component, bindings(), cudart.find()) as engine:
        same_as_onnxruntime(engine(model.inputs()), component)
        assert (engine.name, engine.deployed, engine.device_memory) == (f"TensorRT {version}", True, 1 << 20)
        times = engine.time(model.inputs(), warmups=1, runs=3)
        assert len(times) == 3
        assert all(0 < time < 10_000 for time in times)
        found = inspector.precision(component.layers, component.compute, inspector.inspected(engine.inspect()))
    assert found == {
        "status": "as asked",
        "layers": 1,
        "products": 1,
        "operands": {"int8 x int8": 1},
        "fell_back": [],
        "unread": [],
    }


def test_jetpack_5_is_refused_with_the_release_that_is_needed(use: Callable[[str], FakeBoard]) -> None:
    use("8.6.1")
    with pytest.raises(CannotVerify, match=r"TensorRT 8\.6\.1 has no strong typing") as refused:
        bindings()
    assert refused.value.fix == "Update the board to JetPack 6 or later (TensorRT 10.3)."


def test_a_python_without_tensorrt_is_told_which_python_has_it(
    orin: FakeBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(CannotVerify, match="this Python has no TensorRT: import of tensorrt halted") as failed:
        bindings()
    assert failed.value.fix.startswith("Run with /usr/bin/python3, to which JetPack's TensorRT belongs: this is /")
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    with pytest.raises(CannotVerify) as failed:
        bindings()
    assert failed.value.fix == "Install it: sudo apt install python3-libnvinfer."


def test_a_container_without_the_boards_library_is_told_how_to_start_it(orin: FakeBoard) -> None:
    package = orin.site / "tensorrt" / "__init__.py"
    package.write_text('raise ImportError("libnvdla_compiler.so: cannot open shared object file")\n', "utf-8")
    with pytest.raises(CannotVerify, match="libnvdla_compiler") as failed:
        bindings()
    assert "--runtime nvidia" in failed.value.fix


def test_the_copy_of_tensorrt_that_is_used_and_the_one_beside_it_are_told(
    orin: FakeBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.tensorrt(tmp_path / "pip", "10.16.2", tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "pip")])
    assert tensorrt_engine.origin(bindings()) == {
        "version": "10.3.0",
        "file": str(orin.site / "tensorrt" / "__init__.py"),
        "unused": [str(tmp_path / "pip" / "tensorrt" / "__init__.py")],
    }


def test_a_file_that_the_parser_refuses_is_not_tried_again(
    orin: FakeBoard, component: Component, tmp_path: Path, program: list[str]
) -> None:
    orin.fail(refuse="conv")
    with pytest.raises(CannotVerify, match=r"TensorRT 10\.3\.0 refuses model\.onnx: Conv conv: Unsupported weight"):
        build_in_child(model.job(component, tmp_path), program)
    assert orin.seen == []
    orin.fail()
    with pytest.raises(CannotVerify, match=r"refuses no\.onnx: Could not open file .*/no\.onnx"):
        build_in_child(model.job(component, tmp_path, onnx=tmp_path / "no.onnx"), program)


def test_a_builder_that_is_killed_is_tried_at_lower_levels_which_are_recorded(
    orin: FakeBoard, component: Component, tmp_path: Path, program: list[str]
) -> None:
    orin.fail(kill_from=2)
    built = build_in_child(model.job(component, tmp_path), program)
    assert built.level == 1
    assert [level for level, _ in built.attempts] == [3, 2]
    assert all("was killed by signal 9, probably out of memory, at 0." in failure for _, failure in built.attempts)
    assert [seen["level"] for seen in orin.seen] == [3, 2, 1]
    assert built.to_json()["attempts"][0][0] == 3


def test_where_every_level_fails_the_last_words_are_told(
    orin: FakeBoard, component: Component, tmp_path: Path, program: list[str]
) -> None:
    orin.fail(crash_from=1, no_plan_from=0)
    asked = model.job(component, tmp_path, level=1)
    with pytest.raises(CannotVerify) as failed:
        build_in_child(asked, program)
    assert failed.value.problem == (
        "TensorRT 10.3.0 built no engine from model.onnx at the optimization levels 1, 0; the last attempt wrote no "
        "engine: Error Code 10: Could not find any implementation for node conv"
    )
    assert "Free memory" in failed.value.fix
    assert list(asked.engine.parent.iterdir()) == []


def test_a_builder_that_crashes_or_hangs_is_told_by_its_last_words(
    orin: FakeBoard, component: Component, tmp_path: Path, program: list[str]
) -> None:
    orin.fail(crash_from=0)
    with pytest.raises(CannotVerify, match=r"ended with code 3: .*std::bad_alloc"):
        build_in_child(model.job(component, tmp_path, level=0), program)
    orin.fail(build_seconds=60)
    with pytest.raises(CannotVerify, match=r"the last attempt took more than 1 s"):
        build_in_child(model.job(component, tmp_path, level=0, limit=1.0), program)
    silent = tmp_path / "silent.py"
    silent.write_text("", "utf-8")
    with pytest.raises(CannotVerify, match="ended without an answer"):
        build_in_child(model.job(component, tmp_path, level=0), [str(silent)])


ROWS = {"inputs": (Tensor("sample", "float16", (1, 4, 8, 8)),)}
CHANGES: list[dict[str, Any]] = [{"digest": "d2"}, {"board": "AGX Orin"}, {"mode": "MAXN"}, {"level": 2}, ROWS]


def test_an_engine_is_taken_again_only_for_the_same_file_board_mode_and_level(tmp_path: Path) -> None:
    asked = Job(tmp_path / "m", "d1", (), tmp_path / "engine", tmp_path / "cache", 1, "Orin", "15W")
    levels: list[int] = []

    def attempt(level: int) -> engines.Tried:
        levels.append(level)
        asked.partial.write_bytes(b"plan")
        return engines.Tried("ended with code 1" if level == 3 else "", seconds=2.0, peak_bytes=5)

    def build(asked: Job, version: str = "10.3.0") -> Built:
        levels.clear()
        return engines.build(asked, version, attempt)

    first = build(asked)
    again = build(asked)
    assert (again, levels) == (replace(first, reused=True), [])
    assert again.attempts == ((3, "ended with code 1"),)
    for change in CHANGES:
        assert not build(replace(asked, **change)).reused
        assert not build(asked).reused
    assert not build(asked, "10.16.2").reused
    assert not build(asked).reused
    asked.engine.write_bytes(b"flaw")  # as large as what was built: a board that lost power
    assert not build(asked).reused
    for written in ("{", "[]", '{"first_level": 3, "attempts": [], "of": "another version"}'):
        asked.record.write_text(written, "utf-8")
        assert not build(asked).reused


def test_the_memory_is_looked_at_only_before_an_engine_is_built(tmp_path: Path) -> None:
    """A record of another release of TensorRT is no engine to take."""
    asked = Job(tmp_path / "m", "d1", (), tmp_path / "engine", tmp_path / "cache", 1, "Orin", "15W")

    def attempt(_: int) -> engines.Tried:
        asked.partial.write_bytes(b"plan")
        return engines.Tried()

    def refuse() -> None:
        raise CannotVerify("too little memory", "free some")

    engines.build(asked, "10.3.0", attempt)
    full = replace(asked, preflight=refuse)
    assert engines.build(full, "10.3.0", attempt).reused
    with pytest.raises(CannotVerify, match="too little memory"):
        engines.build(full, "10.16.2", attempt)


def test_half_an_engine_is_never_taken_for_one_and_never_left(tmp_path: Path) -> None:
    asked = Job(tmp_path / "m", "d1", (), tmp_path / "engine", tmp_path / "cache", 1, "Orin", "15W", level=1)
    asked.partial.write_bytes(b"of an earlier day")

    def attempt(level: int) -> engines.Tried:
        assert not asked.partial.exists()
        asked.partial.write_bytes(b"half")
        return engines.Tried(f"ended with code {level}")

    with pytest.raises(CannotVerify, match=r"levels 1, 0; the last attempt ended with code 0"):
        engines.build(asked, "10.3.0", attempt)
    assert list(tmp_path.iterdir()) == []


def test_timings_are_kept_whole_and_those_of_another_release_are_left_out(
    orin: FakeBoard, component: Component, tmp_path: Path, program: list[str]
) -> None:
    asked = model.job(component, tmp_path)
    asked.timing_cache.write_bytes(b"timings of another release")
    assert build_in_child(asked, program).attempts == ()
    assert asked.timing_cache.read_bytes() == b"timings of 10.3.0"
    assert [path.name for path in tmp_path.glob("timing*")] == ["timing.cache"]


def test_an_engine_of_another_release_is_told_with_the_folder_to_remove(
    orin: FakeBoard, component: Component, tmp_path: Path
) -> None:
    (tmp_path / "a.engine").write_text(json.dumps({"version": "10.16.2"}), "utf-8")
    with pytest.raises(CannotVerify) as failed:
        Engine(tmp_path / "a.engine", component, bindings(), cudart.find())
    assert failed.value.problem == ("TensorRT 10.3.0 cannot load a.engine: Version tag does not match: current 10.3.0")
    assert failed.value.fix == f"Remove {tmp_path} and verify again."


def test_a_board_without_memory_to_run_an_engine_says_so(
    orin: FakeBoard, component: Component, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = planned(component, tmp_path / "a.engine")
    orin.fail(no_context=True)
    with pytest.raises(CannotVerify, match=r"TensorRT 10\.3\.0 has no memory to run a\.engine"):
        Engine(path, component, bindings(), cudart.find())
    orin.fail()
    monkeypatch.setenv("FAKE_CUDA_ERROR", "2")
    with pytest.raises(CannotVerify, match=r"cudaMalloc: out of memory \(CUDA error 2\)") as failed:
        Engine(path, component, bindings(), cudart.find())
    assert failed.value.fix.startswith("Free memory")


@pytest.mark.parametrize(
    ("kind", "told"),
    [("FLOAT", "float32"), ("BF16", "bfloat16"), ("INT8", "int8")],
)
def test_an_engine_whose_types_are_not_the_bundles_is_refused_naming_both(
    kind: str, told: str, orin: FakeBoard, component: Component, tmp_path: Path
) -> None:
    path = planned(component, tmp_path / "a.engine")
    orin.fail(types={"sample": kind})
    with pytest.raises(CannotVerify) as failed:
        Engine(path, component, bindings(), cudart.find())
    assert failed.value.problem == (
        f"the engine of denoiser has the bindings input sample {told}[2, 4, 8, 8], "
        "and the bundle has input sample float16[2, 4, 8, 8]"
    )


def test_an_engine_with_other_names_or_shapes_is_refused_naming_both(
    orin: FakeBoard, component: Component, tmp_path: Path
) -> None:
    path = planned(component, tmp_path / "a.engine")
    renamed = replace(component, inputs=(component.inputs[0], Tensor("t", "float32", (2,))))
    with pytest.raises(CannotVerify, match=r"bindings input timestep float32\[2\], .* input t float32\[2\]"):
        Engine(path, renamed, bindings(), cudart.find())
    larger = replace(component, outputs=(Tensor("out/eps:0", "float16", (2, 4, 8, 9)),))
    with pytest.raises(CannotVerify, match=r"out/eps:0 float16\[2, 4, 8, 8\], .*out/eps:0 float16\[2, 4, 8, 9\]"):
        Engine(path, larger, bindings(), cudart.find())


def test_inputs_that_do_not_fit_are_refused_with_both_sizes(engine: Engine) -> None:
    wide = {**model.inputs(), "sample": model.inputs()["sample"].astype(np.float32)}
    with pytest.raises(CannotVerify) as failed:
        engine(wide)
    assert failed.value.problem == (
        "the input sample is float16[2, 4, 8, 8] of 1024 bytes, not float32[2, 4, 8, 8] of 2048 bytes"
    )
    with pytest.raises(CannotVerify, match=r"the input timestep is .* not nothing"):
        engine({"sample": model.inputs()["sample"]})


def test_outputs_that_arrive_late_are_waited_for(engine: Engine, orin: FakeBoard, component: Component) -> None:
    orin.fail(late=True)
    same_as_onnxruntime(engine(model.inputs()), component)


def test_outputs_that_are_not_written_are_nan_and_never_those_of_the_call_before(
    engine: Engine, orin: FakeBoard
) -> None:
    assert np.isfinite(engine(model.inputs())["out/eps:0"]).all()
    orin.fail(silent=True)
    assert np.isnan(engine(model.inputs())["out/eps:0"]).all()


def test_nan_stays_nan(engine: Engine, orin: FakeBoard) -> None:
    orin.fail(nan=True)
    assert np.isnan(engine(model.inputs())["out/eps:0"]).all()


def test_every_type_of_a_binding_starts_as_set_bits() -> None:
    for name in TYPES:
        for shape in ((2, 3), ()):
            unwritten = tensorrt_engine._unwritten(Tensor("x", name, shape))
            assert unwritten.shape == shape
            assert unwritten.tobytes() == b"\xff" * Tensor("x", name, shape).bytes


def test_an_engine_that_cannot_be_run_says_what_tensorrt_said(engine: Engine, orin: FakeBoard) -> None:
    orin.fail(fails=True)
    with pytest.raises(CannotVerify, match=r"TensorRT 10\.3\.0 cannot run denoiser: .*illegal memory access"):
        engine(model.inputs())


def test_timing_stops_at_its_limit_and_runs_once_at_least(engine: Engine, orin: FakeBoard) -> None:
    assert len(engine.time(model.inputs(), warmups=1, runs=100, seconds=0.0)) == 1
    assert len(engine.time(model.inputs(), warmups=2, runs=4)) == 4


def test_what_an_engine_took_is_given_back(engine: Engine, component: Component, tmp_path: Path) -> None:
    library = engine._cuda._library
    before = library.fake_allocations()
    engine.close()
    assert library.fake_allocations() == before - 6  # two inputs, an output, two events and a stream
    engine.close()
    larger = replace(component, outputs=(Tensor("out/eps:0", "float16", (2, 4, 8, 9)),))
    with pytest.raises(CannotVerify):
        Engine(tmp_path / "a.engine", larger, bindings(), cudart.find())
    assert library.fake_allocations() == before - 6


def test_the_size_of_device_memory_is_none_where_tensorrt_does_not_say(engine: Engine) -> None:
    class Old:
        device_memory_size = 7

    engine._engine = Old()
    assert engine.device_memory == 7
    engine._engine = object()
    assert engine.device_memory is None


def test_the_cuda_runtime_copies_and_tells_the_gpu_and_its_errors(
    orin: FakeBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = cudart.find()
    assert (cuda.capability, cuda.integrated) == ("8.7", True)
    address = cuda.malloc(16)
    there = np.arange(16, dtype=np.uint8)
    back = np.zeros(16, np.uint8)
    cuda.to_device(address, there)
    cuda.to_host(back, address)
    cuda.free(address)
    np.testing.assert_array_equal(back, there)
    with pytest.raises(CannotVerify, match=r"cudaDeviceGetAttribute: invalid argument \(CUDA error 1\)"):
        cuda.attribute(9999)
    monkeypatch.setenv("FAKE_CUDA_ERROR", "35")
    with pytest.raises(CannotVerify, match=r"cudaMalloc: CUDA driver version is insufficient \(CUDA error 35\)"):
        cuda.malloc(1)


def test_addresses_above_4_gib_are_not_cut(orin: FakeBoard) -> None:
    cuda = cudart.find()
    assert {name for name in cudart._SIGNATURES if getattr(cuda._library, name).argtypes is None} == set()
    address = cuda.malloc(1 << 20)  # far from the heap of small blocks, as on every 64-bit Linux
    assert address > 1 << 32
    cuda.free(address)


def test_a_machine_without_the_cuda_runtime_is_told_where_it_was_searched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(CannotVerify) as failed:
        cudart.find([f"{tmp_path}/cuda*/lib64"])
    assert failed.value.problem == (
        "no CUDA runtime (libcudart.so*) can be loaded; searched LD_LIBRARY_PATH, the linker's cache, "
        f"{tmp_path}/cuda*/lib64"
    )
    fakes.cudart(tmp_path / "cuda-12.6" / "lib64")
    assert cudart.find([f"{tmp_path}/cuda*/lib64"]).capability == "8.7"
    other = tmp_path / "lib"
    other.mkdir()
    (other / "libcudart.so.12").write_bytes(b"no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(other))
    with pytest.raises(CannotVerify, match=r"invalid ELF header|file too short"):
        cudart.find([])


def precision_of(orin: FakeBoard, engine: Engine, component: Component, **faults: Any) -> dict[str, Any]:
    orin.fail(**faults)
    return inspector.precision(component.layers, component.compute, inspector.inspected(engine.inspect()))


def test_a_layer_that_fell_back_is_named_with_both_types(engine: Engine, orin: FakeBoard, component: Component) -> None:
    found = precision_of(orin, engine, component, fell_back=True)
    assert found["status"] == "fell back"
    assert found["fell_back"] == ["blocks.conv runs float16 x float16, asked int8 x int8"]


def test_a_network_in_one_fused_layer_cannot_be_told(engine: Engine, orin: FakeBoard, component: Component) -> None:
    found = precision_of(orin, engine, component, fused=True)
    assert (found["status"], found["unread"], found["fell_back"]) == ("fused, cannot be told", ["blocks.conv"], [])


REAL = """
import tensorrt_rtx
from tensorrt_rtx import *

__version__ = "10.16.0"

class Builder(tensorrt_rtx.Builder):
    def create_builder_config(self):
        config = super().create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(tensorrt_rtx.ComputeCapability.SM86, 0)
        return config
"""


@builder.needed
@pytest.mark.parametrize("rows", [2, None], ids=["fixed", "open"])
def test_the_real_bindings_of_tensorrt_rtx_take_every_call_of_a_build(
    rows: int | None, tmp_path: Path, program: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    board = FakeBoard(tmp_path / "board", "10.16.0")
    board.site.mkdir(parents=True)
    (board.site / "tensorrt.py").write_text(REAL, "utf-8")
    board.use(monkeypatch)
    component = model.component(tmp_path, rows)
    asked = model.job(component, tmp_path)
    built = build_in_child(asked, program)
    assert (built.level, built.attempts) == (3, ())
    assert built.bytes > 100_000
    assert asked.timing_cache.stat().st_size > 0
    with pytest.raises(CannotVerify, match=r"refuses no\.onnx: Assertion failed: .*Input file cannot be found"):
        build_in_child(model.job(component, tmp_path, onnx=tmp_path / "no.onnx", digest="d2"), program)


def test_the_verifier_in_one_file_needs_numpy_alone_and_isolates_its_child(
    orin: FakeBoard, component: Component, tmp_path: Path
) -> None:
    packed = pyz(tmp_path, component)
    ended = subprocess.run(
        [orin.python(), "-I", packed],
        env={"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": orin.environment["LD_LIBRARY_PATH"]},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    outputs = {"out/eps:0": np.load(tmp_path / "out.npy")}
    same_as_onnxruntime(outputs, component)
    assert [seen["isolated"] for seen in orin.seen] == [1]


DRIVER = """
import sys
from pathlib import Path

ALLOWED = set(sys.stdlib_module_names) | {"numpy", "tensorrt", "qcheck_verify"}

class Hook:
    def find_spec(self, name, path=None, target=None):
        caller = sys._getframe(1)
        while "importlib" in caller.f_code.co_filename or caller.f_code.co_filename.startswith("<frozen"):
            caller = caller.f_back
        if "qcheck_verify" in caller.f_code.co_filename and name.split(".")[0] not in ALLOWED:
            raise ImportError(f"{name} is not on a board")

sys.meta_path.insert(0, Hook())
from qcheck_verify import cudart, inspector, tensorrt_engine, trtexec
from qcheck_verify.built import Job
from qcheck_verify.bundle import Component
from qcheck_verify.tensors import Tensor

if sys.argv[1:2] == ["--build"]:
    tensorrt_engine.answer(Path(sys.argv[2]))
    sys.exit()
import numpy as np
folder = Path.cwd()
inputs = (Tensor("sample", "float16", (2, 4, 8, 8)), Tensor("timestep", "float32", (2,)))
outputs = (Tensor("out/eps:0", "float16", (2, 4, 8, 8)),)
component = Component("denoiser", "denoiser", folder / "model.onnx", "float16", inputs, outputs, ())
job = Job(component.path, "d", inputs, folder / "a.engine", folder / "cache", 1 << 20, "Orin", "15W")
built = tensorrt_engine.build_in_child(job, [sys.argv[0]])
with tensorrt_engine.Engine(built.engine, component, tensorrt_engine.bindings(), cudart.find()) as engine:
    with np.load("inputs.npz") as given:
        np.save("out.npy", engine(dict(given))["out/eps:0"])
"""


def pyz(folder: Path, component: Component) -> Path:
    """The modules of this test as a zipapp, with a driver in the place of the verifier's."""
    np.savez(folder / "inputs.npz", **model.inputs())
    package = folder / "packed" / "qcheck_verify"
    package.mkdir(parents=True)
    names = ["built", "bundle", "cudart", "errors", "facts", "inspector", "replay", "sums"]
    names += ["tensorrt_engine", "tensors", "trtexec"]
    for name in ["__init__", *names]:
        source = Path(tensorrt_engine.__file__).with_name(f"{name}.py")
        (package / source.name).write_bytes(source.read_bytes())
    (package.parent / "__main__.py").write_text(DRIVER, "utf-8")
    zipapp.create_archive(package.parent, folder / "verify.pyz")
    return folder / "verify.pyz"
