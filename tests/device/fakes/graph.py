"""What the fake TensorRT and the fake trtexec know of an ONNX file: bindings, values, and the inspector's JSON.

It is copied beside them, so it imports nothing of this project.
"""

import functools
import json
from pathlib import Path

import numpy as np
import onnx

Bindings = list[tuple[str, str, str, tuple[int, ...]]]  # side, name, type by TensorRT, shape with -1

TYPES = {1: "FLOAT", 10: "HALF", 16: "BF16", 7: "INT64", 6: "INT32", 9: "BOOL"}
NUMPY = {"FLOAT": "f4", "HALF": "f2", "BF16": "u2", "INT64": "i8", "INT32": "i4", "BOOL": "?"}
_WORDS = {"FLOAT": "Float", "HALF": "Half", "INT8": "Int8", "INT4": "Int4", "FP8": "FP8", "BF16": "BFloat16"}
_QUANTIZED = {3: "INT8", 22: "INT4", 17: "FP8"}
_PRODUCTS = {"Conv": "CaskConvolution", "MatMul": "gemm", "Gemm": "gemm"}


def bindings(path: str) -> Bindings:
    graph = graph_of(path)
    held = {tensor.name for tensor in graph.initializer}
    sides = (("INPUT", [t for t in graph.input if t.name not in held]), ("OUTPUT", graph.output))
    return [(side, t.name, TYPES[t.type.tensor_type.elem_type], _shape(t)) for side, tensors in sides for t in tensors]


def _shape(tensor: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.type.tensor_type.shape.dim)


def symbols(path: str) -> dict[str, list[str]]:
    """The names of dynamic axes by tensor, empty where an axis is fixed."""
    graph = graph_of(path)
    return {t.name: [d.dim_param for d in t.type.tensor_type.shape.dim] for t in (*graph.input, *graph.output)}


def resolved(path: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of all bindings where inputs have ``shapes``; -1 where an axis stays open."""
    named, axes = symbols(path), {}
    for name, shape in shapes.items():
        axes.update({symbol: size for symbol, size in zip(named[name], shape, strict=True) if symbol})
    return {
        name: tuple(
            axes.get(symbol, -1) if size == -1 else size for symbol, size in zip(named[name], shape, strict=True)
        )
        for _, name, _, shape in bindings(path)
    }


def run(path: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = _session(path, Path(path).stat().st_mtime_ns)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@functools.lru_cache(maxsize=4)
def _session(path: str, _changed: int) -> "onnxruntime.InferenceSession":  # noqa: F821
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@functools.lru_cache(maxsize=8)
def _graph(path: str, _changed: int) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


def graph_of(path: str) -> onnx.GraphProto:
    return _graph(path, Path(path).stat().st_mtime_ns)


def inspector(path: str, major: int, detailed: bool, faults: dict) -> str:
    """The inspector's JSON in the dialect of a release."""
    graph = graph_of(path)
    nodes = [node.name for node in graph.node]
    if faults.get("fused"):
        kinds = [("{ForeignNode[" + f"{nodes[0]}...{nodes[-1]}" + "]}", "Myelin", nodes, ["HALF"])]
    else:
        kinds = [_layer(node, graph, faults) for node in graph.node if node.op_type in (*_PRODUCTS, "DequantizeLinear")]
    layers = [_described(*kind, major) if detailed else kind[0] for kind in kinds]
    tensors = bindings(path)
    known = (
        {"Bindings": [name for _, name, _, _ in tensors]}
        if major < 11
        else {"I/O Tensors": [{"Name": n, "IOMode": s.title(), "DataType": _WORDS[t]} for s, n, t, _ in tensors]}
    )
    return json.dumps({"Layers": layers, **known})


def _layer(node: onnx.NodeProto, graph: onnx.GraphProto, faults: dict) -> tuple[str, str, list[str], list[str]]:
    """Name, kind, ONNX nodes and operand types of the layer that computes a node."""
    if node.op_type == "DequantizeLinear":
        return node.name, "kgen", [node.name], [_stored(node.input[0], graph)]
    makers = {output: maker for maker in graph.node for output in maker.output}
    decoders = [makers.get(name) for name in node.input[:2]]
    decoded = [maker for maker in decoders if maker is not None and maker.op_type == "DequantizeLinear"]
    types = ["HALF", "HALF"]
    if len(decoded) == 2 and not faults.get("fell_back"):
        types = [_stored(maker.input[0], graph) for maker in decoded]
    return node.name, _PRODUCTS[node.op_type], [node.name, *(maker.name for maker in decoded)], types


def _stored(name: str, graph: onnx.GraphProto) -> str:
    """The quantized type of a constant or of what a QuantizeLinear makes."""
    makers = {output: maker for maker in graph.node for output in maker.output}
    if name in makers:
        name = makers[name].input[2]
    return next(_QUANTIZED[tensor.data_type] for tensor in graph.initializer if tensor.name == name)


def _described(name: str, kind: str, nodes: list[str], types: list[str], major: int) -> dict:
    def tensor(index: int, word: str) -> dict:
        place = {"Name": f"{name}.{index}", "Location": "Device", "Dimensions": [1]}
        if major < 11:
            return {**place, "Format/Datatype": word}
        return {**place, "Format": f"Row major linear {word} format (kLINEAR)", "DataType": word}

    words = [_WORDS[word] for word in types]
    layer = {"Name": name, "LayerType": kind, "Inputs": [tensor(0, words[0])], "Outputs": [tensor(9, "Half")]}
    if kind == "CaskConvolution":
        layer |= {"ParameterType": "Convolution", "Weights": {"Type": words[1], "Count": 1}}
    elif len(words) > 1:
        layer["Inputs"].append(tensor(1, words[1]))
    return {**layer, "Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)}


def read_faults(folder: Path) -> dict:
    """What goes wrong here: faults.json in a folder, where there is one."""
    path = folder / "faults.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
