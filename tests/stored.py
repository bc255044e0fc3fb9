"""What stands in a file, read by other means than those that wrote it."""

import numpy as np
from onnx import ModelProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qcheck.model.components import MODULE
from qcheck.quantize import formats


def _layer(name: str, suffix: str) -> str:
    return name.removesuffix(suffix).removesuffix(".T").removesuffix(".weight")


def codes(model: ModelProto) -> dict[str, np.ndarray]:
    """Codes [out, in, ...] of every quantized layer as float32; of NF4 the table values that they name."""
    found = {}
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, tensor in arrays.items():
        if name.endswith("/codes"):
            array = numpy_helper.to_array(tensor).astype(np.float32)
            found[_layer(name, "/codes")] = array.T if name.endswith(".T/codes") else array
    for node in model.graph.node:
        if node.op_type == "MatMulBnb4":
            sides = {a.name: a.i for a in node.attribute}
            packed = numpy_helper.to_array(arrays[node.input[1]])
            levels = np.array(formats.FORMATS["nf4"].levels, np.float32)  # type: ignore[union-attr]
            values = levels[np.stack([packed >> 4, packed & 15], 1)]
            found[_layer(node.name, "/matmul")] = values.reshape(sides["N"], sides["K"])
    return found


def constants(model: ModelProto) -> dict[str, np.ndarray]:
    """Weights [out, in, ...] of the layers that compute with a constant."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    transposed = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Transpose"}
    found = {}
    for node in model.graph.node:
        weight = node.input[1] if node.op_type in {"Conv", "Gemm", "MatMul"} else ""
        source = transposed.get(weight, weight)
        if source in arrays:
            scopes = {prop.key: prop.value for prop in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
            names = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
            if len(names) > 1:
                array = numpy_helper.to_array(arrays[source])
                folded = node.op_type == "MatMul" and source == weight
                found[names[-2].removeprefix(f"{MODULE}.")] = array.T if folded else array
    return found


def decoded(model: ModelProto) -> dict[str, np.ndarray]:
    """What every layer's weight codes stand for, by onnx's reference evaluator; constants as they are."""
    makers = {output: node for node in model.graph.node for output in node.output}
    wanted = [n.output[0] for n in model.graph.node if n.name.endswith("/dequantize") and ".weight" in n.name]
    nodes, queue = [], [*wanted]
    while queue:
        node = makers.get(queue.pop())
        if node is not None and node not in nodes:
            nodes.insert(0, node)
            queue += node.input
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    outputs = [helper.make_empty_tensor_value_info(name) for name in wanted]
    graph = helper.make_graph(nodes, "weights", [], outputs, kept)
    opsets = [entry for entry in model.opset_import if entry.domain == ""]
    part = helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    values = ReferenceEvaluator(part).run(None, {}) if wanted else []
    found = dict(zip(wanted, values, strict=True))
    layers = {_layer(name, "/values"): v.T if name.endswith(".T/values") else v for name, v in found.items()}
    return layers or {k: v for k, v in constants(model).items() if k not in _KEPT}


_KEPT = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
