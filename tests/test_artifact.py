"""Every scheme in every order: the file holds the simulation's codes and computes what torch simulates."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcheck.core import cache, versions
from qcheck.core.cache import Cache
from qcheck.model.arms import Arms
from qcheck.quantize import bnb as bitsandbytes
from qcheck.quantize import contents, fake, plan, sites
from qcheck.quantize import qdq as rewrite
from qcheck.quantize.artifact import ArtifactSources, QuantizedArm
from qcheck.quantize.contents import QuantizedWeights
from qcheck.result.manifest import model_files
from qcheck.runtime.ort_runner import OnnxRunner
from qcheck.spec import recipe, scheme
from qcheck.spec.order import MERGES, Order
from qcheck.spec.scheme import Numbers, Scheme
from qcheck.tasks.session import Session
from tests import builder, stored
from tests.conftest import Prepared, adapted_by

RECIPE = recipe.find("emoji")
SCHEMES = [chosen for chosen in scheme.every() if chosen.exported]


def _content(demo_arms: Arms, prepared: Prepared, chosen: Scheme, order: Order) -> QuantizedWeights:
    ranges = {"base": prepared.ranges, "adapted": prepared.ranges}
    return contents.of_adapted(demo_arms, chosen, RECIPE, order, ranges)  # type: ignore[arg-type]


@contextmanager
def _holding(model: torch.nn.Module, content: QuantizedWeights) -> Iterator[torch.nn.Module]:
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(content.state)
    with fake.simulated(model, content.plan, content.branches) as simulated:
        yield simulated
    model.load_state_dict(kept)


def _sqnr(signal: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(signal).sum() / max(np.square(signal - other).sum(), 1e-30)))


@pytest.mark.parametrize("order", MERGES)
@pytest.mark.parametrize("chosen", SCHEMES, ids=[s.name for s in SCHEMES])
def test_artifact_is_the_simulation(
    demo_arms: Arms, prepared: Prepared, chosen: Scheme, order: Order, tmp_path: Path
) -> None:
    content = _content(demo_arms, prepared, chosen, order)
    path = prepared.exporter.twin(content, chosen, tmp_path / "q1.onnx", {})
    plain = chosen.decoded or chosen.control
    found = stored.constants(onnx.load(path)) if plain else stored.codes(onnx.load(path))
    for layer, numbers in content.plan.items():
        weight = content.state[f"{layer}.weight"]
        expected = numbers.fake_stored(weight) if plain else numbers.codes(weight)
        assert np.array_equal(found[layer], expected.numpy()), layer
    x, t, h = (torch.from_numpy(prepared.inputs[k]) for k in ("sample", "timestep", "encoder_hidden_states"))
    unet = prepared.unet
    with torch.no_grad():
        full = unet(x, t, h).sample.numpy()
        with _holding(unet, content) as model:
            simulated = model(x, t, h).sample.numpy()
    ran = OnnxRunner(path, 1)(prepared.inputs)
    if not any(rule.activations for rule in chosen.rules):
        assert _sqnr(simulated, ran) > 100  # nothing rounds but the weights: float rounding is all that differs
    else:
        assert _sqnr(full, ran) == pytest.approx(_sqnr(full, simulated), abs=1.0)
    assert _sqnr(full, ran) > 20


@pytest.mark.parametrize("order", MERGES)
@pytest.mark.parametrize("chosen", [s for s in SCHEMES if s.decoded], ids=lambda s: s.name)
def test_a_decoded_twin_holds_bit_for_bit_what_the_deployed_codes_stand_for(
    demo_arms: Arms, prepared: Prepared, chosen: Scheme, order: Order, tmp_path: Path
) -> None:
    """Decoded by onnx's own reference evaluator from the file in the compute type, steps and all."""
    content = _content(demo_arms, prepared, chosen, order)
    deployed = prepared.exporter.deployed(content, chosen, tmp_path / "q1.onnx", {})
    twin = stored.constants(onnx.load(prepared.exporter.twin(content, chosen, tmp_path / "twin.onnx", {})))
    decoded = stored.decoded(onnx.load(deployed))
    assert set(decoded) == set(content.plan)
    for layer, values in decoded.items():
        assert np.array_equal(twin[layer].astype(values.dtype), values), layer


