"""Small ONNX files of strangers: parallel layers of a small base, nameless, in whatever layout of weights."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from qcheck.quantize import plan
from qcheck.quantize.formats import Table
from qcheck.quantize.plan import Grid
from qcheck.spec.scheme import Numbers

SHAPES = {f"blocks.{place}.to_q": (64, 64) for place in range(6)} | {"wide": (96, 64), "narrow": (32, 128)}
RANK = 4
Tensors = dict[str, torch.Tensor]
_TYPES = {"int4": ml_dtypes.int4, "float8_e4m3": ml_dtypes.float8_e4m3fn, "float4_e2m1": ml_dtypes.float4_e2m1fn}


def base(folder: Path, seed: int = 1) -> Tensors:
    """Write a base of nothing but a denoiser's weights; returns them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "config.json").write_text(json.dumps({"layers_per_block": 2}))
    tensors = {f"{name}.weight": weight for name, weight in weights.items()}
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return weights


def adapter(path: Path, seed: int, size: float = 0.002) -> Tensors:
    """Write an adapter whose changes have the root mean square ``size``; returns the changes."""
    generator = torch.Generator().manual_seed(seed)
    tensors, changes = {}, {}
    for name, (outputs, inputs) in SHAPES.items():
        down = torch.randn(RANK, inputs, generator=generator)
        up = size / RANK**0.5 * torch.randn(outputs, RANK, generator=generator)
        tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        changes[name] = up @ down
    save_file(tensors, path)
    return changes


class Graph:
    """Nodes and constants under numbers for names."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def constant(self, values: np.ndarray) -> str:
        """The name of a new constant."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, operator: str, inputs: Sequence[str], domain: str = "", **attributes: object) -> str:
        """The output of a new node."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [*inputs], [name], domain=domain, **attributes))
        return name

    def source(self, *shape: int, kind: int = TensorProto.FLOAT) -> str:
        """A new input of the file."""
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def result(self, name: str, kind: int = TensorProto.FLOAT) -> None:
        """Make a value an output of the file."""
        self.outputs.append(helper.make_tensor_value_info(name, kind, None))

    def save(self, path: Path, external: bool = False) -> Path:
        """Write the file."""
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
        onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
        return path


Layout = Callable[[Graph, str, torch.Tensor, Grid, Numbers], str]


def matmul(graph: Graph, x: str, weight: torch.Tensor, grid: Grid, numbers: Numbers) -> str:
    """A MatMul behind a DequantizeLinear of codes [in, out]; of NF4 ONNX Runtime's MatMulBnb4; of a cast a constant."""
    outputs, inputs = weight.shape
    if isinstance(grid.number, Table):
        places = grid.number.indices(weight.reshape(len(grid.step), -1) / grid.step[:, None]).flatten().to(torch.uint8)
        packed = graph.constant((places[::2] * 16 + places[1::2]).numpy())
        sides = {"K": inputs, "N": outputs, "block_size": numbers.block, "quant_type": 1}
        given = [x, packed, graph.constant(grid.step.numpy())]
        return graph.node("MatMulBnb4", given, "com.microsoft", **sides)
    if grid.granularity == "none":
        return graph.node("MatMul", [x, graph.constant(grid.fake(weight).t().numpy().astype(numbers.format))])
    codes = graph.constant(grid.codes(weight).t().numpy().astype(_TYPES.get(numbers.format, np.int8)))
    step, place = grid.step, {"axis": 1}
    if numbers.block is not None:
        step, place = step.view(outputs, -1).t(), {"axis": 0, "block_size": numbers.block}
    elif len(step) == 1:
        step, place = step.view(()), {}
    return graph.node("MatMul", [x, graph.node("DequantizeLinear", [codes, graph.constant(step.numpy())], **place)])


def fake_quantized(graph: Graph, x: str, weight: torch.Tensor, grid: Grid, _: Numbers) -> str:
    """A Gemm whose float weight [out, in] is quantized and dequantized in the file, as torch's exporters write it."""
    scale, zero = graph.constant(grid.step.numpy()), graph.constant(np.zeros(len(grid.step), np.int8))
    codes = graph.node("QuantizeLinear", [graph.constant(weight.numpy()), scale, zero], axis=0)
    return graph.node("Gemm", [x, graph.node("DequantizeLinear", [codes, scale, zero], axis=0)], transB=1)


def uncentered(graph: Graph, x: str, weight: torch.Tensor, _: Grid, __: Numbers) -> str:
    """A MatMul of uint8 with a zero point of its own, by the weight's range."""
    low, high = float(weight.min()), float(weight.max())
    step = (high - low) / 255
    zero = round(-low / step)
    codes = np.clip(np.round(weight.t().numpy() / np.float32(step)) + zero, 0, 255).astype(np.uint8)
    given = [graph.constant(codes), graph.constant(np.float32(step)), graph.constant(np.uint8(zero))]
    return graph.node("MatMul", [x, graph.node("DequantizeLinear", given)])


