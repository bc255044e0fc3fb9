"""An adapter as inputs of one file: what ``unmerged`` holds as constants, for every adapter of the same layers."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from qcheck.api.keywords import Request
from qcheck.api.request import check_spec
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.core.progress import Silent
from qcheck.demo import library
from qcheck.model import arms as arms_of
from qcheck.model import load, lora
from qcheck.model.arms import Arms
from qcheck.quantize import artifact, bound, contents, fake, qdq
from qcheck.quantize.artifact import ArtifactSources
from qcheck.quantize.contents import QuantizedWeights
from qcheck.quantize.fake import Factors
from qcheck.runtime.ort_runner import OnnxRunner
from qcheck.spec import recipe, scheme
from qcheck.spec.use import Use
from qcheck.tasks import session as sessions
from tests import builder
from tests.conftest import Prepared, adapted_by

RECIPE = recipe.find("emoji")
RANK = 24


def _ranges(prepared: Prepared) -> contents.Ranges:
    return dict.fromkeys(("base", "adapted", "shared"), prepared.ranges)  # type: ignore[return-value]


def _bound(arms: Arms, prepared: Prepared, name: str, rank: int | None = RANK) -> QuantizedWeights:
    binding = bound.binding([arms.ranks()], rank)
    return contents.of_adapted(arms, scheme.find(name), RECIPE, "bound", _ranges(prepared), binding)


def _beside(content: QuantizedWeights) -> QuantizedWeights:
    """The same with the factors as constants."""
    return content._replace(rank=None)


def _twin(content: QuantizedWeights, name: str, prepared: Prepared, path: Path) -> Path:
    return prepared.exporter.twin(content, scheme.find(name), path, {})


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


@pytest.mark.parametrize("name", ["int4-g128", "int8", "fp8"])
def test_bound_factors_compute_what_constant_ones_do(
    name: str, demo_arms: Arms, prepared: Prepared, tmp_path: Path
) -> None:
    """Node by node, as what fusing rounds otherwise moves an input of int8 and fp8 to the neighbouring code."""
    content = _bound(demo_arms, prepared, name)
    path, inputs = _twin(content, name, prepared, tmp_path / "bound.onnx"), content.inputs()
    expected = _unfused(_twin(_beside(content), name, prepared, tmp_path / "beside.onnx"), prepared.inputs)
    assert _distance(expected, _unfused(path, {**prepared.inputs, **inputs})) < 1e-5
    half = {**inputs, bound.SCALE: np.full(1, 0.5, np.float32)}
    assert _distance(expected, _unfused(path, {**prepared.inputs, **half})) > 1e-3


def test_a_zero_adapter_is_the_base_bit_for_bit(demo_arms: Arms, prepared: Prepared, tmp_path: Path) -> None:
    """Node by node: ONNX Runtime's optimizer fuses other nodes in a file that has branches than in one without."""
    content = _bound(demo_arms, prepared, "int8")
    inputs = content.inputs()
    path = _twin(content, "int8", prepared, tmp_path / "bound.onnx")
    base = _twin(content._replace(branches={}, rank=None), "int8", prepared, tmp_path / "q0.onnx")
    expected = _unfused(base, prepared.inputs)
    zeros = {key: np.zeros_like(value) for key, value in inputs.items()}
    for nothing in (zeros, {**inputs, bound.SCALE: np.zeros(1, np.float32)}):
        assert np.array_equal(_unfused(path, {**prepared.inputs, **nothing}), expected)
    assert not np.array_equal(_unfused(path, {**prepared.inputs, **inputs}), expected)


def _unfused(path: Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(inputs))[0])


def test_a_bound_file_is_its_simulation(demo_arms: Arms, prepared: Prepared, tmp_path: Path) -> None:
    """Also in layers that the recipe keeps in float, into which the other orders merge the adapter."""
    few = adapted_by("few")
    assert set(few.denoiser_layers()) - set(_bound(few, prepared, "int4-g128").plan)
    content = _bound(few, prepared, "int4-g128")
    path = _twin(content, "int4-g128", prepared, tmp_path / "bound.onnx")
    x, t, h = (torch.from_numpy(prepared.inputs[key]) for key in ("sample", "timestep", "encoder_hidden_states"))
    with (
        few.held("adapted") as family,
        fake.simulated(family.module, content.plan, content.branches, content.state) as model,
        torch.no_grad(),
    ):
        simulated = model(x, t, h).sample.numpy()
    assert _distance(simulated, OnnxRunner(path, 1, bound=content.inputs())(prepared.inputs)) < 1e-5


def test_weights_alone_bound_are_the_order_unmerged(demo_arms: Arms, prepared: Prepared, tmp_path: Path) -> None:
    """Where inputs have no ranges the two orders differ in nothing but where the factors lie."""
    chosen = scheme.find("int4-g128")
    unmerged = contents.of_adapted(demo_arms, chosen, RECIPE, "unmerged", _ranges(prepared))
    expected = OnnxRunner(_twin(unmerged, chosen.name, prepared, tmp_path / "unmerged.onnx"), 1)(prepared.inputs)
    content = _bound(demo_arms, prepared, chosen.name)
    path = _twin(content, chosen.name, prepared, tmp_path / "bound.onnx")
    assert _distance(expected, OnnxRunner(path, 1, bound=content.inputs())(prepared.inputs)) < 1e-5