@pytest.mark.parametrize("chosen", SCHEMES, ids=[s.name for s in SCHEMES])
def test_the_file_declares_its_opset_and_is_valid(
    demo_arms: Arms, prepared: Prepared, chosen: Scheme, tmp_path: Path
) -> None:
    content = _content(demo_arms, prepared, chosen, "unmerged")
    model = onnx.load(prepared.exporter.deployed(content, chosen, tmp_path / "q1.onnx", {}))
    own = {entry.domain for entry in model.opset_import} - {""}
    if not own:  # operators of ONNX Runtime's and TensorRT's own are not known to the checker
        onnx.checker.check_model(model, full_check=True)
    assert own <= {"com.microsoft", "trt"}
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [chosen.opset]


@pytest.mark.parametrize("order", MERGES)
@pytest.mark.parametrize("chosen", [s for s in scheme.every() if not s.exported], ids=lambda s: s.name)
def test_bitsandbytes_computes_with_the_weights_of_the_simulation(
    demo_arms: Arms, prepared: Prepared, chosen: Scheme, order: Order
) -> None:
    content = _content(demo_arms, prepared, chosen, order)
    x, t, h = (torch.from_numpy(prepared.inputs[k]) for k in ("sample", "timestep", "encoder_hidden_states"))
    unet = prepared.unet
    with torch.no_grad():
        with _holding(unet, content) as model:
            simulated = model(x, t, h).sample.numpy()
        ran = bitsandbytes.converted(unet, content.state, content.plan, content.branches)(x, t, h).sample.numpy()
    # NF4 is weight only: float rounding. LLM.int8 quantizes its inputs too: far above what the weights lose.
    assert _sqnr(simulated, ran) > (100 if chosen.name == "bnb-nf4" else 45)


