"""The weights that an ONNX file computes with, whoever wrote it: decoded values, and the grid that they lie on.

Constants are computed node by node, by operators that keep the number of elements, so that no file can ask for much
more memory than it has bytes. Weights are read from operators that multiply by a constant: ``MatMul``, ``Gemm`` and
``Conv`` behind any layout of Q/DQ, ``QLinearMatMul`` and ``QLinearConv``, and ONNX Runtime's ``MatMulNBits`` and
``MatMulBnb4``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from qcheck.quantize import file_grid, formats, onnx_file
from qcheck.quantize.file_grid import Weight
from qcheck.quantize.formats import Table
from qcheck.quantize.plan import Grid
from qcheck.spec.scheme import Numbers

_LAYOUT = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_COMPUTED = _LAYOUT | {"QuantizeLinear"}
_QUANTIZERS = frozenset({"DequantizeLinear", "QuantizeLinear", "TRT_FP4DynamicQuantize"})
_DEEP = 32  # constant nodes behind each other


@dataclass(frozen=True)
class Operand:
    """A node that multiplies its ``source`` by a constant; ``sides`` are outputs and inputs, with a kernel's."""

    node: NodeProto
    source: str
    output: str
    sides: tuple[int, int]
    weight: Callable[[], Weight]


class Decoder:
    """The constants of one file.

    Raises:
        ValueError: no ONNX, a tensor in a file of another folder, or a graph of absurd size.
    """

    def __init__(self, path: Path) -> None:
        model, self.parts = onnx_file.read(path)
        if model.functions:
            model = inline_local_functions(model)
        self._folder, self._opsets = str(path.parent), model.opset_import
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.makers = {output: node for node in self.nodes for output in node.output}
        self.tensors: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = {value.name for value in model.graph.input} - set(self.tensors)
        self._constants: dict[str, bool] = {}

    def is_constant(self, name: str, deep: int = 0) -> bool:
        """Whether a value can be computed without the file's inputs, by operators that are computed here."""
        if name in self.tensors:
            return True
        maker = self.makers.get(name)
        if maker is None or deep > _DEEP:
            return False
        if maker.op_type == "Constant":
            return True
        if name not in self._constants:  # a node may have many paths to each of its constants
            known = maker.op_type in _COMPUTED or maker.op_type == "DequantizeLinear"
            self._constants[name] = known and all(self.is_constant(given, deep + 1) for given in maker.input if given)
        return self._constants[name]

    def value(self, name: str) -> np.ndarray:
        """A constant's values."""
        if name in self.tensors:
            stored: np.ndarray = numpy_helper.to_array(self.tensors[name], base_dir=self._folder)
            return stored
        maker = self.makers[name]
        if maker.op_type == "DequantizeLinear":
            codes, steps, _ = self._dequantized(maker)
            values: np.ndarray = codes * steps
            return values
        return self._computed(maker, [self.value(given) if given else None for given in maker.input])

    def _computed(self, node: NodeProto, given: Sequence[np.ndarray | None]) -> np.ndarray:
        """The first output of one node."""
        names = [name for name in node.input if name]
        inputs = [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names)]
        outputs = [helper.make_empty_tensor_value_info(node.output[0])]
        graph = helper.make_graph([node], "constant", inputs, outputs)
        model = helper.make_model(graph, opset_imports=self._opsets)
        values = dict(zip(names, (value for value in given if value is not None), strict=True))
        results: Any = ReferenceEvaluator(model).run(None, values)
        array: np.ndarray = results[0]
        return array

    def _dequantized(self, node: NodeProto) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes from zero, their steps [of the same shape] and their zero point, in float32."""
        codes, scale = self.value(node.input[0]), self.value(node.input[1]).astype(np.float32)
        zero = self.value(node.input[2]).astype(np.float32) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        axis, block = int(_attribute(node, "axis", 1)), int(_attribute(node, "block_size", 0))
        steps, zeros = (_spread(values, codes.shape, axis, block) for values in (scale, zero.astype(np.float32)))
        return codes.astype(np.float32) - zeros, steps, zeros

    @cached_property
    def operands(self) -> list[Operand]:
        """Every node that multiplies by a constant, in the file's order."""
        return [operand for node in self.nodes if (operand := self._operand(node)) is not None]

    def _operand(self, node: NodeProto) -> Operand | None:
        if node.op_type in _PACKED:
            sides = (int(_attribute(node, "N", 0)), int(_attribute(node, "K", 0)))
            constant = all(self.is_constant(name) for name in node.input[1:] if name)
            weight = _PACKED[node.op_type]
            made = Operand(node, node.input[0], node.output[0], sides, lambda: weight(self, node))
            return made if constant and all(sides) else None
        place = _PLACES.get(node.op_type)
        if place is None or len(node.input) <= place or not self.is_constant(node.input[place]):
            return None
        if self.is_constant(node.input[0]):
            return None
        shape = self._shape(node.input[place])
        if len(shape) < 2:
            return None
        sides = _sides(node, shape)
        return Operand(node, node.input[0], node.output[0], sides, lambda: self._weight(node, place))

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self.tensors:
            return tuple(self.tensors[name].dims)
        maker = self.makers[name]
        if maker.op_type in {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear"}:
            return self._shape(maker.input[0])
        if maker.op_type == "Transpose":
            sides = self._shape(maker.input[0])
            order = _attribute(maker, "perm", [*reversed(range(len(sides)))])
            return tuple(sides[axis] for axis in order)
        return self.value(name).shape

    def _weight(self, node: NodeProto, place: int) -> Weight:
        """The weight of a node that computes in float, or by integers whose scale is its next input."""
        name, chain = node.input[place], list[NodeProto]()
        while name not in self.tensors and self.makers[name].op_type in _LAYOUT:
            chain.append(self.makers[name])
            name = chain[-1].input[0]
        maker = self.makers.get(name)
        if place > 1:  # an integer operator: scale and zero point are the next inputs
            axis = 0 if node.op_type == "QLinearConv" else 1
            maker = helper.make_node("DequantizeLinear", node.input[place : place + 3], ["decoded"], axis=axis)
        if maker is None or maker.op_type != "DequantizeLinear":
            values = self._laid_out(self.value(name), chain)
            return file_grid.plain(_outputs_first(node, values), values.dtype.name)
        parts = self._dequantized(maker)
        codes, steps, zeros = (_outputs_first(node, self._laid_out(array, chain)) for array in parts)
        kind, scales = self.value(maker.input[0]).dtype.name, self._scale_format(maker.input[1])
        block = int(_attribute(maker, "block_size", 0)) or None
        return file_grid.quantized(codes * steps, steps, (kind, zeros), block, scales)

    def _laid_out(self, values: np.ndarray, chain: Sequence[NodeProto]) -> np.ndarray:
        for node in reversed(chain):
            if node.op_type != "Cast":
                values = self._computed(node, [values, *(self.value(name) for name in node.input[1:])])
        return values

    def _scale_format(self, name: str) -> tuple[str, str | None]:
        """The float type that steps are stored in, and the format that holds them in units of a factor."""
        kind = "float32" if name not in self.tensors else self.value(name).dtype.name
        while name in self.makers and self.makers[name].op_type == "Cast":
            kind = helper.tensor_dtype_to_np_dtype(_attribute(self.makers[name], "to", 1)).name
            name = self.makers[name].input[0]
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return kind, None
        return kind, file_grid.CODES.get(self.value(maker.input[0]).dtype.name)

    def back(self, name: str, through: frozenset[str]) -> str:
        """The value that ``name`` is made from by operators of ``through``, whose other operands are constants."""
        for maker in self._steps_back(name, through):
            name = self._data_of(maker)
        return name

    def _steps_back(self, name: str, through: frozenset[str]) -> Iterator[NodeProto]:
        for _ in range(_DEEP):
            maker = self.makers.get(name)
            if maker is None or maker.op_type not in through or not (name := self._data_of(maker)):
                return
            yield maker

    def _data_of(self, node: NodeProto) -> str:
        """The one input of a node that is no constant, and a quantizer's first; empty where there are several."""
        others = [given for given in node.input if given and not self.is_constant(given)]
        return others[0] if len(others) == 1 or (others and node.op_type in _QUANTIZERS) else ""

    def scale(self, name: str, end: str) -> float:
        """The factor that ``name`` is ``end`` times, by multiplications with single numbers; NaN by others."""
        product = 1.0
        for maker in self._steps_back(name, _BETWEEN):
            if name == end:
                break
            if maker.op_type == "Mul":
                values = self.value(next(given for given in maker.input if self.is_constant(given)))
                product *= float(values.astype(np.float32).reshape(-1)[0]) if values.size == 1 else float("nan")
            name = self._data_of(maker)
        return product

    def bound(self) -> int:
        """The layers whose low-rank factors are inputs of the file."""
        turned = frozenset({"Transpose"})
        takes = [
            node
            for node in self.nodes
            if node.op_type in {"Conv", "MatMul"}
            and len(node.input) > 1
            and self.back(node.input[1], turned) in self.inputs
        ]
        return len(takes) // 2

    def factor(self, operand: Operand) -> np.ndarray | None:
        """The constant [in] that the input is multiplied by on its way through Q/DQ, as smoothing does."""
        name = self.back(operand.source, _BEFORE - {"Mul"})
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "Mul":
            return None
        constants = [given for given in maker.input if self.is_constant(given)]
        if len(constants) != 1:
            return None
        values = self.value(constants[0]).astype(np.float32)
        return values.flatten() if values.size == operand.sides[1] else None


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


_PLACES = {"Conv": 1, "Gemm": 1, "MatMul": 1, "QLinearConv": 3, "QLinearMatMul": 3}


def _sides(node: NodeProto, shape: Sequence[int]) -> tuple[int, int]:
    turned = "MatMul" in node.op_type or (node.op_type == "Gemm" and not _attribute(node, "transB", 0))
    if turned:
        return int(shape[-1]), int(np.prod(shape[:-1]))
    return int(shape[0]), int(np.prod(shape[1:]))


def _outputs_first(node: NodeProto, values: np.ndarray) -> torch.Tensor:
    """A weight as [out, in, ...]."""
    array = np.ascontiguousarray(values.astype(np.float32))
    if "MatMul" in node.op_type or (node.op_type == "Gemm" and not _attribute(node, "transB", 0)):
        array = np.ascontiguousarray(array.reshape(-1, array.shape[-1]).T)
    return torch.from_numpy(array)


def _spread(values: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Steps or zero points [of the shape of their codes], as ONNX's DequantizeLinear spreads them."""
    if values.size == 1:
        return np.broadcast_to(values.reshape([1] * len(shape)), shape)
    if block:
        if not 0 <= values.shape[axis] * block - shape[axis] < block:
            raise ValueError(f"{values.shape[axis]} blocks of {block} for {shape[axis]} codes")
        return np.take(np.repeat(values, block, axis), np.arange(shape[axis]), axis)
    sides = [1] * len(shape)
    sides[axis] = -1
    return np.broadcast_to(values.reshape(sides), shape)


def _bnb4(decoder: Decoder, node: NodeProto) -> Weight:
    """ONNX Runtime's MatMulBnb4: indices of NF4's values in runs of the weight, the first in a byte's high half."""
    shape = int(_attribute(node, "N", 0)), int(_attribute(node, "K", 0))
    packed, absmax = (decoder.value(name) for name in node.input[1:3])
    number, block = formats.find("nf4"), int(_attribute(node, "block_size", 0))
    if _attribute(node, "quant_type", 1) != 1 or not isinstance(number, Table):
        raise ValueError(f"{node.name}: its codes are not NF4")
    if 2 * packed.size != shape[0] * shape[1]:
        raise ValueError(f"{node.name}: {packed.size} bytes do not hold its {shape[0]} x {shape[1]} codes")
    places = np.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten()[: shape[0] * shape[1]]
    steps = torch.from_numpy(absmax.astype(np.float32)).flatten()
    levels = torch.tensor(number.levels)[torch.from_numpy(places.astype(np.int64))]
    values = (levels.view(len(steps), -1) * steps[:, None]).view(shape)
    grid = Grid(number, "run", steps, block)
    return Weight(values, grid, Numbers(format="nf4", granularity="run", block=block), absmax.dtype.name)


def _nbits(decoder: Decoder, node: NodeProto) -> Weight:
    """ONNX Runtime's MatMulNBits: blocks [N, blocks, bytes] of 4 or 8 bits, the first in the low half of a byte."""
    outputs, inputs = int(_attribute(node, "N", 0)), int(_attribute(node, "K", 0))
    bits, block = int(_attribute(node, "bits", 4)), int(_attribute(node, "block_size", 0))
    if bits not in {4, 8}:
        raise ValueError(f"{node.name}: weights of {bits} bits")
    packed, scales = decoder.value(node.input[1]), decoder.value(node.input[2])
    if not 0 < block <= packed.size * 8 // bits or packed.size * 8 != outputs * -(-inputs // block) * block * bits:
        raise ValueError(f"{node.name}: {packed.size} bytes do not hold its {outputs} x {inputs} codes")
    codes = _unpacked(packed.reshape(outputs, -1), bits)[:, :inputs].astype(np.float32)
    middle = 2 ** (bits - 1)
    zeros = np.full((outputs, -(-inputs // block)), middle, np.float32)
    if len(node.input) > 3 and node.input[3]:
        given = decoder.value(node.input[3])
        packed_zeros = given.dtype == np.uint8
        rows = _unpacked(given.reshape(outputs, -1), bits) if packed_zeros else given.reshape(outputs, -1)
        zeros = rows[:, : zeros.shape[1]].astype(np.float32)
    steps = np.repeat(scales.reshape(outputs, -1).astype(np.float32), block, 1)[:, :inputs]
    values = (codes - np.repeat(zeros, block, 1)[:, :inputs]) * steps
    spread = torch.from_numpy(np.repeat(zeros, block, 1)[:, :inputs])
    kind = (f"uint{bits}", spread)
    return file_grid.quantized(
        torch.from_numpy(values), torch.from_numpy(steps), kind, block, (scales.dtype.name, None)
    )


def _unpacked(rows: np.ndarray, bits: int) -> np.ndarray:
    """Codes [n, 2 k] of bytes [n, k] that hold two; bytes of one code as they are."""
    return rows if bits == 8 else np.stack([rows & 15, rows >> 4], -1).reshape(len(rows), -1)


_PACKED: dict[str, Callable[[Decoder, NodeProto], Weight]] = {"MatMulBnb4": _bnb4, "MatMulNBits": _nbits}
_AFTER = frozenset({"Add", "Cast", "Identity", "Mul"})
_BETWEEN = _AFTER - {"Add"}
_BEFORE = frozenset({"Cast", "Identity", "Mul", *_QUANTIZERS})


@dataclass(frozen=True)
class Branch:
    """Two layers beside another one, ``down`` and then ``up``, whose product is added to its output."""

    down: Operand
    up: Operand
    scale: float

    def change(self) -> torch.Tensor:
        """The change of the layer's weight that computes the same, [out, n]."""
        down, up = self.down.weight().values, self.up.weight().values
        return self.scale * up.flatten(1) @ down.flatten(1)


def branches(decoder: Decoder) -> dict[str, Branch]:
    """The branch beside a layer that reads the same input, by the layer's output."""
    by_output = {operand.output: operand for operand in decoder.operands}
    sums = [node for node in decoder.nodes if node.op_type == "Add" and not any(map(decoder.is_constant, node.input))]
    found = {}
    for node in sums:
        for name, other in (node.input, node.input[::-1]):
            main, up = (by_output.get(decoder.back(given, _AFTER)) for given in (name, other))
            down = None if up is None else by_output.get(decoder.back(up.source, _BETWEEN))
            if main is None or up is None or down is None or up.sides != (main.sides[0], down.sides[0]):
                continue
            if decoder.back(down.source, _BEFORE) == decoder.back(main.source, _BEFORE):
                scale = decoder.scale(other, up.output) * decoder.scale(up.source, down.output)
                found[main.output] = Branch(down, up, scale)
    return found