def _sources(arms: Arms, prepared: Prepared, folder: Path) -> ArtifactSources:
    ranges, chosen = _ranges(prepared), scheme.find("int4-g128")
    binding = bound.binding([adapted_by(name).ranks() for name in ("faint", "flat")], RANK)
    return ArtifactSources(arms, prepared.exporter, Cache(folder), chosen, RECIPE, ranges, binding=binding)


def test_one_file_serves_two_adapters_and_is_written_once(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = list[Path]()
    save = qdq.save
    monkeypatch.setattr(qdq, "save", lambda model, path: (written.append(path), save(model, path)))
    artifacts = {
        name: artifact.write(_sources(adapted_by(name), prepared, tmp_path / "cache"), "bound", tmp_path / name)
        for name in ("faint", "flat")
    }
    assert sorted(path.name for path in written if path.name != "graph.onnx") == ["model.onnx", "q1.twin.onnx"]
    faint, flat = artifacts["faint"], artifacts["flat"]
    model, adapter = "unet/model.onnx", f"unet/{bound.ADAPTER}"
    assert faint.manifest.files[model] == flat.manifest.files[model]
    assert faint.manifest.files[adapter] != flat.manifest.files[adapter]
    assert faint.manifest.adapters != flat.manifest.adapters
    assert faint.runs.digest != flat.runs.digest
    held = load_file(faint.folder / adapter)
    entries = onnx.load(faint.folder / model, load_external_data=False).graph.input
    shapes = {entry.name: tuple(axis.dim_value for axis in entry.type.tensor_type.shape.dim) for entry in entries}
    assert {name: tuple(tensor.shape) for name, tensor in held.items()} == {name: shapes[name] for name in held}
    assert {name for name in shapes if "lora_" in name} == set(held)
    assert {tensor.dtype for tensor in held.values()} == {torch.float16}


def test_an_adapter_leaves_the_layers_of_others_alone(prepared: Prepared) -> None:
    faint, flat = adapted_by("faint"), adapted_by("flat")
    binding = bound.binding([flat.ranks(), faint.ranks()])
    assert set(binding.layers) == set(flat.ranks()) > set(faint.ranks())
    assert binding.rank == max(flat.ranks().values())
    content = contents.of_adapted(faint, scheme.find("int8"), RECIPE, "bound", _ranges(prepared), binding)
    inputs = content.inputs()
    for layer in binding.layers:
        quiet = not any(inputs[name].any() for name in bound.names(layer))
        assert quiet == (layer not in faint.ranks()), layer


def test_a_rank_of_inputs_below_the_adapters_is_refused(demo_arms: Arms, prepared: Prepared) -> None:
    with pytest.raises(UserError, match=r"--max-rank 2: the adapter has rank \d+ at") as raised:
        _bound(demo_arms, prepared, "int4-g128", rank=2)
    assert "or more" in str(raised.value.fix)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "bnb-nf4", "order": "bound"}, "'bnb-nf4' is no file"),
        ({"scheme": "int8", "max_rank": 8}, "--max-rank 8: no order of the request"),
    ],
)
def test_what_takes_no_inputs_is_refused(options: Request, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_spec("demo", "ink", target="rtx-ada", **options)


@builder.needed
@pytest.mark.parametrize(("name", "capability"), [("int8", "8.6"), ("fp8", "8.9"), ("int4-g128", "12.0")])
def test_tensorrt_builds_an_engine_that_takes_adapters(
    name: str, capability: str, demo_arms: Arms, prepared: Prepared, tmp_path: Path
) -> None:
    path = prepared.exporter.deployed(_bound(demo_arms, prepared, name), scheme.find(name), tmp_path / "m.onnx", {})
    built = builder.build(path, capability)
    assert built.engine is not None, built.problems


def _convolution() -> dict[str, Factors]:
    generator = torch.Generator().manual_seed(1)
    return {"conv_out": (torch.randn(2, 32, 3, 3, generator=generator), torch.randn(4, 2, generator=generator))}


def test_a_convolution_takes_its_factors_as_inputs(prepared: Prepared, tmp_path: Path) -> None:
    outputs, factors = {}, _convolution()
    for rank in (None, RANK):
        path = tmp_path / f"{rank}.onnx"
        qdq.save(qdq.quantized(prepared.graph, prepared.state, {}, factors, rank=rank), path)
        inputs = QuantizedWeights(prepared.state, {}, factors, rank=rank).inputs()
        outputs[rank] = OnnxRunner(path, 1, bound=inputs)(prepared.inputs)
    assert _distance(outputs[None], outputs[RANK]) < 1e-5


@builder.needed
def test_tensorrt_builds_a_convolution_that_takes_its_factors(prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    qdq.save(qdq.quantized(prepared.graph, prepared.state, {}, _convolution(), rank=RANK), path)
    built = builder.build(path, "8.6")
    assert built.engine is not None, built.problems


def test_biases_are_no_inputs_of_a_file(tmp_path: Path) -> None:
    tensors = load_file(library.ADAPTERS / "ink.safetensors")
    tensors["unet.conv_out.diff_b"] = torch.ones(4)
    save_file(tensors, tmp_path / "biased.safetensors")
    adapter = lora.read(Use(source=str(tmp_path / "biased.safetensors"), weight=1.0))
    with pytest.raises(UserError, match="changes biases or norms of the denoiser"):
        arms_of.ranks_of(load.load(str(library.PIPELINE)), adapter)
    spec = check_spec("demo", adapter.path, scheme="int8", order="bound", build=False, threads=1)
    with (
        sessions.opened(spec, Cache(tmp_path / "cache"), Silent()) as session,
        pytest.raises(UserError, match="changes biases or norms of the denoiser"),
    ):
        _ = session.binding
