"""Fill an exported graph with weights, and rewrite it to explicit Q/DQ by a plan.

Cases, by how torch's exporter leaves a layer:
1. ``Conv(x, W, b)`` and ``Gemm(x, W, b, transB=1)``: W is an initializer [out, in, ...].
2. ``MatMul(x, Transpose(W))``: W is an initializer [out, in].
3. ``MatMul(x, V)``: the exporter folded the transpose; V is an initializer [in, out].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from qcheck.model.export import MODULE
from qcheck.quantize.fake import Factors
from qcheck.quantize.formats import Format
from qcheck.quantize.plan import LayerPlan, Plan

_SCOPES = "pkg.torch.onnx.name_scopes"
_COMPUTING = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Site:
    """Where one layer computes: its node, the value that holds its weight, and whether that is [in, out]."""

    node: ir.Node
    weight: ir.Value
    transposed: bool


def _layer(node: ir.Node) -> str:
    """The torch module that this node came from, without the entry's prefix."""
    scopes = node.metadata_props.get(_SCOPES, "")
    names = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    return names[-2].removeprefix(f"{MODULE}.") if len(names) > 1 else ""


def _holder(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """The initializer behind a weight input and whether a Transpose stands between (case 2)."""
    if value is None:
        return None
    if value.const_value is not None and value.is_initializer():
        return value, False
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose":
        source = producer.inputs[0]
        if source is not None and source.is_initializer():
            return source, True
    return None


def sites(graph: ir.Graph) -> dict[str, Site]:
    """The computing node of every layer with a weight, by the layer's name in torch."""
    found = {}
    for node in graph:
        if node.op_type in _COMPUTING and len(node.inputs) > 1:
            held = _holder(node.inputs[1])
            if held is not None:
                folded = node.op_type == "MatMul" and not held[1]
                found[_layer(node)] = Site(node, held[0], transposed=folded)
    return found


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, type=None, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))
    value.dtype = ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def _stored(values: torch.Tensor, dtype: ir.DataType) -> np.ndarray:
    """``values`` as the numpy array of the graph's float type."""
    return values.detach().contiguous().numpy().astype(dtype.numpy())


def fill(model: ir.Model, state: Mapping[str, torch.Tensor]) -> ir.Model:
    """A copy of ``model`` whose layers hold the weights of ``state`` (``<layer>.weight``); other tensors are shared.

    Raises:
        KeyError: ``state`` lacks a layer of the graph.
    """
    copy = model.clone()
    for layer, site in sites(copy.graph).items():
        weight = state[f"{layer}.weight"]
        array = _stored(weight.t() if site.transposed else weight, _float_type(site.weight))
        site.weight.const_value = ir.tensor(array, name=site.weight.name)
    return copy


def _float_type(value: ir.Value) -> ir.DataType:
    if value.const_value is None:
        raise ValueError(f"{value.name} has no constant")
    return value.const_value.dtype


def quantized(
    model: ir.Model,
    state: Mapping[str, torch.Tensor],
    plan: Plan,
    branches: Mapping[str, Factors] | None = None,
    opset: int | None = None,
) -> ir.Model:
    """A copy of ``model`` filled with ``state`` in which every layer of ``plan`` computes behind explicit Q/DQ.

    Weights become initializers of codes with a DequantizeLinear; inputs pass a QuantizeLinear and a DequantizeLinear,
    shared by the layers that read the same tensor at the same scale. Zero points are 0; biases stay float.
    ``branches`` adds an unmerged adapter beside its layers, in the graph's float type, on the unquantized input.
    ``opset`` raises the version that the file declares, for operators whose meaning it leaves unchanged.

    Raises:
        LookupError: a planned layer is not in the graph; nothing is silently left in float.
    """
    copy = fill(model, state)
    graph = copy.graph
    places = sites(graph)
    missing = sorted((set(plan) | set(branches or {})) - set(places))
    if missing:
        raise LookupError(f"{len(missing)} planned layers are not in the exported graph, first {missing[0]}")
    for layer, factors in (branches or {}).items():
        _add_branch(graph, layer, places[layer], factors)
    shared: dict[tuple[str, str, float], ir.Value] = {}
    for layer, numbers in plan.items():
        if numbers.activation is not None and numbers.activation_format is not None:
            _quantize_input(graph, places[layer], numbers.activation, numbers.activation_format, shared)
        _quantize_weight(graph, layer, places[layer], numbers, state[f"{layer}.weight"])
    RemoveUnusedNodesPass()(copy)
    TopologicalSortPass()(copy)
    copy.graph.opset_imports[""] = max(opset or 0, copy.graph.opset_imports[""])
    return copy


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.name} has no input {index}")
    return value


