"""The build gate: what is built once, and what a refusal tells."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from qcheck.build import gate
from qcheck.build.builder import RTX, Builder, Problem
from qcheck.build.gate import Gate
from qcheck.core import cache, versions
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of
from qcheck.core.progress import Silent, Stopwatch
from qcheck.core.values import read_toml
from qcheck.model.arms import Arms
from qcheck.quantize import artifact, contents
from qcheck.result.build import Build
from qcheck.result.manifest import Layer
from qcheck.spec import recipe, scheme, target
from qcheck.spec.order import Order
from tests import builder
from tests.conftest import Prepared

ORIN = target.find("jetson-agx-orin-64gb")


def _deployed(both: Arms, prepared: Prepared, name: str, order: Order, folder: Path) -> tuple[Path, list[Layer]]:
    chosen = scheme.find(name)
    ranges = {"base": prepared.ranges, "adapted": prepared.ranges}
    content = contents.of_adapted(both, chosen, recipe.find("emoji"), order, ranges)  # type: ignore[arg-type]
    path = prepared.exporter.deployed(content, chosen, folder / order / "model.onnx", {"order": order})
    return path, artifact.layers(content, prepared.exporter.sites(chosen.compute))


def test_files_that_differ_in_weights_alone_have_one_structure(
    demo_arms: Arms, prepared: Prepared, tmp_path: Path
) -> None:
    merged, _ = _deployed(demo_arms, prepared, "int8", "merge-quantize", tmp_path)
    again, _ = _deployed(demo_arms, prepared, "int8", "quantize-merge", tmp_path)
    beside, _ = _deployed(demo_arms, prepared, "int8", "unmerged", tmp_path)
    assert digest_of(merged) != digest_of(again)
    assert gate.structure(merged) == gate.structure(again)
    assert gate.structure(merged) != gate.structure(beside)


def test_a_shape_or_a_type_that_differs_is_another_structure(
    demo_arms: Arms, prepared: Prepared, tmp_path: Path
) -> None:
    path, _ = _deployed(demo_arms, prepared, "int8", "merge-quantize", tmp_path)
    before, model = gate.structure(path), onnx.load(path)
    shaping = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT64)
    values = onnx.numpy_helper.to_array(shaping) + 1
    shaping.CopyFrom(onnx.numpy_helper.from_array(values, shaping.name))
    onnx.save(model, path)
    assert gate.structure(path) != before


class Builds:
    """Stands for the builder: what it was given, and what it makes of that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[Path] = []
        self.status = "built"
        monkeypatch.setattr(gate, "run", self._run)
        monkeypatch.setattr(gate, "choose", lambda *_: Builder(RTX, "8.6"))

    def _run(self, _builder: Builder, _target: object, model: Path, *_: object) -> Build:
        self.given.append(model)
        return Build(builder="b", capability="8.6", proxy=True, status=self.status, detail="")  # type: ignore[arg-type]


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    return Builds(monkeypatch)


def _gate(folder: Path, shapes: Any = builder.SHAPES) -> Gate:
    return Gate(ORIN, True, shapes, Cache(folder / "cache"), Stopwatch(Silent()))


def _made(path: Path, layers: list[Layer]) -> Any:
    return SimpleNamespace(deployed=path, manifest=SimpleNamespace(layers=layers))


def test_a_graph_is_built_once_whatever_its_weights(
    demo_arms: Arms, prepared: Prepared, builds: Builds, tmp_path: Path
) -> None:
    int8 = scheme.find("int8")
    merged, again, beside = (
        _made(*_deployed(demo_arms, prepared, "int8", order, tmp_path))
        for order in ("merge-quantize", "quantize-merge", "unmerged")
    )
    first = _gate(tmp_path).build("one", int8, merged)
    second = _gate(tmp_path).build("two", int8, again)
    assert builds.given == [merged.deployed]
    assert first == second
    assert first.graph == "one"
    assert _gate(tmp_path).build("three", int8, beside).graph == "three"
    wider = {name: (low, best, [4, *high[1:]]) for name, (low, best, high) in builder.SHAPES.items()}
    _gate(tmp_path, wider).build("four", int8, merged)
    assert builds.given == [merged.deployed, beside.deployed, merged.deployed]


def test_a_refusal_is_not_kept(demo_arms: Arms, prepared: Prepared, builds: Builds, tmp_path: Path) -> None:
    made = _made(*_deployed(demo_arms, prepared, "int8", "merge-quantize", tmp_path))
    for status in ("refused", "crashed", "built", "built"):
        builds.status = status
        assert _gate(tmp_path).build("one", scheme.find("int8"), made).status == status
    assert len(builds.given) == 3


