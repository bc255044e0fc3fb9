"""Rewrite an exported graph to explicit Q/DQ by a plan."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from qcheck.model import initializer
from qcheck.quantize import bound, sites
from qcheck.quantize.fake import Factors
from qcheck.quantize.formats import Float, Format, Table
from qcheck.quantize.plan import Dynamic, Grid, LayerPlan, Plan, Static
from qcheck.quantize.sites import SCOPES, Site, float_type, later, stored


def quantized(
    model: ir.Model,
    state: Mapping[str, torch.Tensor],
    plan: Plan,
    branches: Mapping[str, Factors] | None = None,
    opset: int | None = None,
    decoded: bool = False,
    rank: int | None = None,
) -> ir.Model:
    """A copy of ``model`` filled with ``state`` in which every layer of ``plan`` computes behind explicit Q/DQ.

    Weights become initializers of codes with a DequantizeLinear; inputs pass a QuantizeLinear and a DequantizeLinear,
    shared by the layers that read the same tensor at the same scale. Zero points are 0; biases stay float. NF4 becomes
    ONNX Runtime's MatMulBnb4, dynamic NVFP4 inputs TensorRT's TRT_FP4DynamicQuantize.
    ``decoded`` writes dequantized values instead, in operators that ONNX Runtime has on every machine.
    ``branches`` adds an unmerged adapter beside its layers, in the graph's float type, on the unquantized input. With
    a ``rank`` its factors are inputs of the graph, of that rank (``bound``), and nothing of them is in it.
    ``opset`` raises the version that the file declares, for operators whose meaning it leaves unchanged.

    Raises:
        LookupError: a planned layer is not in the graph; nothing is silently left in float.
    """
    copy = sites.fill(model, state)
    graph = copy.graph
    places = sites.find(graph)
    missing = sorted((set(plan) | set(branches or {})) - set(places))
    if missing:
        raise LookupError(f"{len(missing)} planned layers are not in the exported graph, first {missing[0]}")
    scale = (
        None if rank is None else _input_of(graph, bound.SCALE, (1,), float_type(next(iter(places.values())).weight))
    )
    for layer, factors in (branches or {}).items():
        operands = _constants if rank is None else functools.partial(_operands, rank=rank)
        _add_branch(graph, layer, places[layer], operands(graph, layer, places[layer], factors), scale)
    shared: dict[tuple[str, str, float], ir.Value] = {}
    for layer, numbers in plan.items():
        if numbers.smooth is not None:
            _smooth(graph, layer, places[layer], numbers.smooth)
        if numbers.input is not None:
            _quantize_input(graph, places[layer], numbers.input, shared, decoded)
        weight = functools.partial(_stored_weight, state, layer, numbers)
        _quantize_weight(graph, layer, places[layer], numbers.weight, weight, decoded)
    RemoveUnusedNodesPass()(copy)
    TopologicalSortPass()(copy)
    copy.graph.opset_imports[""] = max(0 if decoded else opset or 0, copy.graph.opset_imports[""])
    copy.graph.opset_imports.update({node.domain: 1 for node in copy.graph if node.domain})
    return copy


def _stored_weight(state: Mapping[str, torch.Tensor], layer: str, numbers: LayerPlan) -> torch.Tensor:
    return numbers.stored(state[f"{layer}.weight"])


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.name} has no input {index}")
    return value


def _constants(graph: ir.Graph, layer: str, site: Site, factors: Factors) -> tuple[ir.Value, ir.Value]:
    """Both operands of a branch as constants."""
    convolution, dtype = site.node.op_type == "Conv", float_type(site.weight)
    down, up = factors
    first = initializer.add(graph, f"{layer}.lora_down", stored(down if convolution else down.t(), dtype))
    second = initializer.add(graph, f"{layer}.lora_up", stored(up[:, :, None, None] if convolution else up.t(), dtype))
    return first, second


def _operands(graph: ir.Graph, layer: str, site: Site, factors: Factors, rank: int) -> tuple[ir.Value, ir.Value]:
    """Both operands of a branch as inputs of the graph, whose shapes ``factors`` have when they are padded."""
    dtype = float_type(site.weight)
    shapes = [tuple(factor.shape) for factor in bound.padded(factors, rank)]
    named = zip(bound.names(layer), shapes, strict=True)
    first, second = (_input_of(graph, name, shape, dtype) for name, shape in named)
    if site.node.op_type == "Conv":
        return first, second
    turns = [ir.node("Transpose", [value], attributes={"perm": [1, 0]}) for value in (first, second)]
    for turn, value in zip(turns, (first, second), strict=True):
        turn.name, turn.outputs[0].name = f"{value.name}/transpose", f"{value.name}.T"
    graph.insert_before(site.node, turns)
    return turns[0].outputs[0], turns[1].outputs[0]


def _input_of(graph: ir.Graph, name: str, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
    """A new input of the graph."""
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value


def _add_branch(
    graph: ir.Graph, layer: str, site: Site, operands: tuple[ir.Value, ir.Value], scale: ir.Value | None
) -> None:
    """Replace the layer's output by output + scale up(down(input)) for all of its readers."""
    node = site.node
    output, source = node.outputs[0], _input(node, 0)
    readers = list(output.uses())
    first, second = operands
    if node.op_type == "Conv":
        inner = ir.node("Conv", [source, first], attributes=dict(node.attributes), name=f"{layer}.lora_down/conv")
        outer = ir.node("Conv", [inner.outputs[0], second], name=f"{layer}.lora_up/conv")
    else:
        inner = ir.node("MatMul", [source, first], name=f"{layer}.lora_down/matmul")
        outer = ir.node("MatMul", [inner.outputs[0], second], name=f"{layer}.lora_up/matmul")
    inner.outputs[0].name, outer.outputs[0].name = f"{layer}.lora_inner", f"{layer}.lora_delta"
    branch = [inner, outer]
    if scale is not None:
        branch.append(ir.node("Mul", [outer.outputs[0], scale], name=f"{layer}.lora/scale"))
        branch[-1].outputs[0].name = f"{layer}.lora_scaled"
    total = ir.node("Add", [output, branch[-1].outputs[0]], name=f"{layer}.lora/add")
    total.outputs[0].name = f"{layer}.lora_sum"
    graph.insert_after(node, [*branch, total])
    for use in readers:
        use.node.replace_input_with(use.idx, total.outputs[0])
    for index, value in enumerate(graph.outputs):
        if value is output:  # the sum takes over the graph output and its name
            output.name, total.outputs[0].name = f"{layer}.float", output.name
            total.outputs[0].shape, total.outputs[0].type = output.shape, output.type
            graph.outputs[index] = total.outputs[0]


