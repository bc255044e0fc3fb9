"""The precision of a built engine: the operand types of each of its operations.

Two sources give the same value: the serialized plan, which contains its program as text and can be read without a
device, and the engine inspector's JSON, which needs a device. The plan's text is not documented by NVIDIA; its format
was inferred from plans of TensorRT-RTX 1.7.1.116. An operation or type that is not recognised is absent from the
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

# the names of formats in the plan's text, and in qcheck
_NAMES = {
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
    """The program in a serialized plan's text; it has no operations where this TensorRT writes no text."""
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
    for match in _OPERATION.finditer(text):
        nodes = frozenset(_LAYER.findall(match[3].decode("utf-8", "replace")))
        if nodes:
            inputs = tuple(types.get(name, "") for name in _QUOTED.findall(match[2]))
            yield Operation(nodes, inputs, match[1].decode() in _PRODUCTS)


def spelled(kind: str) -> str:
    """A format's name in qcheck from its name in TensorRT; an unknown name is returned unchanged."""
    return _NAMES.get(kind, kind)


# words of the inspector's strings: "Row major linear FP16 format", "Half", "Thirty-two wide ... Int8 format"
_INSPECTOR_NAMES = (
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
    """The program in ``IEngineInspector``'s JSON at detailed verbosity (``trtexec --exportLayerInfo`` writes it too).

    The keys are documented by TensorRT 8 to 11 or occur in published files ("Format/Datatype", "Datatype", "DataType").
    No JSON of our own engines was read, as that needs a device. A weight is counted as the second input.
    """
    layers = json.loads(text, strict=False).get("Layers", [])
    return Program(tuple(_operation(layer) for layer in layers if isinstance(layer, dict)), {})


def _operation(layer: Mapping[str, Any]) -> Operation:
    inputs = [_type_of(tensor) for tensor in layer.get("Inputs", [])]
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        inputs.insert(1, _format_in(str(weights.get("Type", ""))))
    kind = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}".lower()
    product = any(word in kind for word in _KINDS)
    return Operation(frozenset(_LAYER.findall(str(layer.get("Metadata", "")))), tuple(inputs), product)


def _type_of(tensor: Mapping[str, Any]) -> str:
    return _format_in(
        next((str(tensor[key]) for key in ("Format/Datatype", "Datatype", "DataType") if key in tensor), "")
    )


def _format_in(text: str) -> str:
    return next((name for word, name in _INSPECTOR_NAMES if word.lower() in text.lower()), "")
