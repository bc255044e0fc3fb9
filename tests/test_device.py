"""The device that computes: found by its name, fed in parts that fit its memory, and part of every cache key.

No test has a GPU: a second device is the processor under another title, and memory that runs out is raised.
"""

import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qcheck.calibration.histogram import Histogram
from qcheck.core.errors import UserError
from qcheck.diagnose.alignment import Energies
from qcheck.model import device as devices
from qcheck.model.arms import Arms
from qcheck.model.device import CPU, Device
from qcheck.model.family.unet import StableDiffusion
from qcheck.model.inputs import observed
from qcheck.runtime import ort_runner
from qcheck.runtime.rows import Rows, ran_out
from qcheck.runtime.runner import MismatchError
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.sampling import setup as setups
from qcheck.sampling import subject
from qcheck.spec import probe as probe_sets
from qcheck.spec.arm import SIDES
from qcheck.spec.probe import Probe
from qcheck.tasks import controls
from tests.conftest import Prepared, run

OTHER = Device("cpu", "another processor")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "mps"])
def test_a_name_that_is_no_device_is_an_error_before_anything_runs(name: str) -> None:
    error = run("check", "demo", "--lora", "flat", "--scheme", "int8", "--device", name).exception
    assert isinstance(error, UserError)
    assert f"--device {name!r} is no device" in error.what


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda_auto_is_the_processor_and_cuda_an_error() -> None:
    assert devices.find("auto") == devices.find("cpu") == CPU
    error = run("check", "demo", "--lora", "flat", "--scheme", "int8", "--device", "cuda:1").exception
    assert isinstance(error, UserError)
    assert "torch sees no CUDA devices" in error.what
    assert "--device cpu" in error.fix


def test_a_precision_that_is_none_or_that_the_device_lacks_is_an_error() -> None:
    for precision, what in (("tf16", "--precision 'tf16' is none"), ("tf32", "--precision tf32: cpu has no TF32")):
        words = ("check", "demo", "--lora", "flat", "--scheme", "int8", "--device", "cpu", "--precision", precision)
        error = run(*words).exception
        assert isinstance(error, UserError)
        assert what in error.what


def test_products_are_in_tf32_only_where_the_device_is_asked_to() -> None:
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    for tf32 in (False, True):
        with devices.exact(Device("cuda:0", "a GPU", tf32)):
            assert [flag.allow_tf32 for flag in flags] == [tf32, tf32]
            with devices.exact(Device("cuda:0", "a GPU")):
                assert [flag.allow_tf32 for flag in flags] == [False, False]
            assert [flag.allow_tf32 for flag in flags] == [tf32, tf32]
    assert [flag.allow_tf32 for flag in flags] == before


@pytest.fixture
def elsewhere(demo_arms: Arms) -> Arms:
    """The demo's arms, computed on the other device."""
    return demo_arms.on(OTHER)


def test_a_device_has_a_copy_of_the_pipeline_and_the_same_values(
    demo_arms: Arms, elsewhere: Arms, exported: Prepared
) -> None:
    kept = {name: value.clone() for name, value in demo_arms.state("base").items()}
    for side in SIDES:
        with subject.full(demo_arms, side).open() as here, subject.full(elsewhere, side).open() as there:
            assert here.entry.denoiser is not there.entry.denoiser  # type: ignore[attr-defined]
            np.testing.assert_array_equal(here(exported.inputs), there(exported.inputs))
    assert all(torch.equal(value, demo_arms.state("base")[name]) for name, value in kept.items())
    assert demo_arms.on(CPU).computing.family is demo_arms.base.family


