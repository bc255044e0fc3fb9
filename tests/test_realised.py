"""An engine that computes in other types than were asked is caught, and named, down to one layer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnx.reference
import pytest
from onnx import ModelProto

from qcheck.build import gate
from qcheck.build.builder import RTX, Builder
from qcheck.build.precision import Operation, Program, compare, float32_products
from qcheck.model.arms import Arms
from qcheck.quantize import artifact, contents
from qcheck.result.build import Build, Precision
from qcheck.result.manifest import Layer
from qcheck.spec import recipe, scheme, target
from tests import builder
from tests.conftest import Prepared

CONV = "down_blocks.0.resnets.0.conv1"


def bypass(model: ModelProto, nodes: Sequence[str]) -> None:
    """Let these layers read their input as it is, past QuantizeLinear and DequantizeLinear: weight-only."""
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.name in nodes:
            quantize = makers[makers[node.input[0]].input[0]]
            assert quantize.op_type == "QuantizeLinear"
            node.input[0] = quantize.input[0]


def decode(model: ModelProto, dequantizers: Sequence[str]) -> None:
    """Put the values of these weights in the place of their codes."""
    values = onnx.reference.ReferenceEvaluator
    for node in [n for n in model.graph.node if n.name in dequantizers]:
        kept = [tensor for tensor in model.graph.initializer if tensor.name in node.input]
        output = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT16, None)
        part = onnx.helper.make_graph([node], "weight", [], [output], kept)
        (found,) = values(onnx.helper.make_model(part, opset_imports=model.opset_import)).run(None, {})
        model.graph.node.remove(node)
        model.graph.initializer.append(onnx.numpy_helper.from_array(found, node.output[0]))


def compiled(
    both: Arms, prepared: Prepared, name: str, folder: Path, change: Callable[[ModelProto, list[Layer]], None]
) -> Build:
    """The deployed file of a scheme, changed behind its back, then built for Thor's proxy and read."""
    chosen = scheme.find(name)
    ranges = {"base": prepared.ranges, "adapted": prepared.ranges}
    content = contents.of_adapted(both, chosen, recipe.find("emoji"), "merge-quantize", ranges)  # type: ignore[arg-type]
    path = prepared.exporter.deployed(content, chosen, folder / "model.onnx", {})
    layers = artifact.layers(content, prepared.exporter.sites(chosen.compute))
    model = onnx.load(path)
    change(model, layers)
    onnx.save(model, path)
    made_by, thor = Builder(RTX, "12.0"), target.find("jetson-thor-t5000")
    return gate.run(made_by, thor, path, layers, chosen.compute, builder.SHAPES, folder / "engine")


@builder.needed
@pytest.mark.parametrize(
    ("name", "operands"),
    [
        ("int8", {"int8 x int8": 198}),
        ("fp8", {"float8_e4m3 x float8_e4m3": 198}),
        ("int4-g128-int8", {"int8 x int8": 71, "float16 x int4": 127}),
        ("nvfp4", {"float4_e2m1 x float4_e2m1": 127}),
    ],
)
def test_what_was_asked_is_what_was_built(
    name: str, operands: dict[str, int], demo_arms: Arms, prepared: Prepared, tmp_path: Path
) -> None:
    made = compiled(demo_arms, prepared, name, tmp_path, lambda model, layers: None)
    assert made.status == "built", made.detail
    assert made.realised is not None
    assert made.realised.complete
    assert made.realised.operands == operands
    for format_, promised in made.realised.promised.items():
        assert made.realised.bytes[format_] >= promised


@builder.needed
def test_one_layer_out_of_many_that_fell_back_is_named_and_fails(
    demo_arms: Arms, prepared: Prepared, tmp_path: Path
) -> None:
    def change(model: ModelProto, layers: list[Layer]) -> None:
        bypass(model, [layer.node for layer in layers if layer.name == CONV])

    made = compiled(demo_arms, prepared, "int8", tmp_path, change)
    assert made.status == "fell back"
    assert made.realised is not None
    assert made.realised.operands["int8 x int8"] == 197
    assert made.realised.fell_back == [made.detail]
    assert made.detail.startswith(f"{CONV} runs float16 x ")
    assert made.detail.endswith("asked int8 x int8")


@builder.needed
def test_a_graph_that_is_weight_only_where_both_were_asked_falls_back_everywhere(
    demo_arms: Arms, prepared: Prepared, tmp_path: Path
) -> None:
    made = compiled(
        demo_arms, prepared, "int8", tmp_path, lambda model, layers: bypass(model, [layer.node for layer in layers])
    )
    assert made.status == "fell back"
    assert made.realised is not None
    assert len([said for said in made.realised.fell_back if "asked int8 x int8" in said]) == 198
    assert "int8 x int8" not in made.realised.operands


@builder.needed
def test_weights_that_are_stored_wide_fall_back_although_the_inputs_are_as_asked(
    demo_arms: Arms, prepared: Prepared, tmp_path: Path
) -> None:
    def change(model: ModelProto, layers: list[Layer]) -> None:
        decode(model, [str(layer.dequantizer) for layer in layers[:3]])

    made = compiled(demo_arms, prepared, "int4-g128", tmp_path, change)
    assert made.status == "fell back"
    assert made.realised is not None
    assert made.realised.operands == {"float16 x int4": 124, "float16 x float16": 3}
    assert made.detail.count("runs float16 x float16, asked float16 x int4") == 3