def test_another_release_of_the_builder_builds_again(
    demo_arms: Arms, prepared: Prepared, builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.code(gate.__name__)  # so that it is not asked, and kept, with releases that are made up
    made = _made(*_deployed(demo_arms, prepared, "int8", "merge-quantize", tmp_path))
    for release in ("1", "2", "2"):
        monkeypatch.setattr(versions, "versions", lambda release=release: {"tensorrt-rtx": release})
        _gate(tmp_path).build("one", scheme.find("int8"), made)
    assert len(builds.given) == 2


def test_another_device_s_build_is_another(
    demo_arms: Arms, prepared: Prepared, builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _made(*_deployed(demo_arms, prepared, "int8", "merge-quantize", tmp_path))
    for capability in ("8.6", "8.9", "8.9"):
        monkeypatch.setattr(gate, "choose", lambda *_, capability=capability: Builder(RTX, capability))
        _gate(tmp_path).build("one", scheme.find("int8"), made)
    assert len(builds.given) == 2


@builder.needed
@pytest.mark.parametrize(
    ("name", "needs"), [("fp8", "FP8 (E4M3) needs SM 8.9"), ("nvfp4", "FP4 (E2M1) needs SM 10.0 and FP8 (E4M3) needs")]
)
def test_a_format_that_the_device_lacks_is_refused_with_the_layers_and_what_to_use_instead(
    demo_arms: Arms, prepared: Prepared, name: str, needs: str, tmp_path: Path
) -> None:
    path, layers = _deployed(demo_arms, prepared, name, "merge-quantize", tmp_path)
    made = gate.run(Builder(RTX, "8.6"), ORIN, path, layers, "float16", builder.SHAPES, tmp_path / "engine")
    assert (made.status, made.realised, made.bytes) == ("refused", None, None)
    assert needs in made.detail
    assert f"{len(layers)} layers use it, first {layers[0].name}" in made.detail
    assert "Jetson AGX Orin 64GB is SM 8.7: use int4-awq or int4-g128" in made.detail
    assert "HW-specific datatypes" in made.detail
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("cause", read_toml(gate.Causes, gate.CAUSES).causes, ids=lambda cause: cause.pattern)
def test_causes_are_found_in_the_builders_words(cause: gate.Cause) -> None:
    said = {
        "blocking dimension must be the last or second to last": "DequantizeLinear dq: Invalid Node - dq\nITensor::"
        "getDimensions: Error Code 4: API Usage Error (The blocking dimension must be the last or second to last dim",
        "must divide into whole blocks": "DequantizeLinear dq: Assertion failed: scaleDims.d[axis] > 0: The "
        "quantization axis must divide into whole blocks. Input dimension 0 = 320, scale dimension = 3.",
        "Plugin not found": 'NoSuch odd_node: creator && "Plugin not found, are the plugin name, version, and',
        "Non-zero zero point": "QuantizeLinear q: Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point",
        "cannot compile for SM": "TensorRT-RTX 1.7.1.116 cannot compile for SM87",
    }.get(cause.pattern, "the builder's process ended by signal 9")
    found = gate._explain(Problem(said, "dq", "denoiser.conv_in"), ORIN, [])
    assert found.startswith(cause.means)
    assert "denoiser.conv_in" in found


def test_words_without_a_known_cause_are_passed_on() -> None:
    assert gate._explain(Problem("odd\n  words"), ORIN, []) == "odd words"


def test_no_build_says_why() -> None:
    made = gate.not_run(target.find("jetson-agx-xavier"), "because")
    assert made == Build(builder="", capability="7.2", proxy=False, status="not run", detail="because")


def test_an_unknown_type_in_a_refusal_is_passed_on_as_the_builder_said_it() -> None:
    said = "Cannot compile for target(s) sm86, because the model contains HW-specific datatypes: fp8_e8m0. In compile"
    assert gate._explain(Problem(said), ORIN, []) == said
    both = gate._explain(Problem(said.replace("fp8_e8m0", "fp8_e8m0, fp8_e4m3")), ORIN, [])
    assert both.startswith("FP8 (E4M3) needs SM 8.9")


def test_a_scale_that_parsers_refuse_is_another_structure(demo_arms: Arms, prepared: Prepared, tmp_path: Path) -> None:
    path, _ = _deployed(demo_arms, prepared, "int8", "merge-quantize", tmp_path)
    before, model = gate.structure(path), onnx.load(path)
    scale = next(t for t in model.graph.initializer if t.name.endswith("weight/scale"))
    values = onnx.numpy_helper.to_array(scale).copy()
    values[0] = 0
    scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))
    onnx.save(model, path)
    assert gate.structure(path) != before