def test_another_release_of_bitsandbytes_finds_no_stored_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch quantizes while it loads is no file whose digest would tell."""
    session: Any = None
    contents = []
    for release in ("1", "2", "1"):
        monkeypatch.setattr(versions, "versions", lambda release=release: {"bitsandbytes": release})
        cache.code.cache_clear()
        made = QuantizedArm("digest", None, lambda: pytest.fail("nothing is run"))
        contents.append(Session.quantized(session, "q1", "adapted", made, scheme.find("bnb-nf4")).content)
    cache.code.cache_clear()
    assert contents[0] == contents[2] != contents[1]


@pytest.mark.parametrize("order", MERGES)
def test_nf4_is_packed_byte_for_byte_as_bitsandbytes_packs(
    demo_arms: Arms, prepared: Prepared, order: Order, tmp_path: Path
) -> None:
    """Every Linear layer of the file, those with 32 inputs (runs cross rows) among them."""
    chosen = scheme.find("nf4-g64")
    content = _content(demo_arms, prepared, chosen, order)
    model = onnx.load(prepared.exporter.deployed(content, chosen, tmp_path / "q1.onnx", {}))
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "MatMulBnb4"]
    assert len(nodes) == len(content.plan)
    for node in nodes:
        weight = content.state[f"{node.name.removesuffix('/matmul')}"]
        packed, state = bnb.functional.quantize_4bit(weight.detach(), blocksize=64, quant_type="nf4")
        assert np.array_equal(arrays[node.input[1]], packed.flatten().numpy()), node.name
        assert np.array_equal(arrays[node.input[2]], state.absmax.numpy()), node.name


def test_orders_differ_where_the_adapter_is_and_nowhere_else(demo_arms: Arms, prepared: Prepared) -> None:
    chosen = scheme.find("int4-g32")
    found = {order: _content(demo_arms, prepared, chosen, order) for order in MERGES}
    touched = set(demo_arms.denoiser_layers())
    for layer in found["merge-quantize"].plan:
        codes = {o: c.plan[layer].codes(c.state[f"{layer}.weight"]) for o, c in found.items()}
        same = torch.equal(codes["merge-quantize"], codes["unmerged"])
        assert same == (layer not in touched), layer
    assert set(found["unmerged"].branches) == touched & set(found["unmerged"].plan)
    assert not found["merge-quantize"].branches


def test_a_refit_swaps_weights_in_a_file_of_the_base_and_keeps_its_ranges(
    demo_arms: Arms, prepared: Prepared, tmp_path: Path
) -> None:
    """Everything that is no weight is the base's: what one engine can be given without being built again."""
    chosen = scheme.find("int8")
    wide = {layer: plan.Input(2 * found.cut) for layer, found in prepared.ranges.items()}
    ranges = {"base": prepared.ranges, "adapted": wide, "shared": prepared.ranges}
    every = {
        "base": contents.of_base(demo_arms, chosen, RECIPE, ranges),  # type: ignore[arg-type]
        "refit": contents.of_adapted(demo_arms, chosen, RECIPE, "refit", ranges),  # type: ignore[arg-type]
        "own": contents.of_adapted(demo_arms, chosen, RECIPE, "merge-quantize", ranges),  # type: ignore[arg-type]
    }
    held = {}
    for name, content in every.items():
        path = prepared.exporter.deployed(content, chosen, tmp_path / f"{name}.onnx", {})
        held[name] = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    base, refit, own = (held[name] for name in ("base", "refit", "own"))
    changed = {name for name in base if not np.array_equal(base[name], refit[name], equal_nan=True)}
    touched = {layer for layer in demo_arms.denoiser_layers() if layer in every["refit"].plan}
    assert {name.split(".weight")[0] for name in changed} == touched
    assert {(v.dtype, v.shape) for v in refit.values()} == {(v.dtype, v.shape) for v in base.values()}
    assert set(refit) == set(base) == set(own)
    scales = [name for name in base if name.endswith("/scale") and ".weight" not in name]
    assert scales
    assert all(own[name] == 2 * base[name] for name in scales)
    codes = [name for name in base if name.endswith("/codes")]
    assert all(np.array_equal(refit[name], own[name]) for name in codes)


def test_the_quantized_base_is_one_for_all_adapters_whose_ranges_are_alike(prepared: Prepared, tmp_path: Path) -> None:
    def key(name: str, cut: float) -> str:
        inputs = {layer: plan.Input(cut) for layer in prepared.ranges}
        chosen, ranges = scheme.find("int8"), {"base": inputs, "adapted": inputs}
        return ArtifactSources(
            adapted_by(name),
            prepared.exporter,
            Cache(tmp_path),
            chosen,
            RECIPE,
            ranges,  # type: ignore[arg-type]
        ).key("base")

    assert key("faint", 1.0) == key("flat", 1.0) != key("flat", 2.0)


def test_a_faint_adapter_falls_into_the_dead_zone_of_quantize_merge(prepared: Prepared) -> None:
    """W already sits on the grid, so a change below half a step is rounded away; W as dither would have kept it."""
    faint = adapted_by("faint")
    chosen = scheme.find("int4-g128")
    survived = {}
    content = {order: _content(faint, prepared, chosen, order) for order in MERGES}
    start = contents.of_base(faint, chosen, RECIPE, {"base": prepared.ranges, "adapted": prepared.ranges})
    for order in ("merge-quantize", "quantize-merge"):
        kept = whole = 0.0
        for layer in faint.denoiser_layers():
            wanted = faint.changed["adapted"][f"unet.{layer}"].whole() - faint.changed["base"][f"unet.{layer}"].whole()
            q1 = content[order].plan[layer].fake(content[order].state[f"{layer}.weight"])  # type: ignore[index]
            q0 = start.plan[layer].fake(start.state[f"{layer}.weight"])
            kept += float(((q1 - q0) * wanted).sum())
            whole += float(wanted.square().sum())
        survived[order] = kept / whole
    assert survived["merge-quantize"] == pytest.approx(1, abs=0.25)
    assert survived["quantize-merge"] < 0.3