def test_text_encoders_visit_the_device_and_prompts_are_encoded_once(
    demo_arms: Arms, elsewhere: Arms, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_set = probe_sets.find("emoji")
    probes = probe_sets.probes(probe_set, (1.0,))[:3]
    encoders = list[Any]()
    conditions = StableDiffusion.conditions

    def seen(family: StableDiffusion, probe: Probe) -> Any:
        encoders.append(family.pipe.text_encoder)
        return conditions(family, probe)

    expected = [demo_arms.base.family.conditions(probe) for probe in probes]
    monkeypatch.setattr(StableDiffusion, "conditions", seen)
    assert elsewhere.computing.pipe.text_encoder is None
    setup = setups.make(elsewhere, probe_set, 8, 8)
    for chosen in (probes[:2], probes):
        for side in SIDES:
            given = setup.inputs(side, chosen).conditions
            for name, values in given.items():
                np.testing.assert_array_equal(values, np.stack([one[name].numpy() for one in expected[: len(chosen)]]))
    assert len(encoders) == 3
    assert encoders[0] is encoders[1] is not encoders[2]
    assert elsewhere.base.pipe.text_encoder not in encoders
    assert all(encoder is not None for encoder in encoders)
    with elsewhere.encoding("adapted") as family:
        assert family.pipe.text_encoder is not None
    assert family.pipe.text_encoder is None  # whoever holds the copy
    assert elsewhere.base.pipe.text_encoder is not None
    monkeypatch.setattr(Arms, "encode_alike", False)
    for side in SIDES:
        setups.make(elsewhere, probe_set, 8, 8).inputs(side, probes)
    assert len(encoders) == 9


def test_while_the_device_runs_one_arm_the_other_is_exported(elsewhere: Arms) -> None:
    layer = elsewhere.denoiser_layers()[0]
    with elsewhere.running("adapted") as there, elsewhere.held("base") as here:
        weights = [family.module.get_submodule(layer).weight for family in (here, there)]
        assert torch.equal(weights[0], elsewhere.state("base")[f"{layer}.weight"])
        assert torch.equal(weights[1], elsewhere.state("adapted")[f"{layer}.weight"])
        with pytest.raises(RuntimeError, match="another arm"), elsewhere.running("base"):
            pass


def test_another_device_is_another_key(demo_arms: Arms, elsewhere: Arms, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for make in (
        lambda arms: subject.full(arms, "adapted"),
        lambda arms: subject.full(arms, "adapted", "float16"),
        lambda arms: subject.stored(arms, "q1", "adapted", path, "digest", 1),
    ):
        assert make(demo_arms).content != make(elsewhere).content


@dataclass
class Memory:
    """A device of ``size`` bytes, where a row takes ``row``; asking for more is out of memory."""

    size: int
    row: int
    name: str = "a small device"
    calls: list[int] = field(default_factory=list)
    fitting: dict[str, int] = field(default_factory=dict)

    def release(self) -> None:
        self.calls.append(0)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Twice the rows."""
        count = len(inputs["x"])
        self.calls.append(count)
        if count * self.row > self.size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return 2 * inputs["x"] + inputs["t"]


def _through(memory: Memory, count: int, library: str = "torch") -> list[int]:
    """The calls, 0 for memory that was returned, of a new runner with ``count`` rows."""
    memory.calls.clear()
    inputs = {"x": np.arange(count, dtype=np.float32), "t": np.array([1.0], np.float32)}
    output = Rows(memory, frozenset({"t"}), library).run(memory, inputs)
    np.testing.assert_array_equal(output, 2 * inputs["x"] + 1)
    return memory.calls


def test_rows_are_halved_until_they_fit_and_the_parts_are_equal() -> None:
    memory = Memory(size=100, row=30)
    assert _through(memory, 16) == [16, 0, 8, 0, 4, 0, *[2] * 8]
    assert _through(Memory(size=100, row=15), 16) == [16, 0, 8, 0, 4, 4, 4, 4]
    assert _through(Memory(size=100, row=15), 14) == [14, 0, 7, 0, 3, 3, 3, 3, 2]


def test_what_fits_is_found_once_for_calls_alike() -> None:
    memory = Memory(size=100, row=30)
    _through(memory, 8)
    assert _through(memory, 5) == [2, 2, 1]  # another runner
    assert _through(memory, 4, "onnxruntime") == [4, 0, 2, 2]  # another library


class Layers(torch.nn.Module):
    """Two layers on a device whose memory ends in the second one at more than ``most`` rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        for place, value in enumerate(self.parameters()):
            value.data = torch.linspace(-1, 1, value.numel()).view_as(value) + place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        output: torch.Tensor = self.second(hidden)
        return output


def test_a_forward_that_ran_out_of_memory_was_not_observed() -> None:
    inputs, found = {"x": np.arange(24, dtype=np.float32).reshape(8, 3)}, []
    for known in (True, False):
        model, memory = Layers(4), Memory(1, 0)
        layers = dict(model.named_children())
        kind, rows = Histogram(), Rows(memory, frozenset(), "torch")
        if known:
            memory.fitting[rows._kind(inputs)] = 4
        energies = Energies(layers, {name: torch.ones(3, 3) for name in layers})
        with observed(model, layers, kind), observed(model, layers, energies), torch.no_grad():
            rows.run(lambda part: model(torch.from_numpy(part["x"])).numpy(), inputs)  # noqa: B023
        seen = kind.seen()
        found.append([*(seen[name].counts for name in layers), *(energies.sums[name].numpy() for name in layers)])
    for undisturbed, disturbed in zip(*found, strict=True):
        np.testing.assert_array_equal(undisturbed, disturbed)


def test_one_row_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match="one row of the denoiser does not fit into the memory of a small device") as e:
        _through(Memory(size=10, row=20), 4)
    assert "--device cpu" in e.value.fix


def test_another_error_is_no_lack_of_memory() -> None:
    def broken(_: Mapping[str, np.ndarray]) -> np.ndarray:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Rows(Memory(1, 1), frozenset(), "torch").run(broken, {"x": np.zeros(3)})
    assert not ran_out(RuntimeError("shapes do not match"))
    for text in (
        "CUDA out of memory",
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
        "BFCArena::AllocateRawInternal(size_t) Failed to allocate memory for requested buffer of size 9",
    ):
        assert ran_out(RuntimeError(text))
    assert ran_out(MemoryError())


@pytest.fixture
def no_provider(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Device]:
    """`--device auto` is another device, for which ONNX Runtime has no provider."""
    monkeypatch.setattr(devices, "find", lambda name, _: OTHER if name == "auto" else CPU)
    monkeypatch.setattr(ort_runner, "runs_on", lambda device: device == CPU)
    return devices.find


def _entries(root: Path) -> dict[str, int]:
    """The number of entries in the cache by kind."""
    kinds = ("trace", "ranges", "alignment")
    return {kind: len(list((root / "qcheck" / kind).glob("[!.]*"))) for kind in kinds}


@pytest.mark.usefixtures("no_provider")
def test_without_a_provider_artifacts_are_simulated_and_tied_to_their_file(
    tmp_path: Path, graphs_alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qcheck

    options: Any = {"lora": "flat", "scheme": "int8", "steps": 3, "max_probes": 3, "build": False}
    there = qcheck.check("demo", **options, out=tmp_path / "there")
    alone = _entries(graphs_alone)
    here = qcheck.check("demo", **options, device="cpu")
    assert all(count >= 2 * alone[kind] > 0 for kind, count in _entries(graphs_alone).items())
    assert there.provenance.device == OTHER.title
    for case in there.cases:
        known = here[case.scheme]
        assert case.ran_as == "simulation"
        assert known.ran_as == "artifact"
        assert "its file, run on the CPU, agrees to" in " ".join(case.warnings)
        for name in ("effect_survival", "excess_error", "stratum_sqnr"):
            ours, theirs = case[name], known[name]
            assert ours.value == pytest.approx(theirs.value, abs=0.5 * (theirs.high - theirs.low))
    assert not list((tmp_path / "there").rglob("*twin*"))
    assert any("by its file" in entry.name for entry in there.not_measured)
    monkeypatch.setattr(controls, "_AGREEMENT", 200.0)
    with pytest.raises(MismatchError, match="its file agree to"):
        qcheck.check("demo", **options)


@pytest.mark.usefixtures("graphs_alone")
def test_the_error_of_a_tf32_reference_is_measured_and_said_where_it_is_too_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import qcheck

    rounding = 0.0

    @contextmanager
    def exact(device: Device) -> Iterator[None]:
        """Products of the float32 arm, which is the only one here, differ from TF32's by ``rounding``."""
        compute = TorchRunner._run

        def other(self: TorchRunner, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            return compute(self, inputs) * np.float32(1 + (0 if device.tf32 else rounding))

        with monkeypatch.context() as patch:
            patch.setattr(TorchRunner, "_run", other)
            yield

    monkeypatch.setattr(devices, "find", lambda *_: Device("cpu", "cpu, TF32", tf32=True))
    monkeypatch.setattr(devices, "exact", exact)
    for rounding, words in ((1e-4, False), (3e-2, True)):
        options: Any = {"scheme": "int8", "steps": 2, "max_probes": 2, "guidance": 1.0, "build": False}
        report = qcheck.check("demo", "flat", seed=int(words), **options)
        assert report.provenance.device == "cpu, TF32"
        assert report.provenance.reference_error == pytest.approx(20 * np.log10(rounding), abs=0.5)
        assert ("check again with --precision float32" in " ".join(report.cases[0].warnings)) == words


_HOLES = """
import psutil, sys, torch
from qcheck.model.device import return_blocks
if sys.argv[1] == "returned":
    return_blocks(2**20)
process = psutil.Process()
torch.zeros(2**22)  # the C library now keeps blocks of that size
before = process.memory_info().rss
kept = [(torch.ones(2**20), torch.ones(2**14)) for _ in range(100)]
kept = [small for _, small in kept]
print((process.memory_info().rss - before) / 100 / 2**22)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps blocks by other rules")
def test_freed_blocks_are_returned_although_small_ones_lie_between_them() -> None:
    shares = [
        float(subprocess.run([sys.executable, "-c", _HOLES, kind], capture_output=True, text=True, check=True).stdout)
        for kind in ("kept", "returned")
    ]
    assert shares[0] > 0.5
    assert shares[1] < 0.1