def _smooth(graph: ir.Graph, layer: str, site: Site, factor: torch.Tensor) -> None:
    """Multiply the layer's input by a factor for each feature; the stored weight is already divided by it."""
    tape = _Tape(graph, f"{layer}.smooth", float_type(site.weight))
    source = _input(site.node, 0)
    product = tape.add("Mul", [source, tape.constant("factor", stored(factor, tape.dtype))], "multiply", "values")
    product.type, product.shape = source.type, source.shape
    graph.insert_before(site.node, tape.nodes)
    site.node.replace_input_with(0, product)


def _quantize_input(
    graph: ir.Graph,
    site: Site,
    numbers: Static | Dynamic,
    shared: dict[tuple[str, str, float], ir.Value],
    decoded: bool,
) -> None:
    source, dtype = _input(site.node, 0), float_type(site.weight)
    unit = numbers.step if isinstance(numbers, Static) else numbers.factor
    key = (str(source.name), numbers.number.name, float(unit))
    if key not in shared:
        tape = _Tape(graph, f"{source.name}/{len(shared)}", dtype)
        if isinstance(numbers, Static):
            step = tape.constant("scale", stored(unit, dtype))
            zero = tape.constant("zero", np.zeros((), _CODES[numbers.number.name]))
            codes = tape.add("QuantizeLinear", [source, step, zero], "quantize", "codes")
            shared[key] = tape.add("DequantizeLinear", [codes, step, zero], "dequantize", "values")
        else:
            shared[key] = (_computed_blocks if decoded else _dynamic_blocks)(tape, source, numbers)
        graph.insert_before(site.node, tape.nodes)
    site.node.replace_input_with(0, shared[key])


class _Tape:
    """New nodes and constants under one name, in the order of computation."""

    def __init__(self, graph: ir.Graph, name: str, dtype: ir.DataType) -> None:
        self.graph, self.name, self.dtype, self.nodes = graph, name, dtype, list[ir.Node]()

    def constant(self, part: str, array: np.ndarray) -> ir.Value:
        return initializer.add(self.graph, f"{self.name}/{part}", array)

    def add(
        self, operator: str, inputs: list[ir.Value], part: str, output: str = "", **attributes: int | list[int]
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes=attributes, name=f"{self.name}/{part}")
        node.outputs[0].name = f"{self.name}/{output or f'{part}_out'}"
        self.nodes.append(node)
        return node.outputs[0]

    def steps(self, codes: ir.Value, factor: ir.Value) -> ir.Value:
        """Steps in the compute type from their codes and the float32 factor."""
        steps = self.add("DequantizeLinear", [codes, factor], "steps")
        return steps if self.dtype == ir.DataType.FLOAT else self.add("Cast", [steps], "cast", to=int(self.dtype))


