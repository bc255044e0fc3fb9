"""Simulation and artifact: one numeric core, proven on single layers and on the demo's denoiser."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from qcheck.quantize import fake, formats, plan, sites
from qcheck.quantize import qdq as rewrite
from qcheck.runtime.ort_runner import OnnxRunner
from tests import stored
from tests.conftest import Prepared


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _sqnr(signal: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(signal).sum() / max(np.square(signal - other).sum(), 1e-30)))


def _quantized_sites(graph: ir.Graph) -> dict[str, ir.Node]:
    """The computing node of every layer whose weight comes from a DequantizeLinear, by the layer's name."""
    found = {}
    for node in graph:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            made = node.inputs[1].producer() if node.inputs[1] is not None else None
            made = made.inputs[0].producer() if made is not None and made.op_type == "Transpose" else made
            if made is not None and made.op_type == "DequantizeLinear":
                found[made.name.removesuffix("/dequantize").removesuffix(".T").removesuffix(".weight")] = node
    return found


@pytest.fixture(scope="module")
def artifact(exported: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "q1.onnx"
    rewrite.save(rewrite.quantized(exported.graph, exported.state, exported.plan), path)
    return path


def test_a_layer_whose_weight_is_not_found_would_keep_its_stand_in_and_is_an_error(prepared: Prepared) -> None:
    model = prepared.graph.clone()
    layers = list(sites.find(model.graph))
    place = sites.find(model.graph)["conv_in"]
    place.node.replace_input_with(1, model.graph.inputs[0])
    with pytest.raises(LookupError, match="the weight of conv_in"):
        sites.hollow(model, layers)


def test_every_layer_of_torch_has_its_place_in_the_graph(prepared: Prepared) -> None:
    layers = {name for name, m in prepared.unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    assert set(sites.find(prepared.graph.graph)) == layers


def test_integer_codes_of_all_weights_equal_the_simulation(prepared: Prepared, artifact: Path) -> None:
    found = stored.codes(onnx.load(artifact))
    assert set(found) == set(prepared.plan)
    for layer, numbers in prepared.plan.items():
        assert np.array_equal(found[layer], numbers.codes(prepared.state[f"{layer}.weight"]).numpy()), layer


def test_every_layer_computes_what_the_simulation_computes_on_the_same_input(
    prepared: Prepared, artifact: Path, tmp_path: Path
) -> None:
    """Each layer in place, inside the running artifact: input codes are equal, outputs agree to float rounding.

    (Whole-network outputs cannot: one float's difference in the last bit flips a code on a rounding boundary, and a
    flipped code is a whole step for everything behind it.)
    """
    model = ir.load(artifact)
    watched = {}
    for layer, node in _quantized_sites(model.graph).items():
        quantize = node.inputs[0].producer().inputs[0].producer()
        watched[layer] = (quantize.inputs[0], quantize.outputs[0], node.outputs[0], node.op_type)
    assert set(watched) == set(prepared.plan)
    wanted = {v.name: v for values in watched.values() for v in values[:3]}
    inputs = {v.name for v in model.graph.inputs}
    model.graph.outputs.extend(v for name, v in wanted.items() if name not in inputs)
    path = tmp_path / "watched.onnx"
    ir.save(model, path)
    session = _session(path)
    names = [o.name for o in session.get_outputs()]
    seen = dict(zip(names, session.run(None, prepared.inputs), strict=True)) | prepared.inputs
    for layer, (source, codes, output, kind) in watched.items():
        module, numbers = prepared.unet.get_submodule(layer), prepared.plan[layer]
        x = torch.from_numpy(seen[str(source.name)])
        assert isinstance(numbers.input, plan.Static)
        ours = formats.quantize(x, numbers.input.step, numbers.input.number)
        assert np.array_equal(ours.numpy(), seen[str(codes.name)]), layer
        with fake.simulated(module, {"": numbers}), torch.no_grad():
            expected = module(x) - (module.bias if kind == "MatMul" and module.bias is not None else 0)
        assert _sqnr(expected.numpy(), seen[str(output.name)]) > 100, layer


def test_whole_artifact_and_simulation_err_equally_against_the_reference(prepared: Prepared, artifact: Path) -> None:
    x, t, h = (torch.from_numpy(prepared.inputs[k]) for k in ("sample", "timestep", "encoder_hidden_states"))
    with torch.no_grad():
        full = prepared.unet(x, t, h).sample.numpy()
        with fake.simulated(prepared.unet, prepared.plan) as model:
            simulated = model(x, t, h).sample.numpy()
        restored = prepared.unet(x, t, h).sample.numpy()
    ran = OnnxRunner(artifact, 1)(prepared.inputs)
    assert np.array_equal(full, restored)
    assert _sqnr(full, ran) == pytest.approx(_sqnr(full, simulated), abs=1.0)


def test_weights_alone_agree_over_the_whole_network_to_float_rounding(prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "filled.onnx"
    weights = {
        name: prepared.plan[name.removesuffix(".weight")].fake(value)
        if name.removesuffix(".weight") in prepared.plan
        else value
        for name, value in prepared.state.items()
    }
    rewrite.save(sites.fill(prepared.graph, weights), path)
    ran = OnnxRunner(path, 1)(prepared.inputs)
    kept = {k: v.clone() for k, v in prepared.unet.state_dict().items()}
    prepared.unet.load_state_dict(weights)
    x, t, h = (torch.from_numpy(prepared.inputs[k]) for k in ("sample", "timestep", "encoder_hidden_states"))
    with torch.no_grad():
        simulated = prepared.unet(x, t, h).sample.numpy()
    prepared.unet.load_state_dict(kept)
    assert _sqnr(simulated, ran) > 100


def test_artifact_is_standard_onnx_with_zero_points_of_zero(artifact: Path, prepared: Prepared) -> None:
    model = onnx.load(artifact)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {""}
    zeros = [i for i in model.graph.initializer if i.name.endswith("/zero")]
    assert zeros
    assert all(not onnx.numpy_helper.to_array(i).any() for i in zeros)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("DequantizeLinear") == kinds.count("QuantizeLinear") + len(prepared.plan)


def test_layers_kept_by_the_recipe_stay_in_float(artifact: Path) -> None:
    found = stored.codes(onnx.load(artifact))
    assert not {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"} & set(found)


def test_a_planned_layer_that_the_graph_lacks_is_an_error(prepared: Prepared) -> None:
    planned = dict(prepared.plan) | {"no.such.layer": next(iter(prepared.plan.values()))}
    with pytest.raises(LookupError, match=r"no\.such\.layer"):
        rewrite.quantized(prepared.graph, prepared.state, planned)


def test_layers_that_read_one_value_on_two_steps_have_a_quantizer_each() -> None:
    source = ir.val("x", ir.DataType.FLOAT, (4, 4))
    weight = ir.val("w", const_value=ir.tensor(np.zeros((4, 4), np.float32)))
    nodes = [ir.node("MatMul", [source, weight], name=f"n{place}") for place in range(3)]
    graph = ir.Graph([source], [node.outputs[0] for node in nodes], nodes=nodes, opset_imports={"": 20})
    shared = dict[tuple[str, str, float], ir.Value]()
    for node, step in zip(nodes, (0.5, 0.25, 0.5), strict=True):
        numbers = plan.Static(formats.find("int8"), torch.tensor(step))
        rewrite._quantize_input(graph, sites.Site(node, weight, False), numbers, shared, decoded=False)
    first, second, third = (node.inputs[0] for node in nodes)
    assert first is third is not second
