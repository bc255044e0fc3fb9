"""What a built engine really computes in: the operand types of each of its operations.

Two sources give the same value: the serialized plan, which carries its program as text and can be read without a
device, and the engine inspector's JSON, which needs one. The plan's text is not documented by NVIDIA; its shape was
read from plans of TensorRT-RTX 1.7.1.116. An operation or type that this reader does not find is absent from its
result, so that a caller can say "not read".
"""

import json
import mmap
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qcheck.build.precision import Operation, Program

_TENSOR = re.compile(rb'\n  (?:sub_)?tensor=\{ ([^\n]*?) ?name="([^"\n]*)"[^\n]*? type=(\w+) \}')
_PAYLOAD = re.compile(rb"const_payload_size=(\d+)")
_OPERATION = re.compile(rb'\n  (\w+)=\{ name=[^\n]*?(?:input|input_args)=\{([^}\n]*)\}[^\n]*? layers="([^"\n]*)"')
_QUOTED = re.compile(rb'"([^"]*)"')
_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PRODUCTS = frozenset({"corrltn", "fully_connected"})  # convolution and matrix product in a plan's text

# a format's name in qcheck <- how the plan's text and the inspector spell it
_SPELLED = {
    "half": "float16",
    "float": "float32",
    "bf16": "bfloat16",
    "b16": "bfloat16",
    "int8": "int8",
    "int4": "int4",
    "fp8_e4m3": "float8_e4m3",
    "fp4_e2m1": "float4_e2m1",
}


def read(plan: Path) -> Program:
    """The program in a serialized plan's text; no operations where this TensorRT writes none."""
    with plan.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        types: dict[bytes, str] = {}
        constants: Counter[str] = Counter()
        for tensor in _TENSOR.finditer(text):
            kind = spelled(tensor[3].decode())
            types.setdefault(tensor[2], kind)
            if payload := _PAYLOAD.search(tensor[1]):
                constants[kind] += int(payload[1])
        return Program(tuple(_operations(text, types)), dict(constants))


def _operations(text: mmap.mmap, types: Mapping[bytes, str]) -> Iterator[Operation]:
    for found in _OPERATION.finditer(text):
        nodes = frozenset(_LAYER.findall(found[3].decode("utf-8", "replace")))
        if nodes:
            inputs = tuple(types.get(name, "") for name in _QUOTED.findall(found[2]))
            yield Operation(nodes, inputs, found[1].decode() in _PRODUCTS)


def spelled(kind: str) -> str:
    """A format's name in qcheck from the builder's; one that is not known stays as it is."""
    return _SPELLED.get(kind, kind)


# the inspector's strings hold one of these: "Row major linear FP16 format", "Half", "Thirty-two wide ... Int8 format"
_INSPECTED = (
    ("FP8", "float8_e4m3"),
    ("E4M3", "float8_e4m3"),
    ("FP4", "float4_e2m1"),
    ("E2M1", "float4_e2m1"),
    ("BF16", "bfloat16"),
    ("BFloat16", "bfloat16"),
    ("FP16", "float16"),
    ("Half", "float16"),
    ("FP32", "float32"),
    ("Float", "float32"),
    ("Int8", "int8"),
    ("Int4", "int4"),
)
_KINDS = ("conv", "gemm", "matmul", "matrixmultiply", "fullyconnected")


def inspected(text: str) -> Program:
    """The same from ``IEngineInspector``'s JSON at detailed verbosity (``trtexec --exportLayerInfo`` writes it too).

    Keys are those that TensorRT 8 to 11 document or that published files show ("Format/Datatype", "Datatype",
    "DataType"); no file of our own was ever read, as that needs a device. A weight is counted as the second input.
    """
    layers = json.loads(text, strict=False).get("Layers", [])
    return Program(tuple(_inspected(layer) for layer in layers if isinstance(layer, dict)), {})


def _inspected(layer: Mapping[str, Any]) -> Operation:
    inputs = [_named_type(tensor) for tensor in layer.get("Inputs", [])]
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        inputs.insert(1, _first(str(weights.get("Type", ""))))
    kind = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}".lower()
    product = any(word in kind for word in _KINDS)
    return Operation(frozenset(_LAYER.findall(str(layer.get("Metadata", "")))), tuple(inputs), product)


def _named_type(tensor: Mapping[str, Any]) -> str:
    return _first(next((str(tensor[key]) for key in ("Format/Datatype", "Datatype", "DataType") if key in tensor), ""))


def _first(text: str) -> str:
    return next((name for word, name in _INSPECTED if word.lower() in text.lower()), "")