def _dynamic_blocks(tape: _Tape, source: ir.Value, numbers: Dynamic) -> ir.Value:
    """TensorRT's own operator, which returns E2M1 codes and E4M3 steps of blocks along the last axis."""
    factor = tape.constant("scale", numbers.factor.numpy())
    quantize = ir.node(
        "TRT_FP4DynamicQuantize",
        [source, factor],
        domain="trt",
        attributes={"axis": -1, "block_size": numbers.block, "scale_type": int(_holder_type(numbers.holder))},
        num_outputs=2,
        name=f"{tape.name}/quantize",
    )
    codes, steps = quantize.outputs
    codes.name, steps.name = f"{tape.name}/codes", f"{tape.name}/steps_codes"
    codes.dtype, steps.dtype = ir.DataType.FLOAT4E2M1, _holder_type(numbers.holder)
    tape.nodes.append(quantize)
    values = [codes, tape.steps(steps, factor)]
    return tape.add("DequantizeLinear", values, "dequantize", "values", axis=-1, block_size=numbers.block)


def _holder_type(holder: Format) -> ir.DataType:
    return ir.DataType.from_numpy(_CODES[holder.name])


def _computed_blocks(tape: _Tape, source: ir.Value, numbers: Dynamic) -> ir.Value:
    """The same values in standard operators: the expressions of ``formats.block_scale`` and ``Float.nearest``."""

    def number(part: str, value: float) -> ir.Value:
        return tape.constant(part, np.array(value, np.float32))

    element, holder = numbers.number, numbers.holder
    last = source.shape[-1] if source.shape is not None else None
    if not isinstance(last, int) or not isinstance(element, Float):
        raise TypeError(f"{source.name}: blocks need a known last axis and a floating-point format")
    leading = [0] * (len(source.shape or ()) - 1)  # 0: that axis stays as it is
    split = tape.constant("split", np.array([*leading, last // numbers.block, numbers.block], np.int64))
    joined = tape.constant("join", np.array([*leading, last], np.int64))
    factor = number("factor", float(numbers.factor))
    blocks = tape.add("Reshape", [source, split], "blocks")
    axis = tape.constant("axis", np.array([-1], np.int64))
    absmax = tape.add("ReduceMax", [tape.add("Abs", [blocks], "abs"), axis], "absmax", keepdims=1)
    exact = tape.add("Div", [tape.add("Div", [absmax, number("limit", element.limit)], "unit"), factor], "wanted")
    capped = tape.add("Min", [exact, number("holder_limit", holder.limit)], "capped")
    stored = tape.add("Cast", [capped], "stored", to=int(_holder_type(holder)))
    step = tape.add("Mul", [tape.add("Cast", [stored], "steps_codes_float", to=int(ir.DataType.FLOAT)), factor], "step")
    empty = tape.add("Equal", [step, number("zero", 0.0)], "empty")
    divisor = tape.add("Where", [empty, number("one", 1.0), step], "divisor")
    ratio = tape.add("Div", [blocks, divisor], "ratio")
    inside = tape.add("Clip", [ratio, number("lowest", -element.limit), number("highest", element.limit)], "inside")
    spacing = number("spacing0", 2.0 ** (element.smallest - element.mantissa))
    size = tape.add("Abs", [inside], "size")
    exponent = element.smallest + 1
    while 2.0**exponent <= element.limit:
        above = tape.add("GreaterOrEqual", [size, number(f"binade{exponent}", 2.0**exponent)], f"above{exponent}")
        wider = number(f"spacing{exponent}", 2.0 ** (exponent - element.mantissa))
        spacing = tape.add("Where", [above, wider, spacing], f"choose{exponent}")
        exponent += 1
    rounded = tape.add("Round", [tape.add("Div", [inside, spacing], "grid")], "rounded")
    codes = tape.add("Mul", [rounded, spacing], "codes")
    return tape.add("Reshape", [tape.add("Mul", [codes, step], "scaled"), joined], "values_blocks", "values")


def dequantizer(layer: str, site: Site, grid: Grid) -> str | None:
    """The name of the node that decodes a layer's weight; None where the weight is a constant or a table of values."""
    plain = grid.granularity == "none" or isinstance(grid.number, Table)
    return None if plain else f"{_tape_name(layer, site.transposed)}/dequantize"


def _tape_name(layer: str, transposed: bool) -> str:
    return f"{layer}.weight{_TRANSPOSED if transposed else ''}"


def _quantize_weight(
    graph: ir.Graph, layer: str, site: Site, grid: Grid, weight: Callable[[], torch.Tensor], decoded: bool
) -> None:
    """Replace the weight by codes and a DequantizeLinear; by constants for bare casts and decoded files.

    Codes are computed when they are written, layer by layer.
    """
    turn, dtype = site.transposed, float_type(site.weight)
    if decoded or grid.granularity == "none":
        site.weight.const_value = later(site.weight, lambda: stored(_turned(grid.fake(weight()), turn), dtype))
        return
    if isinstance(grid.number, Table):
        _look_up(graph, layer, site, grid, grid.number, weight())
        return
    tape, code = _Tape(graph, _tape_name(layer, turn), dtype), _CODES[grid.number.name]
    integers = ir.Value(
        name=f"{tape.name}/codes", type=ir.TensorType(ir.DataType.from_numpy(code)), shape=site.weight.shape
    )
    integers.const_value = later(
        integers, lambda: _turned(grid.codes(weight()), turn).contiguous().numpy().astype(code)
    )
    graph.register_initializer(integers)
    axis = {"axis": 1 if turn else 0}
    step = grid.step if grid.held is None else grid.held.codes
    if grid.block is not None:
        step, axis = step.view(_outputs(site), -1), {"axis": 0 if turn else 1, "block_size": grid.block}
        step = step.t() if turn else step
    elif len(step) == 1:
        step, axis = step.view(()), {}
    if grid.held is None:
        scales = tape.constant("scale", stored(step, tape.dtype))
    else:
        step_codes = tape.constant("scale_codes", step.contiguous().numpy().astype(_CODES[grid.held.number.name]))
        scales = tape.steps(step_codes, tape.constant("scale_factor", grid.held.factor.numpy()))
    values_out = tape.add("DequantizeLinear", [integers, scales], "dequantize", "values", **axis)
    producer = _input(site.node, 1).producer()
    if producer is not None:  # case 2: the Transpose reads the dequantized weight
        graph.insert_before(producer, tape.nodes)
        producer.replace_input_with(0, values_out)
    else:
        graph.insert_before(site.node, tape.nodes)
        site.node.replace_input_with(1, values_out)


def _turned(weight: torch.Tensor, turn: bool) -> torch.Tensor:
    return weight.t() if turn else weight


def _outputs(site: Site) -> int:
    """The outputs of a layer."""
    outputs = site.weight.shape[-1 if site.transposed else 0] if site.weight.shape is not None else None
    if not isinstance(outputs, int):
        raise TypeError(f"{site.weight.name} has no fixed shape")
    return outputs


def _look_up(graph: ir.Graph, layer: str, site: Site, grid: Grid, table: Table, weight: torch.Tensor) -> None:
    """Replace the layer by ONNX Runtime's MatMulBnb4: table indices, two a byte, the first in the high half."""
    outputs, inputs = weight.shape
    tape = _Tape(graph, f"{layer}.weight", float_type(site.weight))
    places = table.indices(weight.reshape(len(grid.step), -1) / grid.step[:, None]).flatten().to(torch.uint8)
    packed = tape.constant("places", (places[::2] * 16 + places[1::2]).numpy())
    absmax = tape.constant("absmax", stored(grid.step, tape.dtype))
    node = ir.node(
        "MatMulBnb4",
        [_input(site.node, 0), packed, absmax],
        domain="com.microsoft",
        attributes={"K": inputs, "N": outputs, "block_size": grid.block or 0, "quant_type": 1},
        name=f"{tape.name}/matmul",
    )
    node.outputs[0].name = f"{tape.name}/product"
    tape.nodes.append(node)
    result, product = site.node.outputs[0], node.outputs[0]
    product.type, product.shape = result.type, result.shape
    if site.node.op_type == "Gemm" and len(site.node.inputs) > 2:
        product = tape.add("Add", [product, _input(site.node, 2)], "bias", "sum")
    graph.insert_before(site.node, tape.nodes)
    for use in list(result.uses()):
        use.node.replace_input_with(use.idx, product)


_CODES = {
    "int8": np.dtype(np.int8),
    "int4": np.dtype(ml_dtypes.int4),
    "float8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "float4_e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
}
_TRANSPOSED = ".T"


def save(model: ir.Model, path: Path) -> None:
    """Write the model without torch's tracing metadata; beyond protobuf's 2 GB tensors go to ``<name>.data`` beside it.

    Tensors of a model that was read from such a pair still refer to it; those that go into the file are read here.
    """
    for node in model.graph:
        scopes = node.metadata_props.get(SCOPES)
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[SCOPES] = scopes
    values = [value for value in model.graph.initializers.values() if value.const_value is not None]
    if sum(value.const_value.nbytes for value in values if value.const_value is not None) > _INLINE:
        ir.save(model, path, external_data=f"{path.name}.data")
        return
    for value in values:
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    ir.save(model, path)


_INLINE = 1_500_000_000
