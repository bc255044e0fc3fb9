"""The sites of layers in an exported graph, and the weights that fill them.

Cases, by how torch's exporter leaves a layer:
1. ``Conv(x, W, b)`` and ``Gemm(x, W, b, transB=1)``: W is an initializer [out, in, ...].
2. ``MatMul(x, Transpose(W))``: W is an initializer [out, in].
3. ``MatMul(x, V)``: the exporter folded the transpose; V is an initializer [in, out].
"""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from onnx import GraphProto

from qcheck.model.components import MODULE

SCOPES = "pkg.torch.onnx.name_scopes"
_COMPUTING = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Site:
    """One layer in a graph: its node, the value that holds its weight, and whether that is stored as [in, out]."""

    node: ir.Node
    weight: ir.Value
    transposed: bool

    @property
    def elements(self) -> int:
        """The number of elements of the weight."""
        return math.prod(side for side in _shape(self.weight) if isinstance(side, int))


def _layer_name(node: ir.Node) -> str:
    """The torch module that this node came from, without the entry's prefix."""
    return _last_module(node.metadata_props.get(SCOPES, ""))


def _last_module(scopes: str) -> str:
    names = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    return names[-2].removeprefix(f"{MODULE}.") if len(names) > 1 else ""


def _initializer_of(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """The initializer behind a weight input and whether a Transpose stands between (case 2)."""
    if value is None:
        return None
    if value.const_value is not None and value.is_initializer():
        return value, False
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose":
        source = producer.inputs[0]
        if source is not None and source.is_initializer():
            return source, True
    return None


def find(graph: ir.Graph) -> dict[str, Site]:
    """The computing node of every layer with a weight, by the layer's name in torch."""
    by_layer = {}
    for node in graph:
        if node.op_type in _COMPUTING and len(node.inputs) > 1:
            initializer = _initializer_of(node.inputs[1])
            if initializer is not None:
                folded = node.op_type == "MatMul" and not initializer[1]
                by_layer[_layer_name(node)] = Site(node, initializer[0], transposed=folded)
    return by_layer


def computing(graph: GraphProto) -> dict[str, str]:
    """The name of the first computing node of every module of torch, quantized or not."""
    names: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in _COMPUTING and node.name:
            scopes = next((one.value for one in node.metadata_props if one.key == SCOPES), "")
            names.setdefault(_last_module(scopes), node.name)
    return names


def stored(values: torch.Tensor, dtype: ir.DataType) -> np.ndarray:
    """``values`` as the numpy array of the graph's float type."""
    return values.detach().contiguous().numpy().astype(dtype.numpy())


def hollow(model: ir.Model, layers: Iterable[str]) -> ir.Model:
    """``model`` with the weights of its layers as inputs, which take no space in a file; changed in place.

    Raises:
        LookupError: the graph computes one of ``layers`` where its weight is not found: a stand-in would stay.
    """
    places = find(model.graph)
    computed = {_layer_name(node) for node in model.graph}
    if lost := sorted((computed & set(layers)) - set(places)):
        raise LookupError(f"the weight of {lost[0]} is not where exported layers have theirs")
    for site in places.values():
        value = site.weight
        if value.is_initializer():
            value.shape, value.dtype = _shape(value), float_type(value)
            del model.graph.initializers[str(value.name)]
            value.const_value = None
            model.graph.inputs.append(value)
    return model


def unfilled(model: ir.Model, inputs: Collection[str]) -> ir.Model:
    """A ``hollow`` model whose ``inputs`` are those of its component again; its layers wait for ``fill``."""
    for value in [value for value in model.graph.inputs if value.name not in inputs]:
        model.graph.inputs.remove(value)
        value.const_value = later(value, functools.partial(_absent, value.name))
        model.graph.register_initializer(value)
    return model


def _absent(name: str | None) -> np.ndarray:
    raise RuntimeError(f"the graph's weight {name} was never filled")


def fill(model: ir.Model, state: Mapping[str, torch.Tensor]) -> ir.Model:
    """A copy of ``model`` whose layers hold the weights of ``state`` (``<layer>.weight``); other tensors are shared.

    A weight is turned and cast when it is written, so that a model's memory is not needed twice.

    Raises:
        KeyError: ``state`` lacks a layer of the graph.
    """
    copy = model.clone()
    for layer, site in find(copy.graph).items():
        name = f"{layer}.weight"
        if name not in state:
            raise KeyError(name)
        site.weight.const_value = later(site.weight, functools.partial(_written, state, name, site))
    return copy


def _written(state: Mapping[str, torch.Tensor], name: str, site: Site) -> np.ndarray:
    """A layer's weight as its site holds it."""
    weight = state[name]
    return stored(weight.t() if site.transposed else weight, float_type(site.weight))


def later(value: ir.Value, array: Callable[[], np.ndarray]) -> ir.LazyTensor:
    """A constant of the type and shape of ``value``, computed when it is read."""
    dtype = value.dtype if value.const_value is None else value.const_value.dtype
    if dtype is None:
        raise ValueError(f"{value.name} has no type")
    return ir.LazyTensor(lambda: ir.tensor(array()), dtype=dtype, shape=_shape(value), name=value.name)


def _shape(value: ir.Value) -> ir.Shape:
    """The shape of a constant or of a value that becomes one."""
    shape = value.shape if value.const_value is None else value.const_value.shape
    if shape is None:
        raise ValueError(f"{value.name} has no shape")
    return ir.Shape([int(side) for side in shape])  # type: ignore[arg-type]


def float_type(value: ir.Value) -> ir.DataType:
    """The type of a weight in the graph."""
    if value.const_value is None:
        raise ValueError(f"{value.name} has no constant")
    return value.const_value.dtype
