"""The inspector's JSON in the dialects of TensorRT 10 and 11, and the precision that it tells."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from qcheck.device import inspector
from qcheck.device.bundle import Layer
from qcheck.device.inspector import Operation, inspected, precision

W8A8 = Layer("a", "conv_a", "a.weight/dequantize", "int8", "int8")
W4 = Layer("b", "linear_b", "b.weight/dequantize", "int4", None)


@dataclass(frozen=True)
class Dialect:
    """How a release writes a tensor."""

    release: str

    def tensor(self, word: str, *shape: int) -> dict[str, Any]:
        place: dict[str, Any] = {"Name": "x", "Location": "Device", "Dimensions": list(shape)}
        if self.release == "10":
            return {**place, "Format/Datatype": word}
        key = "DataType" if self.release == "11" else "Datatype"
        return {**place, "Format": "Row major linear FP32 format (kLINEAR)", key: word}


def layer(kind: str, nodes: list[str], inputs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"Name": "n", "LayerType": kind, "Inputs": inputs, "Metadata": "\x1e".join(map(_onnx, nodes)), **more}


def _onnx(node: str) -> str:
    return f"[ONNX Layer: {node}]"


def text(*layers: Any) -> str:
    return json.dumps({"Layers": list(layers), "I/O Tensors": []})


@pytest.mark.parametrize("release", ["10", "11", "11 of Myelin"])
def test_operands_are_read_in_every_dialect(release: str) -> None:
    tensor = Dialect(release).tensor
    found = inspected(
        text(
            layer(
                "CaskConvolution",
                ["conv_a"],
                [tensor("Thirty-two wide channel vectorized row major Int8 format")],
                Weights={"Type": "Int8"},
            ),
            layer("gemm", ["linear_b"], [tensor("Half"), tensor("FP8")]),
            layer("gemm", ["linear_c"], [tensor("BFloat16")], Constants=[tensor("Float", 1), tensor("E2M1", 64, 32)]),
            layer("kgen", ["add"], [tensor("Float")]),
        )
    )
    assert found.operations == (
        Operation(frozenset({"conv_a"}), ("int8", "int8"), product=True),
        Operation(frozenset({"linear_b"}), ("float16", "float8_e4m3"), product=True),
        Operation(frozenset({"linear_c"}), ("bfloat16", "float4_e2m1"), product=True),
        Operation(frozenset({"add"}), ("float32",), product=False),
    )


def test_layers_without_details_cannot_be_told() -> None:
    found = precision([W8A8], "float16", inspected(text("conv_a + relu", "linear_b")))
    assert (found["status"], found["unread"], found["products"]) == ("fused, cannot be told", ["a"], 0)


def test_an_engine_that_says_nothing_is_never_as_asked() -> None:
    assert precision([], "float16", inspected("{}"))["status"] == "fused, cannot be told"


def test_a_weight_only_layer_is_as_asked_where_its_weight_is_decoded_by_name() -> None:
    tensor = Dialect("11").tensor
    product = layer("gemm", ["linear_b"], [tensor("Half"), tensor("Half")])
    decoder = layer("kgen", ["b.weight/dequantize"], [tensor("Int4")])
    assert precision([W4], "float16", inspected(text(product, decoder)))["operands"] == {"float16 x int4": 1}
    found = precision([W4], "float16", inspected(text(product)))
    assert (found["status"], found["unread"]) == ("fused, cannot be told", ["b"])


def test_a_product_in_float32_outside_of_the_quantized_layers_fell_back() -> None:
    tensor = Dialect("10").tensor
    good = layer("gemm", ["conv_a"], [tensor("Int8"), tensor("Int8")])
    wide = layer("gemm", ["attention"], [tensor("Float"), tensor("Float")])
    found = precision([W8A8], "float16", inspected(text(good, wide)))
    assert found["status"] == "fell back"
    assert found["fell_back"] == ["attention runs float32 x float32, asked float16"]
    assert precision([W8A8], "float32", inspected(text(good, wide)))["status"] == inspector.AS_ASKED


def test_one_layer_that_fell_back_outweighs_another_that_cannot_be_told() -> None:
    tensor = Dialect("10").tensor
    wide = layer("gemm", ["conv_a"], [tensor("Half"), tensor("Int8")])
    found = precision([W8A8, W4], "float16", inspected(text(wide)))
    assert found == {
        "status": "fell back",
        "layers": 2,
        "products": 1,
        "operands": {"float16 x int8": 1},
        "fell_back": ["a runs float16 x int8, asked int8 x int8"],
        "unread": ["b"],
    }
