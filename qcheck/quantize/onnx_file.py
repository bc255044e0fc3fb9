"""An ONNX file of a stranger, read without its tensors outside, and refused before anything is computed by it.

ONNX Runtime refuses graphs with cycles, unknown operators and external tensors outside of the folder or their files. It
expands local functions whatever they expand to, and allocates what a graph asks for.
"""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import psutil
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, shape_inference
from onnx.checker import ValidationError

_MOST = 2**31 - 1  # bytes of a protobuf
_NODES = 20_000  # that local functions may expand to in any file
_GROWTH = 4  # times the nodes of a file that they may expand to
_LEVELS = 100  # of functions that call functions
_SMALL = 1024  # bytes of a tensor whose values may be shapes


def read(path: Path) -> tuple[ModelProto, tuple[Path, ...]]:
    """The model without the tensors outside of the file, and the files that hold those.

    Raises:
        ValueError: no ONNX, a tensor in a file of another folder, or a graph of absurd size.
    """
    if path.stat().st_size > _MOST:
        raise ValueError(f"it has {path.stat().st_size} bytes, and an ONNX file at most {_MOST}: weights lie beside it")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError("it is no ONNX, or cut off") from error
    parts = tuple(sorted({_part(path, location) for location in _locations(model)}))
    _require_expandable(model)
    _require_allocatable(model)
    return model, parts


def _part(path: Path, location: str) -> Path:
    """The file of an external tensor: in the folder of the model, or beside it in the cache that both are links to."""
    part = path.parent / location
    real, folder = Path(os.path.realpath(part)), Path(os.path.realpath(path.parent))
    stored_together = real.parent == Path(os.path.realpath(path)).parent
    if not (stored_together or real.is_relative_to(folder)) or not part.is_file():
        raise ValueError(f"its external tensor {location[:80]!r} is no file in the folder of the model")
    return part


def _locations(model: ModelProto) -> Iterator[str]:
    """Where the tensors outside of the file are, those of subgraphs, attributes and functions too."""
    tensors: list[TensorProto] = []
    for graph in _graphs(model):
        tensors += graph.initializer
        tensors += (tensor for sparse in graph.sparse_initializer for tensor in (sparse.values, sparse.indices))
    for node in _nodes(model):
        for attribute in node.attribute:
            tensors += (attribute.t, *attribute.tensors)
    outside = (tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL)
    return (entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location")


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of every graph and function."""
    for holder in (*_graphs(model), *model.functions):
        yield from holder.node


def _graphs(model: ModelProto) -> list[GraphProto]:
    """The graph and all subgraphs."""
    graphs: list[GraphProto] = []
    waiting = [*_inner(node for function in model.functions for node in function.node), model.graph]
    while waiting:
        graphs.append(waiting.pop())
        waiting += _inner(graphs[-1].node)
    return graphs


def _inner(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _require_expandable(model: ModelProto) -> None:
    """Refuse local functions that expand to far more nodes than the file has, or into themselves."""
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    for _ in range(_LEVELS):
        before = dict(sizes)
        for key, function in functions.items():
            sizes[key] = min(_MOST, sum(sizes.get((node.domain, node.op_type), 1) for node in function.node))
        if sizes == before:
            break
    else:
        raise ValueError(f"its functions call each other more than {_LEVELS} deep")
    count = sum(1 for _ in _nodes(model))
    expanded = sum(sizes.get((node.domain, node.op_type), 1) for graph in _graphs(model) for node in graph.node)
    if expanded > max(_NODES, _GROWTH * count):
        raise ValueError(f"its functions expand {count} nodes to {expanded} or more")


def _require_allocatable(model: ModelProto) -> None:
    """Refuse a graph with a tensor whose shape is known and which is larger than half of this machine's memory."""
    hollow = ModelProto()
    hollow.CopyFrom(model)
    for tensor in hollow.graph.initializer:
        if len(tensor.raw_data) > _SMALL:
            tensor.ClearField("raw_data")
    most = psutil.virtual_memory().total // 2
    try:
        inferred = shape_inference.infer_shapes(hollow, data_prop=True)
    except (shape_inference.InferenceError, ValidationError) as error:
        raise ValueError(f"its shapes do not fit: {error}") from error
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        sides = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        if 4 * math.prod(sides) > most:
            raise ValueError(f"its tensor {value.name!r} of {' x '.join(map(str, sides))} numbers fits no memory here")