def _add_branch(graph: ir.Graph, layer: str, site: Site, factors: Factors) -> None:
    """Make it output + up(down(input)); the layer's other readers then read the sum."""
    node, dtype = site.node, _float_type(site.weight)
    output, source = node.outputs[0], _input(node, 0)
    readers = list(output.uses())
    down, up = factors
    convolution = node.op_type == "Conv"
    first = _constant(graph, f"{layer}.lora_down", _stored(down if convolution else down.t(), dtype))
    second = _constant(graph, f"{layer}.lora_up", _stored(up[:, :, None, None] if convolution else up.t(), dtype))
    if convolution:
        inner = ir.node("Conv", [source, first], attributes=dict(node.attributes), name=f"{layer}.lora_down/conv")
        outer = ir.node("Conv", [inner.outputs[0], second], name=f"{layer}.lora_up/conv")
    else:
        inner = ir.node("MatMul", [source, first], name=f"{layer}.lora_down/matmul")
        outer = ir.node("MatMul", [inner.outputs[0], second], name=f"{layer}.lora_up/matmul")
    total = ir.node("Add", [output, outer.outputs[0]], name=f"{layer}.lora/add")
    inner.outputs[0].name, outer.outputs[0].name = f"{layer}.lora_inner", f"{layer}.lora_delta"
    total.outputs[0].name = f"{layer}.lora_sum"
    graph.insert_after(node, [inner, outer, total])
    for use in readers:
        use.node.replace_input_with(use.idx, total.outputs[0])
    for index, value in enumerate(graph.outputs):
        if value is output:  # the sum takes over the graph output and its name
            output.name, total.outputs[0].name = f"{layer}.float", output.name
            total.outputs[0].shape, total.outputs[0].type = output.shape, output.type
            graph.outputs[index] = total.outputs[0]


def _quantize_input(
    graph: ir.Graph,
    site: Site,
    activation: torch.Tensor,
    number: Format,
    shared: dict[tuple[str, str, float], ir.Value],
) -> None:
    source = _input(site.node, 0)
    key = (str(source.name), number.name, float(activation))
    if key not in shared:
        name = f"{source.name}/{len(shared)}"
        step = _constant(graph, f"{name}/scale", _stored(activation, _float_type(site.weight)))
        zero = _constant(graph, f"{name}/zero", np.zeros((), _CODES[number.name]))
        codes = ir.node("QuantizeLinear", [source, step, zero], name=f"{name}/quantize")
        values = ir.node("DequantizeLinear", [codes.outputs[0], step, zero], name=f"{name}/dequantize")
        codes.outputs[0].name, values.outputs[0].name = f"{name}/codes", f"{name}/values"
        graph.insert_before(site.node, [codes, values])
        shared[key] = values.outputs[0]
    site.node.replace_input_with(0, shared[key])


def _quantize_weight(graph: ir.Graph, layer: str, site: Site, numbers: LayerPlan, weight: torch.Tensor) -> None:
    codes, step = numbers.weight_codes(weight), numbers.weight
    axis = {"axis": 1 if site.transposed else 0}
    if numbers.block is not None:
        step, axis = step.view(len(weight), -1), {"axis": 0 if site.transposed else 1, "block_size": numbers.block}
    elif len(step) == 1:
        step, axis = step.view(()), {}
    if site.transposed:
        codes, step = codes.t(), step.t() if numbers.block is not None else step
    array = codes.contiguous().numpy().astype(_CODES[numbers.weight_format.name])
    name = f"{layer}.weight{_TRANSPOSED if site.transposed else ''}"
    integers = _constant(graph, f"{name}/codes", array)
    scales = _constant(graph, f"{name}/scale", _stored(step, _float_type(site.weight)))
    node = ir.node("DequantizeLinear", [integers, scales], attributes=axis, name=f"{name}/dequantize")
    node.outputs[0].name = f"{name}/values"
    producer = _input(site.node, 1).producer()
    if producer is not None:  # case 2: the Transpose reads the dequantized weight
        graph.insert_before(producer, node)
        producer.replace_input_with(0, node.outputs[0])
    else:
        graph.insert_before(site.node, node)
        site.node.replace_input_with(1, node.outputs[0])


_CODES = {
    "int8": np.dtype(np.int8),
    "int4": np.dtype(ml_dtypes.int4),
    "float8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
}
_TRANSPOSED = ".T"


def stored_codes(model: ir.Model) -> dict[str, np.ndarray]:
    """Codes [out, in, ...] of every quantized layer as they stand in the artifact, as float32."""
    found = {}
    for name, value in model.graph.initializers.items():
        if name.endswith("/codes") and value.const_value is not None:
            layer = name.removesuffix("/codes")
            array = value.const_value.numpy().astype(np.float32)
            transposed = layer.endswith(_TRANSPOSED)
            found[layer.removesuffix(_TRANSPOSED).removesuffix(".weight")] = array.T if transposed else array
    return found


def save(model: ir.Model, path: Path) -> None:
    """Write the model without torch's tracing notes; tensors beyond protobuf's 2 GB go to ``<name>.data`` beside it."""
    for node in model.graph:
        scopes = node.metadata_props.get(_SCOPES)
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[_SCOPES] = scopes
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if size > _INLINE else None)


_INLINE = 1_500_000_000