def test_the_unmerged_branch_is_the_whole_adapter(demo_arms: Arms) -> None:
    for layer in demo_arms.denoiser_layers():
        down, up = demo_arms.factors(layer)
        change = (
            demo_arms.changed["adapted"][f"unet.{layer}"].whole() - demo_arms.changed["base"][f"unet.{layer}"].whole()
        )
        assert (up @ down.flatten(1) - change.flatten(1)).norm() <= 1e-5 * change.norm(), layer


@builder.needed
@pytest.mark.parametrize("order", ["merge-quantize", "unmerged"])
def test_tensorrt_takes_the_four_bit_file_that_onnx_runtime_takes(
    demo_arms: Arms, prepared: Prepared, order: Order, tmp_path: Path
) -> None:
    chosen = scheme.find("int4-g128-int8")
    content = _content(demo_arms, prepared, chosen, order)
    path = prepared.exporter.deployed(content, chosen, tmp_path / "model.onnx", {})
    built = builder.build(path, "8.6")
    assert built.engine is not None, built.problems


@given(st.integers(1, 4096), st.sampled_from([32, 64, 128]))
def test_blocks_divide_the_input_axis_and_are_the_largest_multiple_of_sixteen(inputs: int, most: int) -> None:
    block = Numbers(format="int4", granularity="block", block=most).block_of(inputs)
    fitting = [b for b in range(16, most + 1, 16) if inputs % b == 0]
    assert block == (max(fitting) if fitting else None)


@pytest.mark.parametrize(("inputs", "block"), [(320, 80), (96, 96), (1280, 128), (40, None), (16, 16)])
def test_narrow_and_odd_layers_get_the_documented_block(inputs: int, block: int | None) -> None:
    assert Numbers(format="int4", granularity="block", block=128).block_of(inputs) == block


def test_an_unmerged_branch_on_the_output_layer_is_kept(prepared: Prepared, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    down = torch.randn(2, 32, 3, 3, generator=generator)
    factors = {"conv_out": (down, torch.randn(4, 2, generator=generator))}
    path = tmp_path / "branch.onnx"
    rewrite.save(rewrite.quantized(prepared.graph, prepared.state, {}, factors), path)
    x, t, h = (torch.from_numpy(prepared.inputs[k]) for k in ("sample", "timestep", "encoder_hidden_states"))
    with fake.simulated(prepared.unet, {}, factors) as model, torch.no_grad():
        expected = model(x, t, h).sample.numpy()
    assert _sqnr(expected, OnnxRunner(path, 1)(prepared.inputs)) > 100


def test_tensors_stored_outside_the_file_are_counted_and_digested(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "_INLINE", 1000)
    rewrite.save(sites.fill(prepared.graph, prepared.state), tmp_path / "model.onnx")
    parts = model_files(tmp_path / "model.onnx")
    assert [part.name for part in parts] == ["model.onnx", "model.onnx.data"]
    assert sum(part.stat().st_size for part in parts) > 15e6
    assert np.isfinite(OnnxRunner(tmp_path / "model.onnx", 1)(prepared.inputs)).all()


def test_a_file_made_from_a_graph_with_tensors_outside_stands_alone(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as large:
        large.setattr(rewrite, "_INLINE", 1000)
        rewrite.save(sites.fill(prepared.graph, prepared.state), tmp_path / "graph.onnx")
    graph = ir.load(tmp_path / "graph.onnx")
    (tmp_path / "other").mkdir()
    rewrite.save(sites.fill(graph, prepared.state), tmp_path / "other" / "model.onnx")
    assert [path.name for path in model_files(tmp_path / "other" / "model.onnx")] == ["model.onnx"]
    assert np.isfinite(OnnxRunner(tmp_path / "other" / "model.onnx", 1)(prepared.inputs)).all()
