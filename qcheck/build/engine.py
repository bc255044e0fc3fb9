"""The precision of a built engine: the operand types of each of its operations.

Two sources give the same value: the serialized plan, which contains its program as text and can be read without a
device, and the engine inspector's JSON, which needs a device (``qcheck.device.inspector``). The plan's text is not
documented by NVIDIA; its format was inferred from plans of TensorRT-RTX 1.7.1.116. An operation or type that is not
recognised is absent from the result, so that a caller can say "not read".
"""

import mmap
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from qcheck.device.inspector import ONNX_LAYER, Operation, Program, inspected

__all__ = ["inspected", "read", "spelled"]

_TENSOR = re.compile(rb'\n  (?:sub_)?tensor=\{ ([^\n]*?) ?name="([^"\n]*)"[^\n]*? type=(\w+) \}')
_PAYLOAD = re.compile(rb"const_payload_size=(\d{1,18})(?!\d)")
_OPERATION = re.compile(rb'\n  (\w+)=\{ name=[^\n]*?(?:input|input_args)=\{([^}\n]*)\}[^\n]*? layers="([^"\n]*)"')
_QUOTED = re.compile(rb'"([^"]*)"')
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
    if not plan.stat().st_size:
        return Program((), {})  # nothing can be mapped
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
        nodes = frozenset(ONNX_LAYER.findall(match[3].decode("utf-8", "replace")))
        if nodes:
            inputs = tuple(types.get(name, "") for name in _QUOTED.findall(match[2]))
            yield Operation(nodes, inputs, match[1].decode() in _PRODUCTS)


def spelled(kind: str) -> str:
    """A format's name in qcheck from its name in TensorRT; an unknown name is returned unchanged."""
    return _NAMES.get(kind, kind)