def nbits(graph: Graph, x: str, weight: torch.Tensor, grid: Grid, numbers: Numbers) -> str:
    """ONNX Runtime's MatMulNBits of 4 bits."""
    outputs, inputs = weight.shape
    codes = (grid.codes(weight).numpy().astype(np.int16) + 8).astype(np.uint8).reshape(outputs, -1, numbers.block or 0)
    packed = graph.constant(codes[..., ::2] | (codes[..., 1::2] << 4))
    sides = {"K": inputs, "N": outputs, "bits": 4, "block_size": numbers.block}
    return graph.node("MatMulNBits", [x, packed, graph.constant(grid.step.numpy())], "com.microsoft", **sides)


def integer(graph: Graph, x: str, weight: torch.Tensor, grid: Grid, _: Numbers) -> str:
    """QLinearMatMul, which takes and gives codes."""
    unit, zero = graph.constant(np.float32(0.1)), graph.constant(np.int8(0))
    codes = graph.node("QuantizeLinear", [x, unit, zero])
    theirs = [
        graph.constant(grid.codes(weight).t().numpy()),
        graph.constant(grid.step.numpy()),
        graph.constant(np.zeros(len(grid.step), np.int8)),
    ]
    product = graph.node("QLinearMatMul", [codes, unit, zero, *theirs, unit, zero])
    return graph.node("DequantizeLinear", [product, unit, zero])


def pointwise(graph: Graph, x: str, weight: torch.Tensor, grid: Grid, _: Numbers) -> str:
    """A convolution of 1 x 1 in the place of a linear layer."""
    codes = graph.constant(grid.codes(weight).numpy()[:, :, None, None])
    values = graph.node("DequantizeLinear", [codes, graph.constant(grid.step.numpy())], axis=0)
    return graph.node("Conv", [graph.node("Unsqueeze", [x, graph.constant(np.array([2, 3]))]), values])


def smoothed(graph: Graph, x: str, weight: torch.Tensor, _: Grid, numbers: Numbers) -> str:
    """A MatMul of a weight that is divided by the factor its input is multiplied by."""
    factor = torch.exp(torch.linspace(-3, 3, weight.shape[1]))[torch.randperm(weight.shape[1])]
    product = graph.node("Mul", [x, graph.constant(factor.numpy())])
    stored = weight / factor
    return matmul(graph, product, stored, plan.grid(stored, numbers, "float32"), numbers)


def written(
    path: Path, weights: Mapping[str, torch.Tensor], numbers: Numbers, layout: Layout = matmul, external: bool = False
) -> Path:
    """A file of ``weights``, quantized."""
    graph = Graph()
    for weight in weights.values():
        x = graph.source(4, weight.shape[1], kind=_kind(numbers))
        graph.result(layout(graph, x, weight, plan.grid(weight, numbers, "float32"), numbers), _kind(numbers))
    return graph.save(path, external)


def _kind(numbers: Numbers) -> int:
    return TensorProto.FLOAT16 if numbers.format == "float16" else TensorProto.FLOAT


def beside(
    path: Path, weights: Mapping[str, torch.Tensor], changes: Mapping[str, torch.Tensor], numbers: Numbers
) -> Path:
    """A file of the quantized ``weights`` with ``changes`` in branches of rank ``RANK``, scaled by a constant."""
    graph = Graph()
    for name, weight in weights.items():
        x = graph.source(4, weight.shape[1])
        main = matmul(graph, x, weight, plan.grid(weight, numbers, "float32"), numbers)
        left, sizes, right = torch.linalg.svd(changes[name], full_matrices=False)
        down = graph.node("MatMul", [x, graph.constant((sizes[:RANK, None] * right[:RANK]).t().numpy())])
        up = graph.node("MatMul", [down, graph.constant(4 * left[:, :RANK].t().numpy())])
        scaled = graph.node("Mul", [up, graph.constant(np.float32(0.25))])
        graph.result(graph.node("Add", [main, scaled]))
    return graph.save(path)


def bound(path: Path, weights: Mapping[str, torch.Tensor], numbers: Numbers) -> Path:
    """A file of the quantized ``weights`` that takes factors as inputs."""
    graph = Graph()
    for weight in weights.values():
        x, down, up = (
            graph.source(4, weight.shape[1]),
            graph.source(RANK, weight.shape[1]),
            graph.source(len(weight), RANK),
        )
        main = matmul(graph, x, weight, plan.grid(weight, numbers, "float32"), numbers)
        product = x
        for factor in (down, up):
            product = graph.node("MatMul", [product, graph.node("Transpose", [factor], perm=[1, 0])])
        graph.result(graph.node("Add", [main, product]))
    return graph.save(path)