LAYER = Layer(name="a", node="n", dequantizer="a.weight/dequantize", weight="int8", activation="int8", parameters=100)


def _program(*inputs: str, node: str = "n", constants: dict[str, int] | None = None) -> Program:
    return Program((Operation(frozenset({node}), inputs, product=True),), constants or {})


def test_a_layer_that_the_engine_does_not_name_is_unread_not_passed() -> None:
    found = compare([LAYER], "float16", _program("int8", "int8", node="other"))
    assert found.unread == ["a"]
    assert not found.complete
    assert compare([LAYER], "float16", _program("int8", "")).unread == ["a"]


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_of_two_products_fell_back_where_one_of_them_did(first: bool) -> None:
    inputs = [("int8", "int8"), ("float16", "float16")]
    operations = [Operation(frozenset({"n"}), one, product=True) for one in (inputs if first else inputs[::-1])]
    assert compare([LAYER], "float16", Program((*operations,), {})).fell_back == [
        "a runs float16 x float16, asked int8 x int8"
    ]


def test_other_products_in_full_precision_are_a_fall_back() -> None:
    program = Program(
        (
            Operation(frozenset({"n"}), ("int8", "int8"), product=True),
            Operation(frozenset({"kept"}), ("float32", "float32"), product=True),
        ),
        {},
    )
    assert compare([LAYER], "float16", program).fell_back == ["kept runs float32 x float32, asked float16"]
    assert compare([LAYER], "float32", program).complete
    assert compare([LAYER], "float16", program, frozenset({"kept"})).complete
    assert not compare([LAYER], "float16", program, frozenset({"another"})).complete


def test_constants_that_are_fewer_than_promised_are_a_fall_back() -> None:
    assert compare([LAYER], "float16", _program("int8", "int8", constants={"int8": 100})).complete
    short = compare([LAYER], "float16", _program("int8", "int8", constants={"int8": 60, "float16": 80}))
    assert "60 bytes of int8" in short.fell_back[0]


FOUR = LAYER.model_copy(update={"weight": "int4", "activation": None})  # 50 bytes


def _two(named: bool, constants: dict[str, int]) -> Precision:
    """Two weight-only layers; the engine names how the first is decoded, and the second's decoding if ``named``."""
    other = FOUR.model_copy(update={"name": "b", "node": "m", "dequantizer": "b.weight/dequantize"})
    decoded = {"a.weight/dequantize", *({"b.weight/dequantize"} if named else ())}
    operations = (
        Operation(frozenset({"n"}), ("float16", "float16"), product=True),
        Operation(frozenset({"m"}), ("float16", "float16"), product=True),
        Operation(frozenset(decoded), ("int4", "float16"), product=False),
    )
    return compare([FOUR, other], "float16", Program(operations, constants))


def test_a_weight_whose_decoding_the_builder_does_not_name_is_known_by_the_constants() -> None:
    assert _two(named=True, constants={"int4": 100}).complete
    assert _two(named=False, constants={"int4": 100}).complete
    wide = _two(named=False, constants={"int4": 50, "float16": 200})
    assert wide.fell_back == ["b runs float16 x float16, asked float16 x int4"]
    assert wide.operands == {"float16 x int4": 1, "float16 x float16": 1}


def test_bytes_that_no_layer_accounts_for_fail_without_a_layer_being_blamed() -> None:
    short = _two(named=False, constants={"int4": 80})
    assert short.unread == ["b"]
    assert short.fell_back == ["the engine holds 80 bytes of int4 constants, the scheme promises 100"]
    assert _two(named=True, constants={"int4": 96}).complete  # equal constants may be stored once
    assert _two(named=False, constants={}).unread == ["b"]


def test_an_engine_that_says_nothing_is_not_complete_even_where_nothing_was_asked() -> None:
    assert not compare([], "float16", Program((), {})).complete
    assert compare([], None, _program("float32", "float32")).complete
    assert "not read" in compare([], None, Program((), {})).text()


def test_sums_of_bytes_may_differ_by_a_ten_thousandth() -> None:
    """Of 10,000 bytes in a layer whose decoding is not named: by one."""
    layer = FOUR.model_copy(update={"parameters": 20_000})
    one = compare([layer], "float16", _program("float16", "float16", constants={"int4": 1, "float16": 40_000}))
    two = compare([layer], "float16", _program("float16", "float16", constants={"int4": 2, "float16": 40_000}))
    assert one.fell_back == ["a runs float16 x float16, asked float16 x int4"]
    assert two.fell_back == ["the engine holds 2 bytes of int4 constants, the scheme promises 10,000"]


def test_the_products_that_a_file_asks_in_float32_are_those_of_float32_inputs(tmp_path: Path) -> None:
    types = {"wide": onnx.TensorProto.FLOAT, "half": onnx.TensorProto.FLOAT16}
    sides = [
        onnx.helper.make_tensor_value_info(f"{name} {side}", kind, [2, 2])
        for name, kind in types.items()
        for side in "ab"
    ]
    nodes = [onnx.helper.make_node("MatMul", [f"{n} a", f"{n} b"], [f"{n} c"], name=n) for n in types]
    nodes.append(onnx.helper.make_node("Add", ["wide a", "wide b"], ["sum"], name="sum"))
    ends = [onnx.helper.make_tensor_value_info(f"{name} c", kind, [2, 2]) for name, kind in types.items()]
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", sides, ends)), path)
    assert float32_products(path) == {"wide"}
